"""Budgets, and the allocations that keep to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixqvit.allocation.costs import Cost, Storage
from mixqvit.allocation.quantities import QUANTITIES, Quantity
from mixqvit.errors import AllocationError
from mixqvit.network.bits import Bits, BitsPerLayer, uniform
from mixqvit.network.layers import Layer

__all__ = ["Allocation", "Budget", "ceilings", "is_within", "largest_uniform", "rooms"]


@dataclass(frozen=True, init=False)
class Budget:
    """Ceilings that an allocation never exceeds; at least one must be given to solve for it.

    What is given by name is there by name: `Budget(average_bits=4).average_bits` is 4, `.size_bytes` is None.

    Attributes:
        ceilings: (name of the quantity, the most of it), in the order of `QUANTITIES`.
        cap_bitops: Whether average bits also limit BitOps to those of uniform bits (METHOD.md).
    """

    ceilings: tuple[tuple[str, float], ...]
    cap_bitops: bool

    def __init__(
        self,
        average_bits: float | None = None,
        size_bytes: int | None = None,
        bitops: float | None = None,
        cap_bitops: bool = True,
        **others: float | None,
    ) -> None:
        """State the most of some quantities.

        Args:
            average_bits: Weight bits per quantized weight, averaged over weights.
            size_bytes: Model size in bytes, that of the packed file.
            bitops: BitOps for one image.
            cap_bitops: Whether average bits also limit BitOps to those of uniform bits.
            others: Any other of `QUANTITIES`, by name.

        Raises:
            TypeError: There is no quantity of a name.
        """
        given = {"average_bits": average_bits, "size_bytes": size_bytes, "bitops": bitops, **others}
        if unknown := given.keys() - QUANTITIES.keys():
            raise TypeError(f"Budget() got an unexpected keyword argument {min(unknown)!r}")
        stated = tuple((name, given[name]) for name in QUANTITIES if given.get(name) is not None)
        object.__setattr__(self, "ceilings", stated)
        object.__setattr__(self, "cap_bitops", cap_bitops)

    def __getattr__(self, name: str) -> float | None:
        if name in QUANTITIES:
            return dict(self.ceilings).get(name)
        raise AttributeError(f"A budget has no {name!r}.")

    def changed(self, **ceilings: float | None) -> "Budget":
        """Return the budget with other ceilings on some quantities, None for none; or with another `cap_bitops`."""
        return Budget(**{**dict(self.ceilings), "cap_bitops": self.cap_bitops, **ceilings})

    def bounding(self, name: str) -> tuple[Quantity, ...]:
        """Return all quantities that the ceiling on one bounds, by the same number."""
        one = QUANTITIES[name]
        return (one, one.cap) if one.cap is not None and self.cap_bitops else (one,)

    def check(self) -> None:
        """Refuse a budget without any ceiling, or with one that is no positive number.

        Raises:
            AllocationError: So it is; the message names the ceiling.
        """
        if not self.ceilings:
            *first, last = (one.title for one in QUANTITIES.values())
            raise AllocationError(f"An allocation needs a budget: {', '.join(first)} or {last}.")
        for name, ceiling in self.ceilings:
            QUANTITIES[name].check(ceiling)

    def to_json(self) -> dict[str, Any]:
        """Return all ceilings by name, null where there is none, with the cap on BitOps."""
        return {name: getattr(self, name) for name in QUANTITIES} | {"cap_bitops": self.cap_bitops}


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


def ceilings(layers: Sequence[Layer], storage: Storage, budget: Budget) -> dict[str, float]:
    """Return the most that a budget allows of every quantity that it bounds, what ceilings imply for others included.

    Returns:
        By name, in the order of `QUANTITIES`.
    """
    found = dict(budget.ceilings)
    for name, ceiling in budget.ceilings:
        for cap in budget.bounding(name)[1:]:
            bounded = QUANTITIES[cap.bounds]
            implied = bounded.value(layers, storage, cap.room(layers, storage, ceiling))
            found[bounded.name] = min(found.get(bounded.name, implied), implied)
    return {name: found[name] for name in QUANTITIES if name in found}


def rooms(layers: Sequence[Layer], storage: Storage, budget: Budget) -> dict[str, float]:
    """Return what the amounts of all layers may add up to under a budget, by quantity that it bounds."""
    most = ceilings(layers, storage, budget)
    return {name: QUANTITIES[name].room(layers, storage, ceiling) for name, ceiling in most.items()}


def is_within(layers: Sequence[Layer], bits: Mapping[str, Bits], storage: Storage, budget: Budget) -> bool:
    """Return whether bits exceed none of a budget's ceilings."""
    return all(
        sum(QUANTITIES[name].amount(layer, bits[layer.name], storage) for layer in layers) <= room
        for name, room in rooms(layers, storage, budget).items()
    )


def largest_uniform(layers: Sequence[Layer], budget: Budget, storage: Storage, widths: Sequence[int]) -> int | None:
    """Return the largest uniform bit-width within every ceiling, None where even the smallest is too large."""
    for width in sorted(widths, reverse=True):
        if is_within(layers, uniform(layers, width), storage, budget):
            return width
    return None
