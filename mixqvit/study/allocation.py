"""Allocation in a study: every strategy under any budget, and the frontier."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mixqvit.allocation.budget import Allocation, Budget, bitops_ceiling, largest_uniform
from mixqvit.allocation.choices import (
    ChoiceHarms,
    Harms,
    independent_choices,
    monotone_choices,
    monotone_envelope,
    tied_choices,
    weighted,
)
from mixqvit.allocation.costs import cost
from mixqvit.allocation.exact import best_allocation, frontier_steps
from mixqvit.allocation.harms import importance_only, inverse_harms, random_harms
from mixqvit.allocation.near_uniform import uniform_allocation
from mixqvit.allocation.quadratic import best_pairwise_allocation
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.criteria.shared import tied_bits
from mixqvit.criteria.strategies import STRATEGIES, find_strategy
from mixqvit.errors import AllocationError
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, Bits, BitsPerLayer, resolve_bits
from mixqvit.network.layers import Layer
from mixqvit.progress import Progress
from mixqvit.stages.store import fingerprint
from mixqvit.study.part import Part
from mixqvit.study.records import FrontierPoint

__all__ = ["Allocations"]

FRONTIER_BITS = tuple(round(float(bits), 1) for bits in np.arange(BIT_WIDTHS[0], BIT_WIDTHS[-1] + 0.05, 0.1))
"""Budgets of the frontier, in average bits: every position of the slider."""

FRONTIERS = 16  # of which so many are remembered

_FRONTIER_REQUEST: dict[str, Any] = {
    "strategy": "mix-qvit",
    "gamma": 1.0,
    "tied": True,
    "seed": 0,
    "size_bytes": None,
    "bitops": None,
    "cap_bitops": True,
    "pinned": None,
    "allowed": None,
    "at_least": None,
    "at_most": None,
}


class Allocations(Part):
    """Bits chosen under a budget."""

    def strategies(self) -> dict[str, str]:
        """Return descriptions of the allocation strategies by name, the controls last."""
        return {name: strategy.description for name, strategy in STRATEGIES.items()}

    def allocate(
        self,
        average_bits: float | None = None,
        size_bytes: int | None = None,
        bitops: float | None = None,
        cap_bitops: bool = True,
        gamma: float = 1.0,
        pinned: Mapping[str, int | Bits] | None = None,
        *,
        strategy: str = "mix-qvit",
        allowed: Mapping[str, Sequence[int]] | None = None,
        at_least: Mapping[str, int] | None = None,
        at_most: Mapping[str, int] | None = None,
        tied: bool = True,
        seed: int = 0,
        importance: Mapping[str, float] | None = None,
        sensitivity: Harms | None = None,
    ) -> Allocation:
        """Return the best allocation by one strategy within the given ceilings.

        Args:
            average_bits: Ceiling on weight bits per quantized weight.
            size_bytes: Ceiling on the bytes of the packed file.
            bitops: Ceiling on BitOps for one image.
            cap_bitops: Whether `average_bits` also limits BitOps to those of uniform bits.
            gamma: Exponent of importance; with 0 importance is not needed.
            pinned: Bits fixed by hand, by layer name.
            strategy: One of `strategies`; what it needs is computed first where it is missing.
            allowed: Bit-widths by layer kind, others are not used there.
            at_least: Bits that a layer gets at least, by name.
            at_most: Bits that a layer gets at most, by name.
            tied: Whether both operands of a layer share their bits; attention products always do.
            seed: Of the `random` strategy.
            importance: Another Ω by layer name than the study's own.
            sensitivity: Another Λ by layer name and bit-width than the study's own, for tied bits.

        Returns:
            The allocation; its harm is what the strategy minimises.

        Raises:
            InfeasibleBudgetError: Nothing fits; the message says what would, and which restriction is to blame.
            AllocationError: The strategy is unknown, no ceiling is given, or a number is not usable.
            BitWidthError: A bit-width or layer name is not possible.
        """
        budget = Budget(average_bits, size_bytes, bitops, cap_bitops)
        restrictions = _restrictions(pinned, allowed, at_least, at_most)
        if strategy == "uniform":
            return uniform_allocation(self.study.layers, budget, self.study.storage, restrictions)
        harms = self._choice_harms(strategy, gamma, tied, seed, importance, sensitivity)
        if strategy == "clado":
            terms = self.study.scores.pairs()
            return best_pairwise_allocation(self.study.layers, harms, terms, budget, self.study.storage, restrictions)
        return best_allocation(self.study.layers, harms, budget, self.study.storage, restrictions)

    def uniform(self, bits: int, gamma: float = 1.0, tied: bool = True) -> Allocation:
        """Return the uniform allocation at `bits` with its cost and predicted harm; arguments as in `allocation`."""
        return self.allocation(resolve_bits(self.study.layers, bits), gamma, tied)

    def allocation(self, bits: Mapping[str, int | Bits], gamma: float = 1.0, tied: bool | None = None) -> Allocation:
        """Return any bits per layer as an allocation with its cost and predicted harm Σ Ω^γ · Λ.

        Args:
            bits: Bits by layer name.
            gamma: Exponent of importance.
            tied: Which Λ: True for that of both operands quantized together, which knows equal bits only; False for
                that of weights and of input alone, added, which knows all bits. None takes the former where it can.
                Only harms by the same Λ can be compared.
        """
        resolved = resolve_bits(self.study.layers, bits)
        return Allocation(
            resolved, self._harm(resolved, gamma, tied), cost(self.study.layers, resolved, self.study.storage)
        )

    def predicted_harm(self, bits: Mapping[str, int | Bits], tied: bool | None = None) -> float:
        """Return Σ Λ of any bits per layer: what every strategy can be held against; arguments as in `allocation`."""
        return self._harm(resolve_bits(self.study.layers, bits), 0.0, tied)

    def uniform_beside(self, budget: Budget, gamma: float = 1.0, tied: bool = True) -> Allocation | None:
        """Return the largest uniform allocation within every ceiling of a budget; None if none fits."""
        width = largest_uniform(self.study.layers, budget, self.study.storage, BIT_WIDTHS)
        return None if width is None else self.uniform(width, gamma, tied)

    def bitops_ceiling(self, budget: Budget) -> float | None:
        """Return the BitOps that a budget allows; None for any number."""
        return bitops_ceiling(self.study.layers, budget)

    # The frontier

    def frontier_steps(self, **request: Any) -> Iterator[Progress]:
        """Solve every budget from 2 to 8 average bits; the last result is a tuple of `FrontierPoint`.

        Args:
            request: The keywords of `allocate`, without `average_bits`; strategies that are not solved exactly are
                refused.

        Raises:
            AllocationError: The strategy is `uniform` or `clado`, or as in `allocate`.
        """
        name = _frontier_name(request)
        total = len(FRONTIER_BITS)
        points = self._frontiers.get(name)
        if points is None:
            solved: list[FrontierPoint] = []
            wanted = _FRONTIER_REQUEST | request
            if unknown := set(wanted) - set(_FRONTIER_REQUEST):
                raise TypeError(f"frontier_steps() got an unexpected keyword argument {unknown.pop()!r}")
            if wanted["strategy"] in ("uniform", "clado"):
                raise AllocationError(
                    f"There is no frontier of strategy {wanted['strategy']}; choose one that is solved exactly."
                )
            budgets = [
                Budget(bits, wanted["size_bytes"], wanted["bitops"], wanted["cap_bitops"]) for bits in FRONTIER_BITS
            ]
            harms = self._choice_harms(*(wanted[name] for name in ("strategy", "gamma", "tied", "seed")))
            restrictions = _restrictions(*(wanted[name] for name in ("pinned", "allowed", "at_least", "at_most")))
            found = frontier_steps(self.study.layers, harms, self.study.storage, budgets, restrictions)
            for bits, allocation in zip(FRONTIER_BITS, found, strict=True):
                solved.append(FrontierPoint(bits, allocation))
                yield Progress(len(solved), total, f"frontier at {bits} bits", stage="frontier")
            points = tuple(solved)
            self._frontiers.put(name, points)
        yield Progress(total, total, "frontier", points, "frontier")

    def saved_frontier(self, **request: Any) -> tuple[FrontierPoint, ...] | None:
        """Return a frontier that was computed already, None if it was not; arguments as in `frontier_steps`."""
        return self._frontiers.get(_frontier_name(request))

    @property
    def _frontiers(self) -> "_Frontiers":
        return self.study.remembered("frontiers", _Frontiers)

    # Harms

    def _choice_harms(
        self,
        strategy: str,
        gamma: float,
        tied: bool,
        seed: int,
        importance: Mapping[str, float] | None = None,
        sensitivity: Harms | None = None,
    ) -> ChoiceHarms:
        """Return what a strategy adds up: harm by layer and (weight bits, activation bits)."""
        find_strategy(strategy).check_tied(tied)
        needs = find_strategy(strategy).needs
        if strategy == "random":
            if seed < 0:
                raise AllocationError(f"The seed must be 0 or a positive number, not {seed}.")
            return random_harms(self.study.layers, seed, tied)
        if importance is None and "relevance" in needs and gamma != 0:
            importance = self.study.relevance().mean
        if strategy == "lrp-qvit":
            return weighted(importance_only(self.study.layers, self._alike, tied), importance, gamma)
        if strategy == "clado":
            # The pairs are KL over full precision whatever the settings say, so their layers must be too.
            alone = tied_choices(self.study.layers, self.study.sensitivity("both", "kl", FULL_PRECISION)).items()
            widths = self.study.scores.pair_widths()
            return {name: {bits: harm for bits, harm in row.items() if bits[0] in widths} for name, row in alone}
        if strategy == "mpqco":
            return self._scored_choices(self.study.scores.loss_change(tied), tied)
        if strategy in ("hawq-v2", "limpq"):
            scores = self.study.scores.hessian() if strategy == "hawq-v2" else self.study.scores.indicators()
            return self._scored_choices(scores, tied) if tied else monotone_choices(scores)
        if sensitivity is None:
            harms = self._sensitivity_choices(tied)
        elif tied:
            harms = tied_choices(self.study.layers, _not_below_zero(sensitivity))
        else:
            raise AllocationError(
                "A sensitivity by bit-width is that of both operands together: use tied bits with it."
            )
        if strategy == "inverse":
            return inverse_harms(self.study.layers, harms, tied)
        return weighted(harms, importance, gamma) if strategy == "mix-qvit" else harms

    def _sensitivity_choices(self, tied: bool) -> ChoiceHarms:
        """Return Λ by layer and bits; what was measured below zero, by noise, counts as no harm."""
        swept = [
            _not_below_zero(self.study.sensitivity(operands))
            for operands in (("both",) if tied else ("weights", "activations"))
        ]
        # Only this is computed under the lock: a sweep may have to wait for a session that needs it.
        build = tied_choices if tied else independent_choices
        return self.study.remembered(("choices", tied), lambda: build(self.study.layers, *swept))

    def _scored_choices(self, scores: ChoiceHarms, tied: bool) -> ChoiceHarms:
        """Return scores by (weight bits, activation bits) as the harms of the choices that an allocation has."""
        if tied:
            chosen = {
                layer.name: {bits[0]: scores[layer.name][bits] for bits in tied_bits(layer)}
                for layer in self.study.layers
            }
            return tied_choices(self.study.layers, chosen)
        with_weights = [layer.name for layer in self.study.layers if not layer.is_matmul]
        weights = {
            name: {w: harm for (w, a), harm in scores[name].items() if a == FULL_PRECISION} for name in with_weights
        }
        inputs = {
            layer.name: {
                a: harm for (w, a), harm in scores[layer.name].items() if layer.is_matmul or w == FULL_PRECISION
            }
            for layer in self.study.layers
        }
        return independent_choices(self.study.layers, weights, inputs)

    def _harm(self, bits: BitsPerLayer, gamma: float, tied: bool | None) -> float:
        importance = None if gamma == 0 else self.study.relevance().mean
        if tied is not False:
            tied = all(bits[layer.name] in _tied_or_full(layer) for layer in self.study.layers)
        choices = self._sensitivity_choices(tied)
        return sum(
            self._layer_harm(layer, bits[layer.name], choices)
            * (1.0 if importance is None else importance[layer.name] ** gamma)
            for layer in self.study.layers
        )

    def _layer_harm(self, layer: Layer, bits: Bits, choices: ChoiceHarms) -> float:
        if bits == (FULL_PRECISION, FULL_PRECISION):
            return 0.0
        if bits in choices[layer.name]:
            return choices[layer.name][bits]
        if FULL_PRECISION in bits and not layer.is_matmul:
            operands, width = ("weights", bits[0]) if bits[1] == FULL_PRECISION else ("activations", bits[1])
            return monotone_envelope(_not_below_zero(self.study.sensitivity(operands))[layer.name])[width]
        raise AllocationError(f"The harm of {bits} bits at layer {layer.name} was not measured.")

    @property
    def _alike(self) -> dict[str, float]:
        return dict.fromkeys((layer.name for layer in self.study.layers), 1.0)


class _Frontiers:
    """The frontiers that were solved last, for all sessions of a study."""

    def __init__(self) -> None:
        self._points: dict[str, tuple[FrontierPoint, ...]] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> tuple[FrontierPoint, ...] | None:
        return self._points.get(name)

    def put(self, name: str, points: tuple[FrontierPoint, ...]) -> None:
        with self._lock:
            self._points[name] = points
            while len(self._points) > FRONTIERS:
                self._points.pop(next(iter(self._points)))


def _tied_or_full(layer: Layer) -> tuple[Bits, ...]:
    return (*tied_bits(layer), (FULL_PRECISION, FULL_PRECISION))


def _not_below_zero(harms: Harms) -> dict[str, dict[int, float]]:
    return {name: {bits: max(0.0, harm) for bits, harm in row.items()} for name, row in harms.items()}


def _restrictions(
    pinned: Mapping[str, int | Bits] | None,
    allowed: Mapping[str, Sequence[int]] | None,
    at_least: Mapping[str, int] | None,
    at_most: Mapping[str, int] | None,
) -> Restrictions:
    widths = {kind: tuple(widths) for kind, widths in (allowed or {}).items()}
    return Restrictions(pinned or {}, widths, at_least or {}, at_most or {})


def _frontier_name(request: Mapping[str, Any]) -> str:
    return fingerprint(_FRONTIER_REQUEST | {name: value for name, value in request.items() if value not in (None, {})})
