"""Does the criterion matter? All allocation strategies side by side, within the same budget, measured."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mixqvit.criteria.strategies import STRATEGIES
from mixqvit.errors import AllocationError, InfeasibleBudgetError, UnsupportedOperationError
from mixqvit.progress import Progress
from mixqvit.quantization.evaluation_stage import Evaluated
from mixqvit.study.composite import Composite, without_results
from mixqvit.study.records import StrategyComparison, StrategyResult

if TYPE_CHECKING:
    from mixqvit.allocation.budget import Allocation
    from mixqvit.study.study import Study

__all__ = ["compare_strategies_steps"]


def compare_strategies_steps(
    study: "Study", strategies: Sequence[str] = tuple(STRATEGIES), **request: Any
) -> Iterator[Progress]:
    """Score, solve and measure one strategy after the other; every piece is a `StrategyComparison` so far.

    All that it is made of is saved by the study.

    Args:
        study: The open study.
        strategies: Which of `STRATEGIES`.
        request: The keywords of `Study.allocate`, without `strategy`.

    Raises:
        InfeasibleBudgetError, AllocationError: No strategy can meet the budget.
    """
    comparison = StrategyComparison({})
    whole = Composite("comparison", 2 * len(strategies), lambda: comparison)
    tied, gamma = request.get("tied", True), request.get("gamma", 1.0)
    yield from without_results(study.score_steps("sensitivity", tied))  # the common yardstick
    if not study.engine.is_here:
        allocations = yield from _allocations(study, strategies, request)
        yield from without_results(study.evaluations.many_steps(allocations))
    for name in strategies:
        before = whole.finished
        try:
            stages = [stage.name for stage in study.scores.stages(name, tied, gamma)]
            yield from whole.part(study.score_steps(name, tied, gamma), name, stages)
            started = time.perf_counter()
            allocation = study.allocate(**request, strategy=name)
            seconds = time.perf_counter() - started
        except (UnsupportedOperationError, AllocationError) as error:
            if isinstance(error, InfeasibleBudgetError) and name != "uniform":
                raise
            comparison = replace(comparison, refused={**comparison.refused, name: str(error)})
            whole.finished = before
            whole.leave_out(2)
            continue
        measured = yield from whole.part(study.evaluate_steps(allocation), name, [Evaluated.name])
        found = StrategyResult(
            allocation,
            study.predicted_harm(allocation.bits, tied),
            measured,
            study.scores.seconds(name, tied),
            seconds,
        )
        comparison = replace(comparison, results={**comparison.results, name: found})
    if not comparison.results:
        raise AllocationError(next(iter(comparison.refused.values()), "Name at least one strategy to compare."))
    yield whole.last()


def _allocations(
    study: "Study", strategies: Sequence[str], request: Mapping[str, Any]
) -> Generator[Progress, None, list["Allocation"]]:
    """Score and solve all strategies, so that an engine can measure them side by side; leave out those refused."""
    found = []
    for name in strategies:
        with suppress(UnsupportedOperationError, AllocationError):
            steps = study.score_steps(name, request.get("tied", True), request.get("gamma", 1.0))
            yield from without_results(steps)
            found.append(study.allocate(**request, strategy=name))
    return found
