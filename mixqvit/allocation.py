"""Bit allocation: the best bits per layer under a budget, exactly (METHOD.md, "Bit allocation").

With one binary variable per layer and choice the papers' integer quadratic program becomes a linear one, a
multiple-choice knapsack, which HiGHS solves to proven optimality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil, inf, isfinite

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from mixqvit.bits import FULL_PRECISION, PATCH_EMBED_INPUT_BITS, Bits, BitsPerLayer, resolve_bits, uniform
from mixqvit.costs import Cost, Storage, bitops, cost, layer_bytes, uniform_bitops
from mixqvit.errors import AllocationError, InfeasibleBudgetError
from mixqvit.layers import Layer

__all__ = [
    "Allocation",
    "Budget",
    "allocate",
    "bitops_ceiling",
    "largest_uniform",
    "monotone_envelope",
    "predicted_harm",
]

_OBJECTIVE_SCALE = 1e8

Harms = Mapping[str, Mapping[int, float]]
"""Λ by layer name and bit-width."""


@dataclass(frozen=True)
class Budget:
    """Ceilings that an allocation never exceeds; at least one must be given.

    Attributes:
        average_bits: Weight bits per quantized weight, averaged over weights.
        size_bytes: Model size in bytes, that of the packed file.
        bitops: BitOps for one image.
        cap_bitops: Whether `average_bits` also limits BitOps to those of uniform bits (METHOD.md).
    """

    average_bits: float | None = None
    size_bytes: int | None = None
    bitops: float | None = None
    cap_bitops: bool = True


@dataclass(frozen=True)
class Allocation:
    """Bits for every layer, and what they cost.

    Attributes:
        bits: (weight bits, activation bits) by layer name, in network order.
        harm: Predicted harm Σ Ω^γ · Λ.
        cost: Model size, BitOps, average bits.
        budget: The ceilings it was solved for.
    """

    bits: BitsPerLayer
    harm: float
    cost: Cost
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class _Limit:
    """One ceiling over all layers: the fixed amount plus those of the chosen bits stay at or below the maximum.

    Amounts are whole numbers (bits of weights, bytes, BitOps), so sums in float64 are exact.
    """

    name: str
    unit: str
    per_unit: float  # the amount that is one unit when shown
    amounts: tuple[np.ndarray, ...]  # per layer, one amount per choice
    fixed: float
    maximum: float

    @property
    def smallest(self) -> float:
        return self.fixed + sum(amounts.min() for amounts in self.amounts)

    def allows(self, chosen: Sequence[int]) -> bool:
        return self.fixed + sum(a[k] for a, k in zip(self.amounts, chosen, strict=True)) <= self.maximum

    def shown(self, amount: float, round_up: bool = False) -> str:
        """Write an amount for people; rounded up, the number shown is feasible itself."""
        digits = 1e6
        value = (ceil if round_up else round)(amount / self.per_unit * digits) / digits
        return f"{value:.6f}".rstrip("0").rstrip(".") + self.unit


def monotone_envelope(harms: Mapping[int, float]) -> dict[int, float]:
    """Return harms that never rise with bits: the least harm measured at that many bits or fewer.

    Measured curves can rise by noise; more bits can always be used as if they were fewer.
    """
    widths = sorted(harms)
    return dict(zip(widths, accumulate((harms[width] for width in widths), min), strict=True))


def choices(layer: Layer, harms: Mapping[int, float]) -> dict[Bits, float]:
    """Return the layer's possible bits with their harm; both operands of a layer share one bit-width.

    The patch embedding's input keeps 8 bits, because images arrive so.
    """
    envelope = monotone_envelope(harms)
    if layer.kind == "patch_embed":
        return {(width, PATCH_EMBED_INPUT_BITS): harm for width, harm in envelope.items()}
    return {(width, width): harm for width, harm in envelope.items()}


def predicted_harm(
    layers: Sequence[Layer],
    bits: Mapping[str, Bits],
    harms: Harms,
    importance: Mapping[str, float] | None = None,
    gamma: float = 1.0,
) -> float:
    """Return Σ Ω^γ · Λ of an allocation whose bits were all measured; full precision does no harm."""
    total = 0.0
    for layer in layers:
        pair = bits[layer.name]
        if pair != (FULL_PRECISION, FULL_PRECISION):
            possible = choices(layer, harms[layer.name])
            if pair not in possible:
                raise AllocationError(f"The harm of {pair} bits at layer {layer.name} was not measured.")
            total += _weight(layer, importance, gamma) * possible[pair]
    return total


def _weight(layer: Layer, importance: Mapping[str, float] | None, gamma: float) -> float:
    return 1.0 if importance is None else importance[layer.name] ** gamma


def allocate(
    layers: Sequence[Layer],
    harms: Harms,
    budget: Budget,
    storage: Storage,
    importance: Mapping[str, float] | None = None,
    gamma: float = 1.0,
    pinned: Mapping[str, int | Bits] | None = None,
) -> Allocation:
    """Return the allocation of least predicted harm within the budget, proven optimal.

    Args:
        layers: The table of layers.
        harms: Λ by layer and bit-width; the monotone envelope is used.
        budget: The ceilings.
        storage: What the size depends on beside the layers.
        importance: Ω by layer; None weighs all layers alike.
        gamma: Exponent of Ω: 1 is Mix-QViT (arXiv 2501.06357), 0 is sensitivity alone.
        pinned: Bits that are fixed by hand, by layer name.

    Returns:
        The allocation.

    Raises:
        InfeasibleBudgetError: Nothing fits; the message names the smallest feasible value.
        AllocationError: No ceiling was given, or a number is not usable.
        BitWidthError: A pinned bit-width or layer name is not possible.
    """
    _check(budget, gamma)
    options = _options(layers, harms, pinned or {})
    objective = [
        _weight(layer, importance, gamma) * np.array(list(possible.values()))
        for layer, possible in zip(layers, options, strict=True)
    ]
    limits = _limits(layers, options, budget, storage)
    for limit in limits:
        if limit.smallest > limit.maximum:
            raise InfeasibleBudgetError(_infeasible(limit, pinned))
    chosen = _solve(objective, limits)
    if chosen is None:
        raise InfeasibleBudgetError(
            "Each ceiling can be met alone, but not all at once: "
            + "; ".join(f"{limit.name} at least {limit.shown(limit.smallest, round_up=True)}" for limit in limits)
            + ". Raise one of them."
        )
    bits = {layer.name: list(possible)[k] for layer, possible, k in zip(layers, options, chosen, strict=True)}
    harm = float(sum(values[k] for values, k in zip(objective, chosen, strict=True)))
    return Allocation(bits, harm, cost(layers, bits, storage), budget)


def largest_uniform(layers: Sequence[Layer], budget: Budget, storage: Storage, widths: Sequence[int]) -> int | None:
    """Return the largest uniform bit-width within every ceiling, None where even the smallest is too large."""
    for width in sorted(widths, reverse=True):
        bits = uniform(layers, width)
        options = [{bits[layer.name]: 0.0} for layer in layers]
        limits = _limits(layers, options, budget, storage)
        if all(limit.smallest <= limit.maximum for limit in limits):
            return width
    return None


def bitops_ceiling(layers: Sequence[Layer], budget: Budget) -> float | None:
    """Return the BitOps that a budget allows, its cap at those of uniform bits included; None for any number."""
    ceiling = inf if budget.bitops is None else budget.bitops
    if budget.average_bits is not None and budget.cap_bitops:
        ceiling = min(ceiling, uniform_bitops(layers, budget.average_bits))
    return None if ceiling == inf else ceiling


def _check(budget: Budget, gamma: float) -> None:
    if not (isfinite(gamma) and gamma >= 0):
        raise AllocationError(f"The exponent of importance must be 0 or a positive number, not {gamma!r}.")
    ceilings = {
        "average bits": budget.average_bits,
        "model size": budget.size_bytes,
        "BitOps": budget.bitops,
    }
    if all(value is None for value in ceilings.values()):
        raise AllocationError("An allocation needs a budget: average bits, model size or BitOps.")
    for name, value in ceilings.items():
        if value is not None and not (isfinite(value) and value > 0):
            raise AllocationError(f"The budget for {name} must be a positive number, not {value!r}.")


def _options(layers: Sequence[Layer], harms: Harms, pinned: Mapping[str, int | Bits]) -> list[dict[Bits, float]]:
    fixed = resolve_bits(layers, pinned)
    options = []
    for layer in layers:
        possible = choices(layer, harms[layer.name])
        if layer.name in pinned:
            pair = fixed[layer.name]
            if layer.kind == "patch_embed" and pair[0] != FULL_PRECISION:
                pair = (pair[0], PATCH_EMBED_INPUT_BITS)
            if pair not in possible and pair != (FULL_PRECISION, FULL_PRECISION):
                raise AllocationError(f"Layer {layer.name} cannot be pinned to {pair}: its harm was not measured.")
            possible = {pair: possible.get(pair, 0.0)}
        options.append(possible)
    return options


def _limits(
    layers: Sequence[Layer],
    options: Sequence[Mapping[Bits, float]],
    budget: Budget,
    storage: Storage,
) -> list[_Limit]:
    def amounts(of) -> tuple[np.ndarray, ...]:
        return tuple(
            np.array([of(layer, bits) for bits in possible], dtype=float)
            for layer, possible in zip(layers, options, strict=True)
        )

    limits = []
    if budget.average_bits is not None:
        parameters = sum(layer.parameters for layer in layers)
        weight_bits = amounts(lambda layer, bits: layer.parameters * bits[0])
        maximum = budget.average_bits * parameters
        limits.append(_Limit("average bits", "", parameters, weight_bits, 0.0, maximum))
    if budget.size_bytes is not None:
        sizes = amounts(lambda layer, bits: layer_bytes(layer, bits, storage.recipe))
        fixed = storage.full_precision_bytes + storage.container_bytes
        limits.append(_Limit("model size", " MB", 1e6, sizes, fixed, budget.size_bytes))
    ceiling = bitops_ceiling(layers, budget)
    if ceiling is not None:
        limits.append(_Limit("BitOps", " G", 1e9, amounts(bitops), 0.0, ceiling))
    return limits


def _solve(objective: Sequence[np.ndarray], limits: Sequence[_Limit]) -> list[int] | None:
    """Return the index of the best choice per layer, None if nothing is feasible."""
    counts = [len(values) for values in objective]
    starts = np.cumsum([0, *counts])[:-1]
    variables = sum(counts)
    layer_of = np.repeat(np.arange(len(counts)), counts)
    one_each = csr_array((np.ones(variables), (layer_of, np.arange(variables))), shape=(len(counts), variables))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for limit in limits:
        row, room = np.concatenate(limit.amounts), limit.maximum - limit.fixed
        # Scaled to about 1, so that the solver's absolute tolerances mean the same for bits and for BitOps.
        scale = max(abs(room), row.max())
        constraints.append(LinearConstraint(row[None, :] / scale, -np.inf, room / scale))
    # A constant per layer changes nothing, and HiGHS stops within absolute tolerances of about 1e-7: without the
    # constant and scaled up, they are far below any difference between allocations that matters.
    excess = np.concatenate([values - values.min() for values in objective])
    excess *= _OBJECTIVE_SCALE / (excess.max() or 1.0)
    while True:
        result = milp(
            excess,
            constraints=constraints,
            integrality=np.ones(variables),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return None
        chosen = [int(np.argmax(result.x[start : start + count])) for start, count in zip(starts, counts, strict=True)]
        if all(limit.allows(chosen) for limit in limits):
            return chosen
        # The solver tolerates a violation of about one in a million; a ceiling tolerates none: forbid this one.
        row = np.zeros((1, variables))
        row[0, starts + np.array(chosen)] = 1
        constraints.append(LinearConstraint(row, -np.inf, len(counts) - 1))


def _infeasible(limit: _Limit, pinned: Mapping[str, int | Bits] | None) -> str:
    message = (
        f"No allocation fits a budget of {limit.shown(limit.maximum)} for {limit.name}: "
        f"the smallest feasible value is {limit.shown(limit.smallest, round_up=True)}."
    )
    return message + (f" Pinned layers count too: {', '.join(pinned)}." if pinned else "")
