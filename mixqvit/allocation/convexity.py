"""Writes a quadratic function of choices as a convex one plus a linear one, so that a lower bound can be computed.

Of the variables x_lk of a layer one is 1 and the others are 0. So xᵀBx equals diag(B)·x for a matrix B within a layer,
and any such blocks can be moved from the quadratic part to the linear one (quadratic convex reformulation: Billionnet,
Elloumi & Plateau 2009). Between allocations the linear part is larger, so the more is moved, the better the bound, as
long as what stays is convex along the directions that keep every layer's sum at 1. What to move is a semidefinite
program; its logarithmic barrier is followed here block by block, each step in closed form.
"""

import numpy as np

__all__ = ["convex_split"]

_BARRIER = 1e-3  # of the function's size, shared by all directions
_SWEEPS = 10
_LEAST_SPREAD = 1e-9


def convex_split(matrix: np.ndarray, spread: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix Q, convex where every layer sums to 1, and a vector c with xᵀQx + c·x = xᵀMx for allocations x.

    Args:
        matrix: M, symmetric `[V, V]`; variables are those of all layers in turn, `V = L · K`.
        spread: Where the bound matters: how much of each choice `[L, K]` a point between allocations has, 0 for choices
            that are dropped.
        size: About the value of the function at the optimum.
    """
    choices = spread.shape[1]
    directions, slices = _directions(spread)
    if directions.shape[1] == 0:
        return matrix, np.zeros(len(matrix))
    inner = directions.T @ matrix @ directions
    inner = (inner + inner.T) / 2.0
    moved = _moved(inner, slices, _BARRIER * size / len(inner))
    lowest = np.linalg.eigvalsh(inner - moved)[0]
    if lowest < 0:
        moved += 1.01 * lowest * np.eye(len(inner))
    back = np.linalg.pinv(directions)
    blocks = np.zeros_like(matrix)
    for layer, part in slices:
        rows = slice(layer * choices, (layer + 1) * choices)
        blocks[rows, rows] = back[part, rows].T @ moved[part, part] @ back[part, rows]
    return matrix - blocks, np.diag(blocks).copy()


def _directions(spread: np.ndarray) -> tuple[np.ndarray, list[tuple[int, slice]]]:
    """Return directions `[V, D]` that keep every layer's sum, as long as its spread is wide, and the columns of it."""
    layers, choices = spread.shape
    columns, slices, count = [], [], 0
    for layer, share in enumerate(spread):
        kept = np.flatnonzero(share)
        if len(kept) < 2:
            continue
        share = share[kept] / share[kept].sum()
        covariance = np.diag(share) - np.outer(share, share) + _LEAST_SPREAD * (np.eye(len(kept)) - 1.0 / len(kept))
        values, vectors = np.linalg.eigh(covariance)
        block = np.zeros((layers * choices, len(kept) - 1))
        block[layer * choices + kept] = vectors[:, 1:] * np.sqrt(values[1:])
        columns.append(block)
        slices.append((layer, slice(count, count + len(kept) - 1)))
        count += len(kept) - 1
    return np.concatenate(columns, axis=1) if columns else np.zeros((layers * choices, 0)), slices


def _moved(matrix: np.ndarray, slices: list[tuple[int, slice]], barrier: float) -> np.ndarray:
    """Return the block-diagonal C that maximises trace C + barrier · log det(matrix − C), nearly."""
    scale = np.abs(np.linalg.eigvalsh(matrix))
    lowest = np.linalg.eigvalsh(matrix)[0]
    moved = -(1.05 * max(-lowest, 0.0) + 1e-9 * scale.max() + 1e-300) * np.eye(len(matrix))
    inverse = np.linalg.inv(matrix - moved)
    for _ in range(_SWEEPS):
        for _, part in slices:
            # The best block leaves barrier · I as the Schur complement of the rest.
            left = np.linalg.inv(inverse[part, part])
            left = (left + left.T) / 2.0
            target = barrier * np.eye(len(left))
            moved[part, part] += left - target
            effect = inverse[:, part] @ left
            inverse += effect @ (np.eye(len(left)) / barrier - inverse[part, part]) @ effect.T
        inverse = (inverse + inverse.T) / 2.0
    return moved
