"""A study: one model, its images and settings. It ties the stages together and saves every finished piece.

Every long stage is a generator of `Progress`; started again, it goes on from what is saved. Results leave a study as
numbers and NumPy arrays, so that pages and the command line need no torch.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property

from mixqvit.allocation import Allocation, Budget, allocate, bitops_ceiling, largest_uniform, predicted_harm
from mixqvit.bits import BIT_WIDTHS, Bits, resolve_bits
from mixqvit.costs import cost
from mixqvit.records import ImageRelevance, Importance, Progress, Settings
from mixqvit.study.channels import ChannelStudy
from mixqvit.study.evaluation import EvaluationStages
from mixqvit.study.method_comparison import compare_methods_steps
from mixqvit.study.relevance import RelevanceStages

__all__ = ["ImageRelevance", "Importance", "Progress", "Settings", "Study"]


class Study(RelevanceStages, EvaluationStages):
    """Everything about one model on its images under one set of settings.

    Results are kept in memory after the first use and never changed, so one study can serve several browser sessions.
    """

    def allocate(
        self,
        average_bits: float | None = None,
        size_bytes: int | None = None,
        bitops: float | None = None,
        cap_bitops: bool = True,
        gamma: float = 1.0,
        pinned: Mapping[str, int | Bits] | None = None,
        importance: Mapping[str, float] | None = None,
        sensitivity: Mapping[str, Mapping[int, float]] | None = None,
    ) -> Allocation:
        """Return the best allocation within the given ceilings; arguments and errors as in `allocation.allocate`.

        Importance and sensitivity are the study's own unless given; they are computed first where they are missing.
        With γ = 0 importance is not needed.
        """
        budget = Budget(average_bits, size_bytes, bitops, cap_bitops)
        return allocate(
            self.layers,
            self.sensitivity() if sensitivity is None else sensitivity,
            budget,
            self.storage,
            self._importance(gamma) if importance is None else importance,
            gamma,
            pinned,
        )

    def uniform(self, bits: int, gamma: float = 1.0) -> Allocation:
        """Return the uniform allocation at `bits` with its cost and predicted harm."""
        return self.allocation(resolve_bits(self.layers, bits), gamma)

    def allocation(self, bits: Mapping[str, int | Bits], gamma: float = 1.0) -> Allocation:
        """Return any bits per layer as an allocation with its cost and predicted harm."""
        resolved = resolve_bits(self.layers, bits)
        harm = predicted_harm(self.layers, resolved, self.sensitivity(), self._importance(gamma), gamma)
        return Allocation(resolved, harm, cost(self.layers, resolved, self.storage))

    def uniform_beside(self, budget: Budget, gamma: float = 1.0) -> Allocation | None:
        """Return the largest uniform allocation within every ceiling of a budget; None if none fits."""
        width = largest_uniform(self.layers, budget, self.storage, BIT_WIDTHS)
        return None if width is None else self.uniform(width, gamma)

    def _importance(self, gamma: float) -> Mapping[str, float] | None:
        return None if gamma == 0 else self.relevance().mean

    def bitops_ceiling(self, budget: Budget) -> float | None:
        """Return the BitOps that a budget allows; None for any number."""
        return bitops_ceiling(self.layers, budget)

    def method_comparison_steps(self, average_bits: float) -> Iterator[Progress]:
        """Compare all kinds of importance at one budget; every `result` is a `MethodComparison` so far.

        Raises:
            InfeasibleBudgetError, AllocationError: The budget is not possible.
        """
        return compare_methods_steps(self, average_bits)

    @cached_property
    def channels(self) -> ChannelStudy:
        """The channels of post-LayerNorm inputs: which are outliers, and what quantization makes of them."""
        return ChannelStudy(self.graph, self._calibration_pixels, self.evaluation_images)
