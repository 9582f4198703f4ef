"""What the criteria of a study have to know about the layers: everything that scores them, as stages."""

from collections.abc import Iterator, Sequence
from typing import Any

from mixqvit.allocation.request import Request, as_request
from mixqvit.criteria.sensitivity.harms import sweeps
from mixqvit.engines.progress import Progress
from mixqvit.stages import runner
from mixqvit.stages.stage import Stage
from mixqvit.study.part import Part

__all__ = ["Scores"]


class Scores(Part):
    """Which stages each strategy needs, how far they are, and what they take.

    A strategy is given as a request, of which strategy, γ and whether bits are tied count; or as one of `strategies`,
    with keywords as for `allocate`.
    """

    def stages(self, strategy: Request | str | None = None, **keywords: Any) -> Sequence[Stage]:
        """Return the stages that a strategy needs, in the order they are computed.

        Raises:
            AllocationError: The strategy is unknown, or cannot choose bits independently.
        """
        request = _scored(strategy, keywords)
        request.check()
        return request.criterion.needs(self.study, request)

    def steps(self, strategy: Request | str | None = None, **keywords: Any) -> Iterator[Progress]:
        """Compute what a strategy has to know about the layers; everything that is missing, piece by piece.

        Args:
            strategy: A request, of which strategy, γ and whether bits are tied count; or one of `strategies`.
            keywords: What else is requested, as for `allocate`.

        Raises:
            AllocationError: The strategy is unknown, or cannot choose bits independently.
            UnsupportedOperationError: It needs relevance, and the model has an operation without a rule.
        """
        request = _scored(strategy, keywords)
        yield from runner.ready(self.study, self.stages(request))
        yield Progress(1, 1, f"scores for {request.strategy}", request.strategy)

    def yardstick_steps(self, tied: bool = True) -> Iterator[Progress]:
        """Compute Λ, which the bits of all strategies are compared by."""
        yield from runner.ready(self.study, sweeps(self.study, tied))
        yield Progress(1, 1, "sensitivity", stage="sensitivity")

    def seconds(self, strategy: Request | str | None = None, **keywords: Any) -> float:
        """Return the computing time in seconds of what `steps` computed, calibration aside, over all sessions."""
        return sum(runner.seconds_spent(self.study, stage) for stage in self.stages(strategy, **keywords))

    def estimate(self, strategy: Request | str | None = None, **keywords: Any) -> float:
        """Return about how many seconds what `steps` has left takes here, from a timed run of a few images.

        Stages of which nobody has measured what they take are not counted.
        """
        stages = self.stages(strategy, **keywords)
        return sum(stage.seconds_left(self.study) or 0.0 for stage in stages)


def _scored(strategy: Request | str | None, keywords: dict[str, Any]) -> Request:
    return as_request(strategy=strategy, **keywords) if isinstance(strategy, str) else as_request(strategy, **keywords)
