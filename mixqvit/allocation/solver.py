"""Exact multiple-choice knapsack with several ceilings: one choice per layer, least harm, proven.

1. Choices that another one beats in harm and in every amount are dropped.
2. The dual (`duality`) gives a lower bound and a price for every ceiling; rounding gives an allocation near it.
3. A choice whose reduced cost (what it costs beyond the best choice of its layer at those prices) exceeds the
   distance between the two cannot be part of anything better and is dropped. A few dozen choices remain.
4. `enumeration` goes through what remains; if that is too much for it, HiGHS solves it (`integer_program`).

Bounds are compared with a margin for the rounding of float64 sums, so nothing better is dropped.
"""

from dataclasses import dataclass

import numpy as np

from mixqvit.allocation.duality import dual
from mixqvit.allocation.enumeration import Best, enumerate_choices
from mixqvit.allocation.integer_program import solve_integer_program
from mixqvit.errors import AllocationError

__all__ = ["Solution", "least_harm", "least_with"]

_ROUNDING = 1e-13  # of the sizes that are summed: hundreds of roundings of float64
_PRICES = 24
_SAFER = (1.0, 1.03, 1.1, 1.3, 2.0, 5.0, 30.0)  # multiples of the best prices, at which allocations take less
_MOST_WORK = 1_000_000


@dataclass(frozen=True)
class Solution:
    """The choice of every layer `[L]`, and by how much less its harm could be, relative to it: 0 where proven best."""

    chosen: np.ndarray
    gap: float = 0.0


def least_harm(
    harm: np.ndarray, amounts: np.ndarray, rooms: np.ndarray, most_work: int = _MOST_WORK
) -> Solution | None:
    """Return the choices with the least sum of harm within every ceiling; None if nothing fits.

    Args:
        harm: Harm of every choice `[L, K]`, infinite where a layer has fewer choices.
        amounts: What every choice takes of every ceiling `[M, L, K]`: whole numbers from 0, so that sums are exact.
        rooms: The ceilings `[M]`.
        most_work: Number of partial allocations after which HiGHS takes over.
    """
    rows = np.arange(len(harm))
    least = np.where(np.isfinite(harm), amounts, np.inf).min(axis=2)
    if (least.sum(axis=1) > rooms).any():
        return None
    unlimited = harm.argmin(axis=1)
    if (amounts[:, rows, unlimited].sum(axis=1) <= rooms).all():
        return Solution(unlimited)
    # The least harm of every layer is a constant: without it, differences keep their digits.
    excess = np.where(_undominated(harm, amounts), harm - harm.min(axis=1, keepdims=True), np.inf)
    scale = np.maximum(rooms, 1.0)
    found = dual(excess, amounts / scale[:, None, None], rooms / scale)
    prices = found.prices[:_PRICES] / scale
    best = _rounded(excess, amounts, rooms, prices[0], found.columns)
    bounds, reduced, margins = _bounds(excess, amounts, rooms, prices)
    if best.harm <= (bounds + margins).max():
        return Solution(best.chosen)
    kept = (reduced <= (best.harm - bounds + margins)[:, None, None]).all(axis=0)
    remaining = np.where(kept, excess, np.inf)
    proven = enumerate_choices(remaining, amounts, rooms, prices, best, margins.max(), most_work)
    if not proven:
        chosen, proven = solve_integer_program(remaining, amounts, rooms)
        if chosen is not None and excess[rows, chosen].sum() < best.harm:
            best = Best(chosen, float(excess[rows, chosen].sum()))
    if best.chosen is None:
        if proven:
            return None
        raise AllocationError("No allocation was found in time, nor was it proven that none fits: change the budget.")
    return Solution(best.chosen, 0.0 if proven else (best.harm - bounds.max()) / harm[rows, best.chosen].sum())


def least_with(harm: np.ndarray, amounts: np.ndarray, rooms: np.ndarray) -> np.ndarray:
    """Return for every choice a lower bound of the harm of any allocation that contains it `[L, K]`.

    Args:
        harm: Harm of every choice `[L, K]`, infinite where a layer has fewer choices.
        amounts: What every choice takes of every ceiling `[M, L, K]`.
        rooms: The ceilings `[M]`, which something fits.
    """
    least = harm.min(axis=1, keepdims=True)
    scale = np.maximum(rooms, 1.0)
    prices = dual(harm - least, amounts / scale[:, None, None], rooms / scale).prices[:_PRICES] / scale
    bounds, reduced, margins = _bounds(harm - least, amounts, rooms, prices)
    return (reduced + (bounds - margins)[:, None, None]).max(axis=0) + least.sum()


def _bounds(
    harm: np.ndarray, amounts: np.ndarray, rooms: np.ndarray, prices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every price vector's bound `[P]`, what each choice adds to it `[P, L, K]`, and the rounding `[P]`."""
    priced = harm + np.tensordot(prices, amounts, 1)
    cheapest = priced.min(axis=2)
    paid = prices @ rooms
    total = cheapest.sum(axis=1)
    return total - paid, priced - cheapest[:, :, None], _ROUNDING * (total + paid)


def _undominated(harm: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Return which choices `[L, K]` no other of their layer beats in harm and all amounts, or the first of equals."""
    measures = np.concatenate([harm[None], amounts])
    no_worse = (measures[:, :, :, None] <= measures[:, :, None, :]).all(axis=0)
    first = np.triu(np.ones(harm.shape[1:] * 2, dtype=bool), 1)
    beaten = (no_worse & (~no_worse.swapaxes(1, 2) | first)).any(axis=1)
    return ~beaten & np.isfinite(harm)


def _rounded(harm: np.ndarray, amounts: np.ndarray, rooms: np.ndarray, price: np.ndarray, columns: np.ndarray) -> Best:
    """Return the best allocation within the ceilings among those that prices lead to, improved layer by layer."""
    rows = np.arange(len(harm))
    cheaper = (harm + np.tensordot(np.outer(_SAFER, price), amounts, 1)).argmin(axis=2)
    candidates = np.concatenate([cheaper, columns])
    fits = (amounts[:, rows, candidates].sum(axis=2) <= rooms[:, None]).all(axis=0)
    if not fits.any():
        return Best()
    candidates = candidates[fits]
    chosen = candidates[harm[rows, candidates].sum(axis=1).argmin()].copy()
    while True:
        room = rooms - amounts[:, rows, chosen].sum(axis=1)
        more = amounts - amounts[:, rows, chosen][:, :, None]
        gain = np.where((more <= room[:, None, None]).all(axis=0), harm[rows, chosen][:, None] - harm, -np.inf)
        layer, choice = np.unravel_index(gain.argmax(), gain.shape)
        if gain[layer, choice] <= 0:
            return Best(chosen, float(harm[rows, chosen].sum()))
        chosen[layer] = choice
