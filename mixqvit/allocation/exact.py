"""Bit allocation: the best bits per layer under a budget, exactly (METHOD.md, "Bit allocation").

With one binary variable per layer and choice the papers' integer quadratic program becomes a linear one, a
multiple-choice knapsack; `solver` solves it to proven optimality.
"""

from collections.abc import Iterator, Mapping, Sequence

from mixqvit.allocation.budget import Allocation, Budget
from mixqvit.allocation.costs import Storage
from mixqvit.allocation.infeasible import why_infeasible
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.allocation.table import choice_table
from mixqvit.criteria.choices import ChoiceHarms, Harms, tied_choices, weighted
from mixqvit.errors import InfeasibleBudgetError
from mixqvit.network.bits import Bits
from mixqvit.network.layers import Layer

__all__ = ["allocate", "best_allocation", "frontier_steps"]

_UNRESTRICTED = Restrictions()


def best_allocation(
    layers: Sequence[Layer],
    harms: ChoiceHarms,
    budget: Budget,
    storage: Storage,
    restrictions: Restrictions = _UNRESTRICTED,
) -> Allocation:
    """Return the allocation of least predicted harm within the budget, proven optimal.

    Args:
        layers: The table of layers.
        harms: Harm of every choice of every layer.
        budget: The ceilings.
        storage: What the size depends on beside the layers.
        restrictions: What is demanded of single layers and kinds.

    Returns:
        The allocation. Its gap is 0, unless no proof was found in some seconds (harms made up to be proportional to
        the amounts can do that); then the gap that is left is stated.

    Raises:
        InfeasibleBudgetError: Nothing fits; the message names the smallest feasible value of the ceilings, and the
            restriction that is to blame.
        AllocationError: No ceiling was given, a number is not usable, or a restriction cannot be met.
        BitWidthError: A restriction names an unknown layer or a bit-width that is not possible.
    """
    budget.check()
    table = choice_table(layers, harms, storage, restrictions)
    found = table.best(budget)
    if found is None:
        raise InfeasibleBudgetError(why_infeasible(table, budget, restrictions))
    return found


def allocate(
    layers: Sequence[Layer],
    harms: Harms,
    budget: Budget,
    storage: Storage,
    importance: Mapping[str, float] | None = None,
    gamma: float = 1.0,
    pinned: Mapping[str, int | Bits] | None = None,
) -> Allocation:
    """Return the allocation of least Σ Ω^γ · Λ within the budget, where both operands of a layer share a bit-width.

    Args:
        layers: The table of layers.
        harms: Λ by layer and bit-width; the monotone envelope is used.
        budget: The ceilings.
        storage: What the size depends on beside the layers.
        importance: Ω by layer; None weighs all layers alike.
        gamma: Exponent of Ω: 1 is Mix-QViT (arXiv 2501.06357), 0 is sensitivity alone.
        pinned: Bits that are fixed by hand, by layer name.

    Returns:
        The allocation, as by `best_allocation`; errors too.
    """
    weighed = weighted(tied_choices(layers, harms), importance, gamma)
    return best_allocation(layers, weighed, budget, storage, Restrictions(pinned=pinned or {}))


def frontier_steps(
    layers: Sequence[Layer],
    harms: ChoiceHarms,
    storage: Storage,
    budgets: Sequence[Budget],
    restrictions: Restrictions = _UNRESTRICTED,
) -> Iterator[Allocation | None]:
    """Yield every budget's best allocation as by `best_allocation`, None where nothing fits.

    Raises:
        AllocationError, BitWidthError: As `best_allocation`.
    """
    for budget in budgets:
        budget.check()
    table = choice_table(layers, harms, storage, restrictions)
    for budget in budgets:
        yield table.best(budget)
