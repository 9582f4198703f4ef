"""Bit allocation: which bits every layer gets under a budget (METHOD.md, "Bit allocation")."""

from mixqvit.allocation.budget import Allocation, Budget, bitops_ceiling, largest_uniform
from mixqvit.allocation.choices import (
    ChoiceHarms,
    Harms,
    choices,
    independent_choices,
    monotone_choices,
    monotone_envelope,
    predicted_harm,
    tied_choices,
    total_harm,
    weighted,
)
from mixqvit.allocation.exact import allocate, best_allocation, frontier_steps
from mixqvit.allocation.harms import importance_only, inverse_harms, random_harms
from mixqvit.allocation.near_uniform import uniform_allocation
from mixqvit.allocation.quadratic import PairHarms, PairwiseAllocation, best_pairwise_allocation, pairwise_harm
from mixqvit.allocation.restrictions import Restrictions

__all__ = [
    "Allocation",
    "Budget",
    "ChoiceHarms",
    "Harms",
    "PairHarms",
    "PairwiseAllocation",
    "Restrictions",
    "allocate",
    "best_allocation",
    "best_pairwise_allocation",
    "bitops_ceiling",
    "choices",
    "frontier_steps",
    "importance_only",
    "independent_choices",
    "inverse_harms",
    "largest_uniform",
    "monotone_choices",
    "monotone_envelope",
    "pairwise_harm",
    "predicted_harm",
    "random_harms",
    "tied_choices",
    "total_harm",
    "uniform_allocation",
    "weighted",
]
