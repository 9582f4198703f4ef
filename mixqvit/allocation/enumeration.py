"""Exact search among the choices that the bounds leave, layer by layer, in batches of partial allocations."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Best", "enumerate_choices"]

_WIDTH = 20_000  # partial allocations continued at a time; fewer would miss more that take the same amounts
_SAFER = (1.02, 1.1, 1.5, 4.0)  # multiples of the best prices: the completions that they lead to take less


@dataclass
class Best:
    """The best allocation found so far: the choice of every layer `[L]`, None before the first, and its harm."""

    chosen: np.ndarray | None = None
    harm: float = np.inf


@dataclass(frozen=True)
class _Batch:
    """Partial allocations: what they take `[S, M]`, their harm `[S]`, least harm in the end `[S]`, choices `[S, O]`."""

    step: int
    taken: np.ndarray
    harm: np.ndarray
    bound: np.ndarray
    path: np.ndarray

    def part(self, wanted: np.ndarray | slice) -> "_Batch":
        return _Batch(self.step, self.taken[wanted], self.harm[wanted], self.bound[wanted], self.path[wanted])


def enumerate_choices(
    harm: np.ndarray,
    amounts: np.ndarray,
    rooms: np.ndarray,
    prices: np.ndarray,
    best: Best,
    margin: float,
    most_work: int,
) -> bool:
    """Find the least harm within every ceiling; better allocations replace `best` as they are found.

    A partial allocation is left out when its harm, with the least that the remaining layers can add at any of the
    prices, exceeds the best harm; of those that take the same amounts the best stays. Those with the lowest bounds
    are continued first.

    Args:
        harm: Harm of every choice `[L, K]`, infinite for those that are no choice.
        amounts: What every choice takes of every ceiling `[M, L, K]`.
        rooms: The ceilings `[M]`.
        prices: Price vectors whose Lagrangian bounds are used `[P, M]`, the best first.
        best: The best allocation known; updated in place.
        margin: Rounding of the sums: what is not worse by more than this is not left out.
        most_work: Number of partial allocations after which the search gives up.

    Returns:
        Whether the search came to its end, which proves `best`; with nothing found, that nothing fits.
    """
    search = _Search(harm, amounts, rooms, prices)
    start = np.zeros((1, len(rooms))), np.zeros(1), np.full(1, -np.inf), np.zeros((1, len(search.order)), np.int16)
    stack = [_Batch(0, *start)]
    work = 0
    while stack:
        batch = stack.pop()
        batch = batch.part(batch.bound < best.harm + margin)
        if batch.step == len(search.order) or not len(batch.harm):
            continue
        if len(batch.harm) > _WIDTH:
            ascending = np.argsort(batch.bound, kind="stable")
            stack.append(batch.part(ascending[_WIDTH:]))
            batch = batch.part(ascending[:_WIDTH])
        longer = search.continued(batch, best.harm + margin)
        work += len(longer.harm)
        if work > most_work:
            return False
        search.complete(longer, best)
        stack.append(longer)
    return True


class _Search:
    """What stays the same while one problem is enumerated; sums over the layers still to come are ready."""

    def __init__(self, harm: np.ndarray, amounts: np.ndarray, rooms: np.ndarray, prices: np.ndarray) -> None:
        self.harm, self.amounts, self.prices = harm, amounts, prices
        self.rooms = rooms
        possible = np.isfinite(harm)
        priced = harm + np.tensordot(np.concatenate([prices, np.outer(_SAFER, prices[0])]), amounts, 1)
        # Layers whose choices differ most in what they take come first: the others then fill what room is left.
        paid = np.tensordot(prices[0], amounts, 1)
        spread = np.where(possible, paid, -np.inf).max(axis=1) - np.where(possible, paid, np.inf).min(axis=1)
        self.order = np.argsort(-spread, kind="stable")
        self.choices = [np.flatnonzero(possible[layer]) for layer in self.order]
        self.bounds_left = _left(priced[: len(prices)].min(axis=2)[:, self.order]) - (prices @ rooms)[:, None]
        self.least_left = _left(np.where(possible, amounts, np.inf).min(axis=2)[:, self.order])
        self.completions = np.unique(priced.argmin(axis=2), axis=0)[:, self.order]
        self.completed_harm = _left(harm[self.order, self.completions])
        self.completed_taken = _left(amounts[:, self.order, self.completions])

    def continued(self, batch: _Batch, below: float) -> _Batch:
        """Return the batch with one more layer."""
        step, layer, choices = batch.step, self.order[batch.step], self.choices[batch.step]
        harm = (batch.harm[:, None] + self.harm[layer, choices]).ravel()
        taken = (batch.taken[:, None] + self.amounts[:, layer, choices].T).reshape(len(harm), -1)
        bound = (taken @ self.prices.T + self.bounds_left[:, step + 1]).max(axis=1) + harm
        fits = (taken + self.least_left[:, step + 1] <= self.rooms).all(axis=1)
        kept = np.flatnonzero(fits & (bound < below))
        if len(kept) > 1:
            kept = kept[np.lexsort((harm[kept], *taken[kept].T))]
            same = (taken[kept[1:]] == taken[kept[:-1]]).all(axis=1)
            kept = kept[np.concatenate([[True], ~same])]
        path = batch.path[kept // len(choices)]
        path[:, step] = choices[kept % len(choices)]
        return _Batch(step + 1, taken[kept], harm[kept], bound[kept], path)

    def complete(self, batch: _Batch, best: Best) -> None:
        """Complete every partial allocation in a few ways, and keep the best of the results that fit."""
        total = batch.harm[:, None] + self.completed_harm[:, batch.step]
        left = self.rooms[:, None] - self.completed_taken[:, :, batch.step]
        fits = (batch.taken[:, :, None] <= left).all(axis=1)
        total[~fits] = np.inf
        if total.size and total.min() < best.harm:
            state, completion = np.unravel_index(total.argmin(), total.shape)
            along = np.concatenate([batch.path[state, : batch.step], self.completions[completion, batch.step :]])
            chosen = np.empty(len(self.order), dtype=int)
            chosen[self.order] = along
            best.chosen, best.harm = chosen, float(total[state, completion])


def _left(values: np.ndarray) -> np.ndarray:
    """Return sums of the values from every step to the last one, and 0 after it: `[..., O]` to `[..., O + 1]`."""
    sums = np.cumsum(values[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([sums, np.zeros((*sums.shape[:-1], 1))], axis=-1)
