"""A study: one model, its images and settings. It ties the stages together and saves every finished piece.

Every long stage is a generator of `Progress`; started again, it goes on from what is saved. Results leave a study as
numbers and NumPy arrays, so that pages and the command line need no torch.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from mixqvit.allocation.request import Request, as_request
from mixqvit.criteria.strategies import STRATEGIES
from mixqvit.progress import Progress
from mixqvit.relevance.records import ImageRelevance, Importance
from mixqvit.study.channels import ChannelStudy
from mixqvit.study.estimate import Estimate, estimate
from mixqvit.study.method_comparison import compare_methods_steps
from mixqvit.study.settings import Settings
from mixqvit.study.strategy_comparison import compare_strategies_steps
from mixqvit.study.training import TrainingStages

__all__ = ["ImageRelevance", "Importance", "Progress", "Settings", "Study"]


class Study(TrainingStages):
    """Everything about one model on its images under one set of settings.

    Results are kept in memory after the first use and never changed, so one study can serve several browser sessions.
    """

    def method_comparison_steps(self, average_bits: float) -> Iterator[Progress]:
        """Compare all kinds of importance at one budget; every `result` is a `MethodComparison` so far.

        Raises:
            InfeasibleBudgetError, AllocationError: The budget is not possible.
        """
        return compare_methods_steps(self, average_bits)

    def compare_strategies_steps(
        self, strategies: Sequence[str] = tuple(STRATEGIES), request: Request | None = None, **keywords: Any
    ) -> Iterator[Progress]:
        """Compare allocation strategies within one budget; every `result` is a `StrategyComparison` so far.

        Args:
            strategies: Which of `strategies`.
            request: What is asked of all of them.
            keywords: As for `allocate`.

        Raises:
            InfeasibleBudgetError, AllocationError: The budget is not possible.
        """
        return compare_strategies_steps(self, as_request(request, **keywords), strategies)

    def estimate(self) -> Estimate | None:
        """Return how long what is left to compute will take here, from a timed run of a few images; None on a GPU."""
        return estimate(self)

    @cached_property
    def channels(self) -> ChannelStudy:
        """The channels of post-LayerNorm inputs: which are outliers, and what quantization makes of them."""
        return ChannelStudy(self.graph, self.calibration_pixels, self.evaluation_images)
