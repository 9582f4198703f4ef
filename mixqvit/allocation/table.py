"""All choices of all layers as arrays: their harm, and what they take of every ceiling."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite

import numpy as np

from mixqvit.allocation.budget import Allocation, Budget, is_within, rooms
from mixqvit.allocation.costs import Storage, cost
from mixqvit.allocation.quantities import QUANTITIES, Quantity
from mixqvit.allocation.restrictions import Restrictions, allowed_bits
from mixqvit.allocation.solver import least_harm
from mixqvit.criteria.choices import ChoiceHarms
from mixqvit.errors import AllocationError
from mixqvit.network.bits import UNQUANTIZED, Bits
from mixqvit.network.layers import Layer

__all__ = ["ChoiceTable", "choice_table"]


@dataclass(frozen=True)
class ChoiceTable:
    """The choices of every layer; arrays are `[L, K]`, where K is the most choices of any layer.

    Attributes:
        layers: The table of layers.
        storage: What the size depends on beside the layers.
        options: Bits of every layer's choices; full precision is among them, for pinned layers.
        possible: Which choices restrictions leave.
        harm: Predicted harm, infinite where a layer has fewer choices.
        amounts: What every choice takes of each quantity, by its name.
    """

    layers: Sequence[Layer]
    storage: Storage
    options: tuple[tuple[Bits, ...], ...]
    possible: np.ndarray
    harm: np.ndarray
    amounts: Mapping[str, np.ndarray]

    @property
    def possible_harm(self) -> np.ndarray:
        """Harm of the choices that restrictions leave, infinite elsewhere `[L, K]`."""
        return np.where(self.possible, self.harm, np.inf)

    def limits(self, budget: Budget) -> tuple[np.ndarray, np.ndarray]:
        """Return what every choice takes of each given ceiling `[M, L, K]`, and the ceilings `[M]`."""
        found = rooms(self.layers, self.storage, budget)
        amounts = np.array([self.amounts[name] for name in found]).reshape(-1, *self.harm.shape)
        return amounts, np.array(list(found.values()), dtype=float)

    def bits(self, chosen: Sequence[int]) -> dict[str, Bits]:
        """Return the bits by layer name of one choice per layer."""
        return {layer.name: row[k] for layer, row, k in zip(self.layers, self.options, chosen, strict=True)}

    def allocation(self, chosen: Sequence[int], harm: float, budget: Budget, gap: float) -> Allocation:
        """Return one choice per layer as an allocation, its costs computed afresh from their definition.

        Raises:
            AllocationError: The costs exceed the budget, which would be a fault of the solver.
        """
        bits = self.bits(chosen)
        costs = cost(self.layers, bits, self.storage)
        if not is_within(self.layers, bits, self.storage, budget):
            raise AllocationError(f"The solver returned {costs}, which exceeds {budget}. Please report this.")
        return Allocation(bits, harm, costs, budget, gap)

    def best(self, budget: Budget) -> Allocation | None:
        """Return the allocation of least harm within a budget, None if nothing fits."""
        harm = self.possible_harm
        solution = least_harm(harm, *self.limits(budget))
        if solution is None:
            return None
        total = float(harm[np.arange(len(harm)), solution.chosen].sum())
        return self.allocation(solution.chosen, total, budget, solution.gap)

    def restricted(self, restrictions: Restrictions) -> "ChoiceTable":
        """Return the table with the choices that restrictions leave.

        Raises:
            BitWidthError, AllocationError: A restriction is not possible, or leaves a layer without any choice.
        """
        possible = np.zeros(self.harm.shape, dtype=bool)
        for row, layer, options, test in zip(
            possible, self.layers, self.options, allowed_bits(self.layers, restrictions), strict=True
        ):
            row[: len(options)] = [test(bits) for bits in options]
            if not row.any():
                pinned = restrictions.pinned.get(layer.name)
                raise AllocationError(
                    f"No choice is left for layer {layer.name} by the restrictions."
                    if pinned is None
                    else f"Layer {layer.name} cannot be pinned to {pinned}: the choices are "
                    f"{', '.join(map(str, options))} (weight bits, activation bits)."
                )
        return replace(self, possible=possible)


def choice_table(
    layers: Sequence[Layer], harms: ChoiceHarms, storage: Storage, restrictions: Restrictions
) -> ChoiceTable:
    """Return the choices of every layer that restrictions leave.

    Raises:
        AllocationError: A harm is missing or not a number, or a restriction cannot be met.
        BitWidthError: A restriction names an unknown layer or a bit-width that is not possible.
    """
    rows = [_row(layer, harms) for layer in layers]
    most = max(map(len, rows))

    def array(of: Callable[[Layer, Bits], float], filler: float) -> np.ndarray:
        values = [[of(layer, bits) for bits in row] for layer, row in zip(layers, rows, strict=True)]
        return np.array([row + [filler] * (most - len(row)) for row in values], dtype=float)

    table = ChoiceTable(
        layers=layers,
        storage=storage,
        options=tuple(map(tuple, rows)),
        possible=np.zeros((len(layers), most), dtype=bool),
        harm=np.array([[*row.values(), *[np.inf] * (most - len(row))] for row in rows]),
        amounts={name: array(partial(_amount, one, storage), 0.0) for name, one in QUANTITIES.items()},
    )
    return table.restricted(restrictions)


def _amount(one: Quantity, storage: Storage, layer: Layer, bits: Bits) -> int:
    return one.amount(layer, bits, storage)


def _row(layer: Layer, harms: ChoiceHarms) -> dict[Bits, float]:
    row: Mapping[Bits, float] = harms.get(layer.name, {})
    if not row:
        raise AllocationError(f"No harm of layer {layer.name} is known.")
    for bits, harm in row.items():
        if not isfinite(harm):
            raise AllocationError(f"The harm of {bits} bits at layer {layer.name} is not a finite number: {harm}.")
    return {**row, UNQUANTIZED: 0.0}
