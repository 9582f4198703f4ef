"""Allocation in a study: every strategy under any budget, the frontier, and allocations that a person keeps."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mixqvit.allocation.budget import Allocation, Budget, ceilings, largest_uniform
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
from mixqvit.allocation.request import Request, as_request
from mixqvit.criteria.strategies import STRATEGIES
from mixqvit.errors import AllocationError
from mixqvit.network.bits import (
    BIT_WIDTHS,
    FULL_PRECISION,
    UNQUANTIZED,
    Bits,
    BitsPerLayer,
    resolve_bits,
    tied_bits,
)
from mixqvit.network.layers import Layer
from mixqvit.progress import Progress
from mixqvit.stages.store import KEPT, fingerprint
from mixqvit.study.claims import seconds_spent
from mixqvit.study.criteria import CriteriaStages
from mixqvit.study.evaluation import EvaluationStages
from mixqvit.study.records import FrontierPoint
from mixqvit.study.relevance import RelevanceStages

__all__ = ["AllocationStages"]

FRONTIER_BITS = tuple(round(float(bits), 1) for bits in np.arange(BIT_WIDTHS[0], BIT_WIDTHS[-1] + 0.05, 0.1))
"""Budgets of the frontier, in average bits: every position of the slider."""

FRONTIERS = 16  # of which so many are remembered


class AllocationStages(RelevanceStages, EvaluationStages, CriteriaStages):
    """Bits chosen under a budget."""

    @property
    def strategies(self) -> dict[str, str]:
        """Descriptions of the allocation strategies by name, the controls last."""
        return {name: strategy.description for name, strategy in STRATEGIES.items()}

    def score_steps(self, strategy: Request | str | None = None, **keywords: Any) -> Iterator[Progress]:
        """Compute what a strategy has to know about the layers; everything that is missing, piece by piece.

        Args:
            strategy: A request, of which strategy, γ and whether bits are tied count; or one of `strategies`.
            keywords: What else is requested, as for `allocate`.

        Raises:
            AllocationError: The strategy is unknown, or cannot choose bits independently.
            UnsupportedOperationError: It needs relevance, and the model has an operation without a rule.
        """
        request = _scored(strategy, keywords)
        request.check()
        tied = request.tied
        operands = ("both",) if tied else ("weights", "activations")
        stages: dict[str, list[Callable[[], Iterator[Progress]]]] = {
            "relevance": [self.relevance_steps],
            "sensitivity": [lambda swept=swept: self.sensitivity_steps(swept) for swept in operands],
            "hessian": [self.hessian_steps],
            "loss change": [lambda: self.loss_change_steps(tied)],
            "pairs": [lambda: self.sensitivity_steps("both", FULL_PRECISION), self.pair_steps],
            "step sizes": [self.indicator_steps],
        }
        for stage in request.criterion.needs:
            for steps in stages[stage] if stage != "relevance" or request.gamma != 0 else ():
                yield from steps()
        yield Progress(1, 1, f"scores for {request.strategy}", request.strategy)

    def score_seconds(self, strategy: Request | str | None = None, **keywords: Any) -> float:
        """Return the computing time in seconds of what `score_steps` computed, calibration aside, over all sessions."""
        request = _scored(strategy, keywords)
        tied = request.tied
        operands = ("both",) if tied else ("weights", "activations")
        keys = {
            "sensitivity": [self._sensitivity_key(swept, self.settings.baseline) for swept in operands],
            "hessian": self._hessian_keys,
            "loss change": [self._loss_change_key(tied)],
            "pairs": [self._sensitivity_key("both", FULL_PRECISION), self._pair_key],
            "step sizes": [self._indicator_key],
        }
        needs = request.criterion.needs
        seconds = sum(seconds_spent(self.store, key) for need in needs for key in keys.get(need, ()))
        if "relevance" in needs and request.gamma != 0:
            importance = self.relevance()
            seconds += importance.seconds * len(next(iter(importance.shares.values())))
        return seconds

    def allocate(
        self,
        request: Request | float | None = None,
        *,
        importance: Mapping[str, float] | None = None,
        sensitivity: Harms | None = None,
        **keywords: Any,
    ) -> Allocation:
        """Return the best allocation that a request asks for; what its strategy needs is computed where it is missing.

        Args:
            request: What is asked for; or a budget in average bits, or nothing, to go with keywords.
            importance: Another Ω by layer name than the study's own.
            sensitivity: Another Λ by layer name and bit-width than the study's own, for tied bits.
            keywords: What is asked for, or asked otherwise than the request does:
                `average_bits`, `size_bytes`, `bitops`: ceilings on weight bits per quantized weight, on the bytes of
                the packed file, on BitOps for one image, and on any other of `QUANTITIES`;
                `cap_bitops`: whether average bits also limit BitOps to those of uniform bits (by default they do);
                `strategy`: one of `strategies`;
                `gamma`: exponent of importance, with 0 importance is not needed;
                `tied`: whether both operands of a layer share their bits; attention products always do;
                `pinned`, `at_least`, `at_most`: bits that a layer gets, gets at least or at most, by its name;
                `allowed`: bit-widths by layer kind, others are not used there;
                `seed`: of the `random` strategy.

        Returns:
            The allocation; its harm is what the strategy minimises.

        Raises:
            InfeasibleBudgetError: Nothing fits; the message says what would, and which restriction is to blame.
            AllocationError: The strategy is unknown, no ceiling is given, or a number is not usable.
            BitWidthError: A bit-width or layer name is not possible.
        """
        wanted = as_request(request, **keywords)
        if not wanted.criterion.is_search:
            return uniform_allocation(self.layers, wanted.budget, self.storage, wanted.restrictions)
        asked = wanted.budget, self.storage, wanted.restrictions
        harms = self._choice_harms(wanted, importance, sensitivity)
        if "pairs" in wanted.criterion.needs:
            return best_pairwise_allocation(self.layers, harms, self._finished("pairs", self.pair_steps), *asked)
        return best_allocation(self.layers, harms, *asked)

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

    def ceilings(self, budget: Budget) -> dict[str, float]:
        """Return the most that a budget allows of every quantity that it bounds, by name; implied ceilings included."""
        return ceilings(self.layers, self.storage, budget)

    # The frontier

    def frontier_steps(self, request: Request | None = None, **keywords: Any) -> Iterator[Progress]:
        """Solve every budget from 2 to 8 average bits; the last result is a tuple of `FrontierPoint`.

        Args:
            request: What is asked for, but for its average bits.
            keywords: As for `allocate`.

        Raises:
            AllocationError: The strategy is not solved exactly, or as in `allocate`.
        """
        wanted = as_request(request, **keywords).changed(average_bits=None)
        total = len(FRONTIER_BITS)
        if wanted not in self._frontiers:
            points: list[FrontierPoint] = []
            if not wanted.criterion.is_exact:
                raise AllocationError(
                    f"There is no frontier of strategy {wanted.strategy}; choose one that is solved exactly."
                )
            budgets = [wanted.budget.changed(average_bits=bits) for bits in FRONTIER_BITS]
            harms = self._choice_harms(wanted)
            found = frontier_steps(self.layers, harms, self.storage, budgets, wanted.restrictions)
            for bits, allocation in zip(FRONTIER_BITS, found, strict=True):
                points.append(FrontierPoint(bits, allocation))
                yield Progress(len(points), total, f"frontier at {bits} bits")
            with self._lock:
                self._frontiers[wanted] = tuple(points)
                while len(self._frontiers) > FRONTIERS:
                    self._frontiers.pop(next(iter(self._frontiers)))
        yield Progress(total, total, "frontier", self._frontiers.get(wanted))

    def saved_frontier(self, request: Request | None = None, **keywords: Any) -> tuple[FrontierPoint, ...] | None:
        """Return a frontier that was computed already, None if it was not; arguments as in `frontier_steps`."""
        return self._frontiers.get(as_request(request, **keywords).changed(average_bits=None))

    @property
    def _frontiers(self) -> dict[Request, tuple[FrontierPoint, ...]]:
        return self.remembered("frontiers", dict)

    # Allocations that a person keeps: by name, for this very model, whatever version of the program made them

    def save_allocation(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep the document of an allocation under a name; an earlier one of the same name is replaced.

        Raises:
            AllocationError: The name is empty.
        """
        if not name.strip():
            raise AllocationError("Give the allocation a name to save it under.")
        self.store.put(self._kept_key, name.strip(), dict(document))

    def saved_allocations(self) -> dict[str, dict[str, Any]]:
        """Return the documents of the allocations that were kept, by name, oldest first."""
        return self.store.rows(self._kept_key)

    def delete_allocation(self, name: str) -> None:
        """Forget a kept allocation."""
        self.store.delete(self._kept_key, name)

    @property
    def _kept_key(self) -> str:
        return self.remembered("kept key", lambda: KEPT + fingerprint("allocations", self.graph.fingerprint))

    # Harms

    def _choice_harms(
        self,
        request: Request,
        importance: Mapping[str, float] | None = None,
        sensitivity: Harms | None = None,
    ) -> ChoiceHarms:
        """Return what a request's strategy adds up: harm by layer and (weight bits, activation bits)."""
        request.check()
        strategy, gamma, tied = request.strategy, request.gamma, request.tied
        needs = request.criterion.needs
        if strategy == "random":
            return random_harms(self.layers, request.seed, tied)
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
        return self.remembered(("choices", tied), lambda: build(self.layers, *swept))

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
            tied = all(bits[layer.name] in (*tied_bits(layer), UNQUANTIZED) for layer in self.layers)
        choices = self._sensitivity_choices(tied)
        return sum(
            self._layer_harm(layer, bits[layer.name], choices)
            * (1.0 if importance is None else importance[layer.name] ** gamma)
            for layer in self.layers
        )

    def _layer_harm(self, layer: Layer, bits: Bits, choices: ChoiceHarms) -> float:
        if bits == UNQUANTIZED:
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


def _scored(strategy: Request | str | None, keywords: Mapping[str, Any]) -> Request:
    return as_request(strategy=strategy, **keywords) if isinstance(strategy, str) else as_request(strategy, **keywords)


def _not_below_zero(harms: Harms) -> dict[str, dict[int, float]]:
    return {name: {bits: max(0.0, harm) for bits, harm in row.items()} for name, row in harms.items()}
