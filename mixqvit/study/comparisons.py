"""Work of a study that is made of other work: strategies, and kinds of importance, side by side; how long all takes."""

from collections.abc import Iterator, Sequence
from typing import Any

from mixqvit.allocation.request import Request, as_request
from mixqvit.criteria.registry import CRITERIA
from mixqvit.engines.progress import Progress
from mixqvit.study.estimate import Estimate, estimate
from mixqvit.study.method_comparison import compare_methods_steps
from mixqvit.study.part import Part
from mixqvit.study.strategy_comparison import compare_strategies_steps

__all__ = ["Comparisons"]


class Comparisons(Part):
    """What is made of all other parts."""

    def methods_steps(self, average_bits: float) -> Iterator[Progress]:
        """Compare all kinds of importance at one budget; every piece is a `MethodComparison` so far.

        Raises:
            InfeasibleBudgetError, AllocationError: The budget is not possible.
        """
        return compare_methods_steps(self.study, average_bits)

    def strategies_steps(
        self, strategies: Sequence[str] = tuple(CRITERIA), request: Request | None = None, **keywords: Any
    ) -> Iterator[Progress]:
        """Compare allocation strategies within one budget; every piece is a `StrategyComparison` so far.

        Args:
            strategies: Which of `strategies`.
            request: What is asked of all of them.
            keywords: As for `allocate`.

        Raises:
            InfeasibleBudgetError, AllocationError: The budget is not possible.
        """
        return compare_strategies_steps(self.study, as_request(request, **keywords), strategies)

    def estimate(self) -> Estimate | None:
        """Return how long what is left to compute will take here, from a timed run of a few images; None on a GPU."""
        return estimate(self.study)
