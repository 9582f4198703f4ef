"""Budgets, and the allocations that keep to them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor, inf

from mixqvit.allocation.costs import Cost, Storage, cost, uniform_bitops
from mixqvit.errors import AllocationError
from mixqvit.network.bits import BitsPerLayer, uniform
from mixqvit.network.layers import Layer

__all__ = [
    "Allocation",
    "Budget",
    "bitops_ceiling",
    "check_budget",
    "is_within",
    "largest_uniform",
    "layer_bitops_ceiling",
    "weight_bits_ceiling",
]

_MOST = 10**18  # no model comes near it, and sums in float64 are exact to about here


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
        harm: Predicted harm, e.g. Σ Ω^γ · Λ.
        cost: Model size, BitOps, average bits.
        budget: The ceilings it was solved for.
        gap: By how much less the harm could be at most, relative to it: 0 is proven optimal.
    """

    bits: BitsPerLayer
    harm: float
    cost: Cost
    budget: Budget = field(default_factory=Budget)
    gap: float = 0.0


def bitops_ceiling(layers: Sequence[Layer], budget: Budget, storage: Storage) -> float | None:
    """Return the BitOps that a budget allows, its cap at those of uniform bits included; None for any number."""
    room = layer_bitops_ceiling(layers, budget, storage)
    return None if room is None else room + storage.full_precision_bitops


def layer_bitops_ceiling(layers: Sequence[Layer], budget: Budget, storage: Storage) -> float | None:
    """Return the BitOps that a budget leaves to the layers, without what stays in full precision; None likewise."""
    room = inf if budget.bitops is None else budget.bitops - storage.full_precision_bitops
    if budget.average_bits is not None and budget.cap_bitops:
        room = min(room, uniform_bitops(layers, budget.average_bits))
    return None if room == inf else room


def weight_bits_ceiling(layers: Sequence[Layer], average_bits: float) -> int:
    """Return the most weight bits whose average over all weights is at most `average_bits`."""
    parameters = sum(layer.parameters for layer in layers)
    most = floor(average_bits * parameters)
    # The product is rounded, and so is the average that is reported; this is decided by the latter.
    return most + 1 if (most + 1) / parameters <= average_bits else most


def is_within(layers: Sequence[Layer], costs: Cost, budget: Budget, storage: Storage) -> bool:
    """Return whether costs exceed none of a budget's ceilings."""
    most_bitops = layer_bitops_ceiling(layers, budget, storage)
    return (
        (budget.average_bits is None or costs.average_bits <= budget.average_bits)
        and (budget.size_bytes is None or costs.size_bytes <= budget.size_bytes)
        and (most_bitops is None or costs.bitops - storage.full_precision_bitops <= most_bitops)
    )


def largest_uniform(layers: Sequence[Layer], budget: Budget, storage: Storage, widths: Sequence[int]) -> int | None:
    """Return the largest uniform bit-width within every ceiling, None where even the smallest is too large."""
    for width in sorted(widths, reverse=True):
        if is_within(layers, cost(layers, uniform(layers, width), storage), budget, storage):
            return width
    return None


def check_budget(budget: Budget) -> None:
    """Refuse a budget without any ceiling, or with one that is no positive number.

    Raises:
        AllocationError: So it is; the message names the ceiling.
    """
    ceilings = {
        "average bits": budget.average_bits,
        "model size": budget.size_bytes,
        "BitOps": budget.bitops,
    }
    if all(value is None for value in ceilings.values()):
        raise AllocationError("An allocation needs a budget: average bits, model size or BitOps.")
    for name, value in ceilings.items():
        if value is not None and not 0 < value < _MOST:
            shown = repr(value) if isinstance(value, float) or abs(value) < _MOST else "a number that large"
            raise AllocationError(f"The budget for {name} must be a positive number, not {shown}.")
