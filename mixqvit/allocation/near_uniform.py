"""The same bits for all layers, as far as restrictions let them: what every other strategy is held against."""

from collections.abc import Sequence

from mixqvit.allocation.budget import Allocation, Budget, is_within
from mixqvit.allocation.costs import Storage, cost
from mixqvit.allocation.infeasible import why_infeasible
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.allocation.table import choice_table
from mixqvit.criteria.choices import ChoiceHarms
from mixqvit.errors import InfeasibleBudgetError
from mixqvit.network.bits import BIT_WIDTHS, Bits
from mixqvit.network.layers import Layer

__all__ = ["uniform_allocation"]


def uniform_allocation(
    layers: Sequence[Layer], harms: ChoiceHarms, budget: Budget, storage: Storage, restrictions: Restrictions
) -> Allocation:
    """Return the largest uniform bits within every ceiling; a restricted layer gets the nearest below that it may have.

    Where it may have nothing below, it gets its least.

    Args:
        layers: The table of layers.
        harms: What is added up; it decides nothing.
        budget: The ceilings.
        storage: What the size depends on beside the layers.
        restrictions: What is demanded of single layers and kinds.

    Raises:
        InfeasibleBudgetError: No uniform bits fit; the message says what would, and which restriction is to blame.
        AllocationError: No ceiling was given, a number is not usable, or a restriction cannot be met.
        BitWidthError: A restriction names an unknown layer or a bit-width that is not possible.
    """
    budget.check()
    table = choice_table(layers, harms, storage, restrictions)
    possible = [
        [bits for bits, may in zip(options, row, strict=False) if may]
        for options, row in zip(table.options, table.possible, strict=True)
    ]
    for width in reversed(BIT_WIDTHS):
        bits = {layer.name: _nearest(options, width) for layer, options in zip(layers, possible, strict=True)}
        if is_within(layers, bits, storage, budget):
            harm = sum(harms[name].get(pair, 0.0) for name, pair in bits.items())
            return Allocation(bits, harm, cost(layers, bits, storage), budget)
    if table.best(budget) is None:
        raise InfeasibleBudgetError(why_infeasible(table, budget, restrictions))
    raise InfeasibleBudgetError("No uniform bits fit this budget with these restrictions; mixed bits do.")


def _nearest(options: Sequence[Bits], width: int) -> Bits:
    below = [bits for bits in options if bits[0] <= width]
    return max(below) if below else min(options)
