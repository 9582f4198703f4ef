"""Allocation with pairwise terms between layers: CLADO (Deng et al. 2023, arXiv 2307.05657).

Minimise Σ_l h_l(b_l) + Σ_{l<m} P_lm(b_l, b_m) within the ceilings. As in the paper, measured terms are projected to a
positive semidefinite matrix, without which noise makes the harm negative. The projection here is relative (ours): of
the terms divided by the root of both layers' harms, because the harms of 2 and of 8 bits differ by orders of magnitude
and the errors of the former would drown the latter. First a term is limited to what its layers' harms allow, ±2√(h·h').

The solution comes with a bound: convex reformulation (`convexity`), Frank-Wolfe over the mixtures of allocations with
the exact solver as oracle (`frank_wolfe`), and choices dropped that the bound excludes, repeatedly.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixqvit.allocation.budget import Allocation, Budget
from mixqvit.allocation.convexity import convex_split
from mixqvit.allocation.costs import Storage
from mixqvit.allocation.frank_wolfe import relax
from mixqvit.allocation.infeasible import why_infeasible
from mixqvit.allocation.local_search import improved, marginal_harm, quadratic_harm
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.allocation.solver import least_harm, least_with
from mixqvit.allocation.table import ChoiceTable, choice_table
from mixqvit.criteria.choices import ChoiceHarms, PairHarms, total_harm
from mixqvit.errors import AllocationError, InfeasibleBudgetError
from mixqvit.network.bits import Bits
from mixqvit.network.layers import Layer

__all__ = ["PairwiseAllocation", "best_pairwise_allocation", "pairwise_harm"]

_GOOD_ENOUGH = 0.01
_SECONDS = 5.0
_ROUNDS = 16
_RESTARTS = 100
_TIME_TO_RESTART = 0.25  # of the time that is left
_FEW_ALLOCATIONS = 20_000
_DISTURBANCE = 0.7
_ACCURACY = 2e-3  # of the relaxation, well below the gap that is good enough
_MOST_VARIABLES = 1000
_ROUNDING = 1e-9
_WORTH_IMPROVING = 1.05  # times the best harm: allocations from which the local search starts
_UNRESTRICTED = Restrictions()


@dataclass(frozen=True)
class PairwiseAllocation(Allocation):
    """An allocation under pairwise terms; `harm` is what was minimised, after the projection, and `gap` relates to it.

    Attributes:
        projected: Whether the terms had to be changed to make them positive semidefinite.
    """

    projected: bool = False


def pairwise_harm(layers: Sequence[Layer], bits: Mapping[str, Bits], harms: ChoiceHarms, pairs: PairHarms) -> float:
    """Return Σ h + Σ P of any bits per layer with the terms as they were measured, before any projection."""
    between = (row.get((bits[first], bits[second]), 0.0) for (first, second), row in pairs.items())
    return total_harm(layers, bits, harms) + sum(between)


def best_pairwise_allocation(
    layers: Sequence[Layer],
    harms: ChoiceHarms,
    pairs: PairHarms,
    budget: Budget,
    storage: Storage,
    restrictions: Restrictions = _UNRESTRICTED,
    seconds: float = _SECONDS,
) -> PairwiseAllocation:
    """Return an allocation of little harm, and how far from the least it can be at most.

    Args:
        layers: The table of layers.
        harms: Harm of every choice of every layer alone.
        pairs: Pairwise terms.
        budget: The ceilings.
        storage: What the size depends on beside the layers.
        restrictions: What is demanded of single layers and kinds.
        seconds: Time after which no new round of bounds begins; it also ends at a gap of 1 %, or after 16 rounds.

    Returns:
        The allocation; its `gap` is (harm − bound) / harm.

    Raises:
        InfeasibleBudgetError, AllocationError, BitWidthError: As `best_allocation`; AllocationError also where there
            are more than a thousand choices in all, or a pair names an unknown layer.
    """
    budget.check()
    table = choice_table(layers, harms, storage, restrictions)
    first = table.best(budget)
    if first is None:
        raise InfeasibleBudgetError(why_infeasible(table, budget, restrictions))
    if table.possible.sum() > _MOST_VARIABLES:
        raise AllocationError(
            f"{table.possible.sum()} choices are too many for pairwise terms (at most {_MOST_VARIABLES}): let both "
            "operands share their bits, or allow fewer bit-widths."
        )
    if not any(any(row.values()) for row in pairs.values()):
        return PairwiseAllocation(first.bits, first.harm, first.cost, budget, first.gap)
    matrix, projected = _matrix(table, pairs)
    start = np.array([row.index(first.bits[layer.name]) for layer, row in zip(layers, table.options, strict=True)])
    search = _Search(matrix, table, budget, start)
    search.run(time.monotonic() + seconds)
    solved = table.allocation(search.chosen, search.harm, budget, search.gap)
    return PairwiseAllocation(solved.bits, solved.harm, solved.cost, budget, solved.gap, projected)


def _matrix(table: ChoiceTable, pairs: PairHarms) -> tuple[np.ndarray, bool]:
    """Return the positive semidefinite matrix of the harm xᵀMx `[V, V]`, and whether terms were changed for that."""
    layers, choices = table.harm.shape
    place = {layer.name: index for index, layer in enumerate(table.layers)}
    column = [{bits: k for k, bits in enumerate(options)} for options in table.options]
    harm = np.where(table.possible, table.harm, 0.0).ravel()
    matrix = np.zeros((layers, choices, layers, choices))
    for (one, other), row in pairs.items():
        if one not in place or other not in place or one == other:
            raise AllocationError(f"The pairwise terms of {one!r} and {other!r} are not those of two layers.")
        i, j = place[one], place[other]
        for (bits, other_bits), term in row.items():
            if bits in column[i] and other_bits in column[j]:
                matrix[i, column[i][bits], j, column[j][other_bits]] += term / 2.0
                matrix[j, column[j][other_bits], i, column[i][bits]] += term / 2.0
    matrix = matrix.reshape(layers * choices, -1)
    used = table.possible.ravel()
    matrix[~used] = matrix[:, ~used] = 0.0
    root = np.sqrt(np.maximum(harm, 0.0))
    relative = np.divide(matrix, np.outer(root, root), out=np.zeros_like(matrix), where=np.outer(root, root) > 0)
    relative = np.clip(relative, -1.0, 1.0) + np.diag((harm > 0).astype(float))
    values, vectors = np.linalg.eigh(relative)
    convex = (vectors * np.maximum(values, 0.0)) @ vectors.T * np.outer(root, root)
    convex[np.diag_indices(len(harm))] += np.minimum(harm, 0.0)
    return convex, not np.allclose(convex, matrix + np.diag(harm), rtol=1e-9, atol=1e-12 * np.abs(harm).max())


class _Search:
    """The best allocation found so far, and the choices that a better one may still contain."""

    def __init__(self, matrix: np.ndarray, table: ChoiceTable, budget: Budget, start: np.ndarray) -> None:
        self.matrix, self.possible = matrix, table.possible
        self.amounts, self.rooms = table.limits(budget)
        self.left = table.possible
        self.bound = -np.inf
        self.chosen, self.harm = improved(matrix, self.possible, self.amounts, self.rooms, start)

    @property
    def gap(self) -> float:
        if self.harm <= self.bound:
            return 0.0
        return (self.harm - self.bound) / abs(self.harm) if self.harm else np.inf

    def run(self, deadline: float) -> None:
        """Improve the allocation and its bound until they are near, or time is over."""
        if self._all_tried():
            return
        spreads = [self._likely()]
        for number in range(_ROUNDS):
            # What to move answers to where the relaxation went so far, as in fictitious play, recent rounds first.
            spread = np.where(self.left, np.average(spreads, axis=0, weights=range(1, len(spreads) + 1)) + 1e-12, 0.0)
            quadratic, linear = convex_split(self.matrix, spread, abs(self.harm))
            accuracy = max(_ACCURACY, 0.1 * min(self.gap, 1.0))
            relaxed = relax(quadratic, linear, self._oracle, self._indicator(self.chosen), accuracy, deadline)
            self.bound = max(self.bound, relaxed.bound)
            if self.gap <= _GOOD_ENOUGH or time.monotonic() > deadline:
                return
            tangent = np.where(self.left, relaxed.gradient.reshape(self.left.shape), np.inf)
            lowest = relaxed.constant + least_with(tangent, self.amounts, self.rooms)
            self.left = self.left & (lowest <= self.harm + _ROUNDING * abs(self.harm))
            self.left[np.arange(len(self.left)), self.chosen] = True
            if self._all_tried():
                return
            if number == 0:
                self._restart(time.monotonic() + _TIME_TO_RESTART * (deadline - time.monotonic()))
            spreads.append(relaxed.point.reshape(self.left.shape))

    def _all_tried(self) -> bool:
        """Try all allocations of the choices that are left, if these are few; return whether that was done."""
        if self.left.sum(axis=1, dtype=float).prod() > _FEW_ALLOCATIONS:
            return False
        layers, choices = self.left.shape
        least = np.where(self.left, self.amounts, np.inf).min(axis=2)
        remaining = np.cumsum(least[:, ::-1], axis=1)[:, ::-1] - least
        variables, taken, harm = np.zeros((1, 0), dtype=int), np.zeros((1, len(self.rooms))), np.zeros(1)
        for layer in range(layers):
            new = np.flatnonzero(self.left[layer]) + layer * choices
            added = self.matrix[new, new] + 2.0 * self.matrix[variables[:, :, None], new].sum(axis=1)
            more = taken[:, None] + self.amounts[:, layer, new - layer * choices].T
            state, choice = np.nonzero((more + remaining[:, layer] <= self.rooms).all(axis=2))
            variables = np.concatenate([variables[state], new[choice][:, None]], axis=1)
            taken, harm = more[state, choice], harm[state] + added[state, choice]
        best = harm.argmin()
        if harm[best] < self.harm:
            self.chosen, self.harm = variables[best] - np.arange(layers) * choices, float(harm[best])
        self.bound = self.harm
        return True

    def _restart(self, deadline: float) -> None:
        """Improve allocations that are best for what choices add, scaled at random: other places to start from."""
        random = np.random.default_rng(0)
        for _ in range(_RESTARTS):
            if time.monotonic() > deadline:
                return
            marginal = np.where(self.possible, marginal_harm(self.matrix, self.chosen), np.inf)
            beyond = marginal - marginal.min(axis=1, keepdims=True)
            scaled = beyond * np.exp(_DISTURBANCE * random.normal(size=beyond.shape))
            start = least_harm(scaled, self.amounts, self.rooms).chosen
            chosen, harm = improved(self.matrix, self.possible, self.amounts, self.rooms, start)
            if harm < self.harm:
                self.chosen, self.harm = chosen, harm

    def _likely(self) -> np.ndarray:
        """Return how likely every choice is in a mixture `[L, K]`: less, the more it costs beyond the best one."""
        marginal = np.where(self.possible, marginal_harm(self.matrix, self.chosen), np.inf)
        beyond = least_with(marginal, self.amounts, self.rooms)
        usual = abs(self.harm) / len(beyond) + 1e-300
        likely = usual / (usual + beyond - beyond.min(axis=1, keepdims=True))
        return likely / likely.sum(axis=1, keepdims=True)

    def _oracle(self, gradient: np.ndarray) -> tuple[np.ndarray, float]:
        slopes = np.where(self.left, gradient.reshape(self.left.shape), np.inf)
        least = slopes.min(axis=1, keepdims=True)
        solution = least_harm(slopes - least, self.amounts, self.rooms)
        self._consider(solution.chosen)
        beyond = (slopes - least)[np.arange(len(slopes)), solution.chosen].sum()
        return self._indicator(solution.chosen), float(beyond * (1.0 - solution.gap) + least.sum())

    def _consider(self, chosen: np.ndarray) -> None:
        harm = quadratic_harm(self.matrix, chosen)
        if harm < _WORTH_IMPROVING * self.harm:
            chosen, harm = improved(self.matrix, self.possible, self.amounts, self.rooms, chosen)
        if harm < self.harm:
            self.chosen, self.harm = chosen, harm

    def _indicator(self, chosen: np.ndarray) -> np.ndarray:
        point = np.zeros(self.left.shape)
        point[np.arange(len(point)), chosen] = 1.0
        return point.ravel()
