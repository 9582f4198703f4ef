"""From a criterion's harms to bits: each kind of search has its solver."""

from collections.abc import Callable, Mapping, Sequence

from mixqvit.allocation.budget import Allocation, Budget
from mixqvit.allocation.costs import Storage
from mixqvit.allocation.exact import best_allocation
from mixqvit.allocation.near_uniform import uniform_allocation
from mixqvit.allocation.quadratic import best_pairwise_allocation
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.criteria.choices import ChoiceHarms, PairHarms
from mixqvit.criteria.criterion import Search
from mixqvit.network.layers import Layer

__all__ = ["search"]

_Solver = Callable[[Sequence[Layer], ChoiceHarms, PairHarms, Budget, Storage, Restrictions], Allocation]

_SOLVERS: Mapping[Search, _Solver] = {
    Search.EXACT: lambda layers, harms, pairs, *asked: best_allocation(layers, harms, *asked),
    Search.PAIRWISE: best_pairwise_allocation,
    Search.UNIFORM: lambda layers, harms, pairs, *asked: uniform_allocation(layers, harms, *asked),
}


def search(
    kind: Search,
    layers: Sequence[Layer],
    harms: ChoiceHarms,
    pairs: PairHarms,
    budget: Budget,
    storage: Storage,
    restrictions: Restrictions,
) -> Allocation:
    """Return the bits that a kind of search finds within a budget.

    Args:
        kind: How.
        layers: The table of layers.
        harms: Of every choice of every layer.
        pairs: What two layers do together beyond that; for a pairwise search.
        budget: Ceilings.
        storage: What the size of a packed model depends on beside its layers.
        restrictions: What is demanded of single layers and kinds.

    Raises:
        InfeasibleBudgetError: Nothing fits; the message says what would, and which restriction is to blame.
        AllocationError: No ceiling is given, or a number is not usable.
        BitWidthError: A bit-width or layer name is not possible.
    """
    return _SOLVERS[kind](layers, harms, pairs, budget, storage, restrictions)
