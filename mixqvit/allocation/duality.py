"""The Lagrangian dual of the multiple-choice knapsack: a lower bound and a price for every ceiling.

Every price vector λ ≥ 0 gives a lower bound, L(λ) = Σ_l min_k (c_lk + λ·a_lk) − λ·room. The best of them is the value
of the linear relaxation. It is found by Dantzig-Wolfe decomposition: the simplex method on convex combinations of whole
allocations, whose basis has one row per ceiling and one for convexity, so that an iteration takes microseconds.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["Dual", "dual"]

_ITERATIONS = 150
_CONVERGED = 1e-9  # of the distance between the two bounds, relative to their size


@dataclass(frozen=True)
class Dual:
    """What the dual says of a problem.

    Attributes:
        prices: Price vectors tried, the best first `[P, M]`.
        bounds: Lower bound of the least harm by each of them `[P]`.
        columns: Choices that are best at the prices that were tried `[C, L]`, not necessarily within the ceilings.
    """

    prices: np.ndarray
    bounds: np.ndarray
    columns: np.ndarray


def dual(harm: np.ndarray, amounts: np.ndarray, rooms: np.ndarray) -> Dual:
    """Return the best prices of the ceilings.

    Args:
        harm: Harm of every choice `[L, K]`, infinite where a layer has fewer choices.
        amounts: What every choice takes of every ceiling `[M, L, K]`, scaled to about 1.
        rooms: The ceilings `[M]`, in the same scale.
    """
    limits, layers, _ = amounts.shape
    rows = np.arange(layers)
    # Stands for "nothing yet": it takes nothing and is dearer than any allocation.
    dearest = 10.0 * (np.where(np.isfinite(harm), harm, 0.0).max(axis=1).sum() + 1e-300)
    basis = np.eye(limits + 1)
    basis_harm = np.zeros(limits + 1)
    basis_harm[0] = dearest
    target = np.concatenate([[1.0], rooms])
    prices, bounds, columns = [], [], []
    best = -np.inf
    for _ in range(_ITERATIONS):
        inverse = np.linalg.inv(basis)
        values = inverse @ target
        multipliers = basis_harm @ inverse
        entering = np.zeros(limits + 1)
        slack = int(np.argmax(multipliers[1:])) + 1
        if multipliers[slack] > 1e-12 * basis_harm.max():
            entering[slack], entering_harm = 1.0, 0.0
        else:
            price = np.maximum(-multipliers[1:], 0.0)
            priced = harm + np.tensordot(price, amounts, 1)
            column = priced.argmin(axis=1)
            bound = priced[rows, column].sum() - price @ rooms
            prices.append(price)
            bounds.append(bound)
            columns.append(column)
            best = max(best, bound)
            if basis_harm @ values - best <= _CONVERGED * abs(best):
                break
            entering = np.concatenate([[1.0], amounts[:, rows, column].sum(axis=1)])
            entering_harm = harm[rows, column].sum()
        direction = inverse @ entering
        ratios = np.full(limits + 1, np.inf)
        np.divide(np.maximum(values, 0.0), direction, out=ratios, where=direction > 1e-12)
        leaving = int(np.argmin(ratios))
        if not np.isfinite(ratios[leaving]):
            break
        basis[:, leaving] = entering
        basis_harm[leaving] = entering_harm
    order = np.argsort(-np.array(bounds), kind="stable")
    return Dual(np.array(prices)[order], np.array(bounds)[order], np.unique(np.array(columns), axis=0))
