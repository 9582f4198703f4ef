"""Allocation in a study: every strategy under any budget, the frontier, and allocations that a person keeps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mixqvit.study.claims import seconds_spent
from mixqvit.study.criteria import CriteriaStages
from mixqvit.study.evaluation import EvaluationStages
from mixqvit.study.records import FrontierPoint
from mixqvit.study.relevance import RelevanceStages
from mixqvit.study.store import KEPT, fingerprint

__all__ = ["AllocationStages"]

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


class AllocationStages(RelevanceStages, EvaluationStages, CriteriaStages):
    """Bits chosen under a budget."""

    @property
    def strategies(self) -> dict[str, str]:
        """Descriptions of the allocation strategies by name, the controls last."""
        return {name: strategy.description for name, strategy in STRATEGIES.items()}

    def score_steps(self, strategy: str = "mix-qvit", tied: bool = True, gamma: float = 1.0) -> Iterator[Progress]:
        """Compute what a strategy has to know about the layers; everything that is missing, piece by piece.

        Args:
            strategy: One of `strategies`.
            tied: Whether both operands of a layer share their bits.
            gamma: Exponent of importance; with 0 importance is not needed.

        Raises:
            AllocationError: The strategy is unknown, or cannot choose bits independently.
            UnsupportedOperationError: It needs relevance, and the model has an operation without a rule.
        """
        operands = ("both",) if tied else ("weights", "activations")
        stages: dict[str, list[Callable[[], Iterator[Progress]]]] = {
            "relevance": [self.relevance_steps],
            "sensitivity": [lambda swept=swept: self.sensitivity_steps(swept) for swept in operands],
            "hessian": [self.hessian_steps],
            "loss change": [lambda: self.loss_change_steps(tied)],
            "pairs": [lambda: self.sensitivity_steps("both", FULL_PRECISION), self.pair_steps],
            "step sizes": [self.indicator_steps],
        }
        _check_tied(strategy, tied)
        for stage in find_strategy(strategy).needs:
            for steps in stages[stage] if stage != "relevance" or gamma != 0 else ():
                yield from steps()
        yield Progress(1, 1, f"scores for {strategy}", strategy)

    def score_seconds(self, strategy: str, tied: bool = True) -> float:
        """Return the computing time in seconds of what `score_steps` computed, calibration aside, over all sessions."""
        operands = ("both",) if tied else ("weights", "activations")
        keys = {
            "sensitivity": [self._sensitivity_key(swept, self.settings.baseline) for swept in operands],
            "hessian": self._hessian_keys,
            "loss change": [self._loss_change_key(tied)],
            "pairs": [self._sensitivity_key("both", FULL_PRECISION), self._pair_key],
            "step sizes": [self._indicator_key],
        }
        needs = find_strategy(strategy).needs
        seconds = sum(seconds_spent(self.store, key) for need in needs for key in keys.get(need, ()))
        if "relevance" in needs:
            importance = self.relevance()
            seconds += importance.seconds * len(next(iter(importance.shares.values())))
        return seconds

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
            return uniform_allocation(self.layers, budget, self.storage, restrictions)
        harms = self._choice_harms(strategy, gamma, tied, seed, importance, sensitivity)
        if strategy == "clado":
            terms = self._finished("pairs", self.pair_steps)
            return best_pairwise_allocation(self.layers, harms, terms, budget, self.storage, restrictions)
        return best_allocation(self.layers, harms, budget, self.storage, restrictions)

    def uniform(self, bits: int, gamma: float = 1.0, tied: bool = True) -> Allocation:
        """Return the uniform allocation at `bits` with its cost and predicted harm; arguments as in `allocation`."""
        return self.allocation(resolve_bits(self.layers, bits), gamma, tied)

    def allocation(self, bits: Mapping[str, int | Bits], gamma: float = 1.0, tied: bool | None = None) -> Allocation:
        """Return any bits per layer as an allocation with its cost and predicted harm Σ Ω^γ · Λ.

        Args:
            bits: Bits by layer name.
            gamma: Exponent of importance.
            tied: Which Λ: True for that of both operands quantized together, which knows equal bits only; False for
                that of weights and of input alone, added, which knows all bits. None takes the former where it can.
                Only harms by the same Λ can be compared.
        """
        resolved = resolve_bits(self.layers, bits)
        return Allocation(resolved, self._harm(resolved, gamma, tied), cost(self.layers, resolved, self.storage))

    def predicted_harm(self, bits: Mapping[str, int | Bits], tied: bool | None = None) -> float:
        """Return Σ Λ of any bits per layer: what every strategy can be held against; arguments as in `allocation`."""
        return self._harm(resolve_bits(self.layers, bits), 0.0, tied)

    def uniform_beside(self, budget: Budget, gamma: float = 1.0, tied: bool = True) -> Allocation | None:
        """Return the largest uniform allocation within every ceiling of a budget; None if none fits."""
        width = largest_uniform(self.layers, budget, self.storage, BIT_WIDTHS)
        return None if width is None else self.uniform(width, gamma, tied)

    def bitops_ceiling(self, budget: Budget) -> float | None:
        """Return the BitOps that a budget allows; None for any number."""
        return bitops_ceiling(self.layers, budget, self.storage)

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
        if name not in self._frontiers:
            points: list[FrontierPoint] = []
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
            found = frontier_steps(self.layers, harms, self.storage, budgets, restrictions)
            for bits, allocation in zip(FRONTIER_BITS, found, strict=True):
                points.append(FrontierPoint(bits, allocation))
                yield Progress(len(points), total, f"frontier at {bits} bits")
            with self._lock:
                self._frontiers[name] = tuple(points)
                while len(self._frontiers) > FRONTIERS:
                    self._frontiers.pop(next(iter(self._frontiers)))
        yield Progress(total, total, "frontier", self._frontiers.get(name))

    def saved_frontier(self, **request: Any) -> tuple[FrontierPoint, ...] | None:
        """Return a frontier that was computed already, None if it was not; arguments as in `frontier_steps`."""
        return self._frontiers.get(_frontier_name(request))

    @property
    def _frontiers(self) -> dict[str, tuple[FrontierPoint, ...]]:
        return self._remembered("frontiers", dict)

    # Allocations that a person keeps: by name, for this very model, whatever version of the program made them

    def save_allocation(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep an allocation's recipe under a name; an earlier one of the same name is replaced.

        Raises:
            AllocationError: The name is empty.
        """
        if not name.strip():
            raise AllocationError("Give the allocation a name to save it under.")
        self.store.put(self._kept_key, name.strip(), dict(document))

    def saved_allocations(self) -> dict[str, dict[str, Any]]:
        """Return the recipes of the allocations that were kept, by name, oldest first."""
        return self.store.rows(self._kept_key)

    def delete_allocation(self, name: str) -> None:
        """Forget a kept allocation."""
        self.store.delete(self._kept_key, name)

    @property
    def _kept_key(self) -> str:
        return self._remembered("kept key", lambda: KEPT + fingerprint("allocations", self.graph.fingerprint))

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
        _check_tied(strategy, tied)
        needs = find_strategy(strategy).needs
        if strategy == "random":
            if seed < 0:
                raise AllocationError(f"The seed must be 0 or a positive number, not {seed}.")
            return random_harms(self.layers, seed, tied)
        if importance is None and "relevance" in needs and gamma != 0:
            importance = self.relevance().mean
        if strategy == "lrp-qvit":
            return weighted(importance_only(self.layers, self._alike, tied), importance, gamma)
        if strategy == "clado":
            # The pairs are KL over full precision whatever the settings say, so their layers must be too.
            alone = tied_choices(self.layers, self.sensitivity("both", "kl", FULL_PRECISION)).items()
            return {
                name: {bits: harm for bits, harm in row.items() if bits[0] in self.pair_widths} for name, row in alone
            }
        if strategy == "mpqco":
            scores = self._finished(("loss change", tied), lambda: self.loss_change_steps(tied))
            return self._scored_choices(scores, tied)
        if strategy in ("hawq-v2", "limpq"):
            stage = ("hessian", self.hessian_steps) if strategy == "hawq-v2" else ("indicators", self.indicator_steps)
            scores = self._finished(*stage)
            return self._scored_choices(scores, tied) if tied else monotone_choices(scores)
        if sensitivity is None:
            harms = self._sensitivity_choices(tied)
        elif tied:
            harms = tied_choices(self.layers, _not_below_zero(sensitivity))
        else:
            raise AllocationError(
                "A sensitivity by bit-width is that of both operands together: use tied bits with it."
            )
        if strategy == "inverse":
            return inverse_harms(self.layers, harms, tied)
        return weighted(harms, importance, gamma) if strategy == "mix-qvit" else harms

    def _sensitivity_choices(self, tied: bool) -> ChoiceHarms:
        """Return Λ by layer and bits; what was measured below zero, by noise, counts as no harm."""
        swept = [
            _not_below_zero(self.sensitivity(operands))
            for operands in (("both",) if tied else ("weights", "activations"))
        ]
        # Only this is computed under the lock: a sweep may have to wait for a session that needs it.
        build = tied_choices if tied else independent_choices
        return self._remembered(("choices", tied), lambda: build(self.layers, *swept))

    def _scored_choices(self, scores: ChoiceHarms, tied: bool) -> ChoiceHarms:
        """Return scores by (weight bits, activation bits) as the harms of the choices that an allocation has."""
        if tied:
            chosen = {
                layer.name: {bits[0]: scores[layer.name][bits] for bits in tied_bits(layer)} for layer in self.layers
            }
            return tied_choices(self.layers, chosen)
        with_weights = [layer.name for layer in self.layers if not layer.is_matmul]
        weights = {
            name: {w: harm for (w, a), harm in scores[name].items() if a == FULL_PRECISION} for name in with_weights
        }
        inputs = {
            layer.name: {
                a: harm for (w, a), harm in scores[layer.name].items() if layer.is_matmul or w == FULL_PRECISION
            }
            for layer in self.layers
        }
        return independent_choices(self.layers, weights, inputs)

    def _harm(self, bits: BitsPerLayer, gamma: float, tied: bool | None) -> float:
        importance = None if gamma == 0 else self.relevance().mean
        if tied is not False:
            tied = all(bits[layer.name] in _tied_or_full(layer) for layer in self.layers)
        choices = self._sensitivity_choices(tied)
        return sum(
            self._layer_harm(layer, bits[layer.name], choices)
            * (1.0 if importance is None else importance[layer.name] ** gamma)
            for layer in self.layers
        )

    def _layer_harm(self, layer: Layer, bits: Bits, choices: ChoiceHarms) -> float:
        if bits == (FULL_PRECISION, FULL_PRECISION):
            return 0.0
        if bits in choices[layer.name]:
            return choices[layer.name][bits]
        if FULL_PRECISION in bits and not layer.is_matmul:
            operands, width = ("weights", bits[0]) if bits[1] == FULL_PRECISION else ("activations", bits[1])
            return monotone_envelope(_not_below_zero(self.sensitivity(operands))[layer.name])[width]
        raise AllocationError(f"The harm of {bits} bits at layer {layer.name} was not measured.")

    @property
    def _alike(self) -> dict[str, float]:
        return dict.fromkeys((layer.name for layer in self.layers), 1.0)


def _check_tied(strategy: str, tied: bool) -> None:
    if strategy == "clado" and not tied:
        raise AllocationError(
            "The pairwise terms of clado are measured with both operands of a layer at the same bits: let them share "
            "their bits, or choose another strategy."
        )


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
