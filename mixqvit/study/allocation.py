"""Allocation in a study: every strategy under any budget, and the frontier."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mixqvit.allocation.budget import Allocation, Budget, ceilings, largest_uniform
from mixqvit.allocation.costs import cost
from mixqvit.allocation.exact import frontier_steps
from mixqvit.allocation.request import Request, as_request
from mixqvit.allocation.search import search
from mixqvit.criteria.choices import ChoiceHarms, Harms, monotone_envelope
from mixqvit.criteria.criterion import Given
from mixqvit.criteria.registry import CRITERIA
from mixqvit.criteria.sensitivity.harms import operand_harms, sensitivity_choices
from mixqvit.engines.progress import Progress
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
from mixqvit.study.part import Part
from mixqvit.study.records import FrontierPoint
from mixqvit.study.relevance import Relevances

__all__ = ["Allocations"]

FRONTIER_BITS = tuple(round(float(bits), 1) for bits in np.arange(BIT_WIDTHS[0], BIT_WIDTHS[-1] + 0.05, 0.1))
"""Budgets of the frontier, in average bits: every position of the slider."""

FRONTIERS = 16  # of which so many are remembered


class Allocations(Part):
    """Bits chosen under a budget."""

    def strategies(self) -> dict[str, str]:
        """Return what the allocation strategies minimise, in a sentence each, by name; the controls last."""
        return {name: criterion.sentence for name, criterion in CRITERIA.items()}

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
        wanted.check()
        study, criterion = self.study, wanted.criterion
        harms = criterion.harms(study, wanted, Given(importance, sensitivity))
        pairs = criterion.pairs(study)
        return search(criterion.search, study.layers, harms, pairs, wanted.budget, study.storage, wanted.restrictions)

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

    def ceilings(self, budget: Budget) -> dict[str, float]:
        """Return the most that a budget allows of every quantity that it bounds, by name; implied ceilings included."""
        return ceilings(self.study.layers, self.study.storage, budget)

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
        points = self._frontiers.get(wanted)
        if points is None:
            solved: list[FrontierPoint] = []
            wanted.check()
            if not wanted.criterion.is_exact:
                raise AllocationError(
                    f"There is no frontier of strategy {wanted.strategy}; choose one that is solved exactly."
                )
            budgets = [wanted.budget.changed(average_bits=bits) for bits in FRONTIER_BITS]
            harms = wanted.criterion.harms(self.study, wanted)
            found = frontier_steps(self.study.layers, harms, self.study.storage, budgets, wanted.restrictions)
            for bits, allocation in zip(FRONTIER_BITS, found, strict=True):
                solved.append(FrontierPoint(bits, allocation))
                yield Progress(len(solved), total, f"frontier at {bits} bits", stage="frontier")
            points = tuple(solved)
            self._frontiers.put(wanted, points)
        yield Progress(total, total, "frontier", points, "frontier")

    def saved_frontier(self, request: Request | None = None, **keywords: Any) -> tuple[FrontierPoint, ...] | None:
        """Return a frontier that was computed already, None if it was not; arguments as in `frontier_steps`."""
        return self._frontiers.get(as_request(request, **keywords).changed(average_bits=None))

    @property
    def _frontiers(self) -> "_Frontiers":
        return self.study.remembered("frontiers", _Frontiers)

    # Harms

    def _harm(self, bits: BitsPerLayer, gamma: float, tied: bool | None) -> float:
        importance = None if gamma == 0 else Relevances(self.study).importance().mean
        if tied is not False:
            tied = all(bits[layer.name] in (*tied_bits(layer), UNQUANTIZED) for layer in self.study.layers)
        choices = sensitivity_choices(self.study, tied)
        return sum(
            self._layer_harm(layer, bits[layer.name], choices)
            * (1.0 if importance is None else importance[layer.name] ** gamma)
            for layer in self.study.layers
        )

    def _layer_harm(self, layer: Layer, bits: Bits, choices: ChoiceHarms) -> float:
        if bits == UNQUANTIZED:
            return 0.0
        if bits in choices[layer.name]:
            return choices[layer.name][bits]
        if FULL_PRECISION in bits and not layer.is_matmul:
            operands, width = ("weights", bits[0]) if bits[1] == FULL_PRECISION else ("activations", bits[1])
            return monotone_envelope(operand_harms(self.study, operands)[layer.name])[width]
        raise AllocationError(f"The harm of {bits} bits at layer {layer.name} was not measured.")


class _Frontiers:
    """The frontiers that were solved last, for all sessions of a study."""

    def __init__(self) -> None:
        self._points: dict[Request, tuple[FrontierPoint, ...]] = {}
        self._lock = threading.Lock()

    def get(self, request: Request) -> tuple[FrontierPoint, ...] | None:
        return self._points.get(request)

    def put(self, request: Request, points: tuple[FrontierPoint, ...]) -> None:
        with self._lock:
            self._points[request] = points
            while len(self._points) > FRONTIERS:
                self._points.pop(next(iter(self._points)))
