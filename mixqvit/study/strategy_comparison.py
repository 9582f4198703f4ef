"""Does the criterion matter? All allocation strategies side by side, within the same budget, measured."""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mixqvit.errors import AllocationError, InfeasibleBudgetError, UnsupportedOperationError
from mixqvit.records import Progress, StrategyComparison, StrategyResult
from mixqvit.strategies import STRATEGIES

if TYPE_CHECKING:
    from mixqvit.study import Study

__all__ = ["compare_strategies_steps"]

_PARTS = 100  # what one stage of the comparison counts in the progress


def compare_strategies_steps(
    study: "Study", strategies: Sequence[str] = tuple(STRATEGIES), **request: Any
) -> Iterator[Progress]:
    """Score, solve and measure one strategy after the other; every `result` is a `StrategyComparison` so far.

    All pieces are saved by the study.

    Args:
        study: The open study.
        strategies: Which of `STRATEGIES`.
        request: The keywords of `Study.allocate`, without `strategy`.

    Raises:
        InfeasibleBudgetError, AllocationError: No strategy can meet the budget.
    """
    comparison = StrategyComparison({})
    total, finished = 2 * _PARTS * len(strategies), 0

    def forwarded(steps: Iterator[Progress], name: str) -> Generator[Progress, None, Any]:
        """Report a stage as a part of the comparison; returns its last result."""
        nonlocal finished
        for step in steps:
            done = finished + _PARTS * step.done // max(1, step.total)
            yield Progress(done, total, f"{name}: {step.doing}", comparison)
        finished += _PARTS
        return step.result

    yield from (replace(step, result=None) for step in study.calibration_steps())
    tied, gamma = request.get("tied", True), request.get("gamma", 1.0)
    yield from (replace(step, result=None) for step in study.score_steps("sensitivity", tied))  # the common yardstick
    for name in strategies:
        before = finished
        try:
            yield from forwarded(study.score_steps(name, tied, gamma), name)
            started = time.perf_counter()
            allocation = study.allocate(**request, strategy=name)
            seconds = time.perf_counter() - started
        except (UnsupportedOperationError, AllocationError) as error:
            if isinstance(error, InfeasibleBudgetError) and name != "uniform":
                raise
            comparison = replace(comparison, refused={**comparison.refused, name: str(error)})
            total, finished = total - 2 * _PARTS, before
            continue
        measured = yield from forwarded(study.evaluate_steps(allocation), name)
        found = StrategyResult(
            allocation,
            study.predicted_harm(allocation.bits, tied),
            measured,
            study.score_seconds(name, tied),
            seconds,
        )
        comparison = replace(comparison, results={**comparison.results, name: found})
    if not comparison.results:
        raise AllocationError(next(iter(comparison.refused.values()), "Name at least one strategy to compare."))
    yield Progress(total, total, "comparison", comparison)
