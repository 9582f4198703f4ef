"""Improves an allocation under pairwise terms by changing one layer, or two at once, within the ceilings."""

import numpy as np

__all__ = ["improved", "marginal_harm", "quadratic_harm"]

_MOST_MOVES = 600  # of which all pairs are tried; those that change the harm least, for two large ones rarely fit
_ROUNDING = 1e-12


def quadratic_harm(matrix: np.ndarray, chosen: np.ndarray) -> float:
    """Return xᵀMx of one choice per layer `[L]`, where M is `[V, V]` with `V = L · K`."""
    choices = len(matrix) // len(chosen)
    variables = np.arange(len(chosen)) * choices + chosen
    return float(matrix[np.ix_(variables, variables)].sum())


def marginal_harm(matrix: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return what every choice adds to the harm while all other layers keep theirs `[L, K]`."""
    layers = len(chosen)
    rows = np.arange(layers)
    blocks = matrix.reshape(layers, -1, layers, len(matrix) // layers)
    pairs = blocks[:, :, rows, chosen].sum(axis=2) - blocks[rows, :, rows, chosen]
    return 2.0 * pairs + np.diag(matrix).reshape(layers, -1)


def improved(
    matrix: np.ndarray, possible: np.ndarray, amounts: np.ndarray, rooms: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return an allocation that no change of one or two layers improves, and its harm.

    Args:
        matrix: M of the harm xᵀMx `[V, V]`, `V = L · K`.
        possible: Which choices there are `[L, K]`.
        amounts: What every choice takes of every ceiling `[M, L, K]`.
        rooms: The ceilings `[M]`.
        chosen: Choices to start with, within the ceilings `[L]`.
    """
    chosen = chosen.copy()
    harm = quadratic_harm(matrix, chosen)
    while True:
        move = _best_move(matrix, possible, amounts, rooms, chosen, _ROUNDING * abs(harm))
        if not move:
            return chosen, harm
        for layer, choice in move:
            chosen[layer] = choice
        harm = quadratic_harm(matrix, chosen)


def _best_move(
    matrix: np.ndarray,
    possible: np.ndarray,
    amounts: np.ndarray,
    rooms: np.ndarray,
    chosen: np.ndarray,
    least_gain: float,
) -> list[tuple[int, int]]:
    """Return the (layer, choice) to change: the best single one, or else the best two; none where nothing improves."""
    layers, choices = possible.shape
    rows = np.arange(layers)
    marginal = marginal_harm(matrix, chosen)
    change = marginal - marginal[rows, chosen][:, None]
    more = amounts - amounts[:, rows, chosen][:, :, None]
    room = rooms - amounts[:, rows, chosen].sum(axis=1)
    single = np.where(possible & (more <= room[:, None, None]).all(axis=0), change, np.inf)
    layer, choice = np.unravel_index(single.argmin(), single.shape)
    if single[layer, choice] < -least_gain:
        return [(int(layer), int(choice))]
    layer, choice = np.nonzero(possible & (np.arange(choices) != chosen[:, None]))
    few = np.argsort(np.abs(change[layer, choice]), kind="stable")[:_MOST_MOVES]
    layer, choice = layer[few], choice[few]
    new, old = layer * choices + choice, layer * choices + chosen[layer]
    both = matrix[np.ix_(new, new)] - matrix[np.ix_(new, old)] - matrix[np.ix_(old, new)] + matrix[np.ix_(old, old)]
    pair = change[layer, choice][:, None] + change[layer, choice] + 2.0 * both
    fits = layer[:, None] != layer
    for taken, left in zip(more[:, layer, choice], room, strict=True):
        fits &= taken[:, None] + taken <= left
    pair = np.where(fits, pair, np.inf)
    if not pair.size or pair.min() >= -least_gain:
        return []
    first, second = np.unravel_index(pair.argmin(), pair.shape)
    return [(int(layer[one]), int(choice[one])) for one in (first, second)]
