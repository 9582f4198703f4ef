"""Does the criterion matter? All allocation strategies side by side, within the same budget, measured."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from mixqvit.allocation.budget import Allocation
from mixqvit.allocation.request import Request
from mixqvit.criteria.registry import CRITERIA
from mixqvit.engines.progress import Progress
from mixqvit.errors import AllocationError, InfeasibleBudgetError, UnsupportedOperationError
from mixqvit.quantization.evaluation_stage import Evaluated
from mixqvit.study.allocation import Allocations
from mixqvit.study.base import StudyBase
from mixqvit.study.composite import Composite, without_results
from mixqvit.study.evaluation import Evaluations
from mixqvit.study.records import StrategyComparison, StrategyResult
from mixqvit.study.scores import Scores

__all__ = ["compare_strategies_steps"]


def compare_strategies_steps(
    study: StudyBase, request: Request, strategies: Sequence[str] = tuple(CRITERIA)
) -> Iterator[Progress]:
    """Score, solve and measure one strategy after the other; every piece is a `StrategyComparison` so far.

    All that it is made of is saved by the study.

    Args:
        study: The open study.
        request: What is asked of all of them.
        strategies: Which of `CRITERIA`.

    Raises:
        InfeasibleBudgetError, AllocationError: No strategy can meet the budget.
    """
    comparison = StrategyComparison({})
    whole = Composite("comparison", 2 * len(strategies), lambda: comparison)
    wanted = [replace(request, strategy=name) for name in strategies]
    scores, evaluations, solver = Scores(study), Evaluations(study), Allocations(study)
    yield from without_results(scores.yardstick_steps(request.tied))
    if not study.engine.is_here:
        allocations = yield from _allocations(study, wanted)
        yield from without_results(evaluations.many_steps(allocations))
    for own in wanted:
        name, before = own.strategy, whole.finished
        try:
            stages = [stage.name for stage in scores.stages(own)]
            yield from whole.part(scores.steps(own), name, stages)
            started = time.perf_counter()
            allocation = solver.allocate(own)
            seconds = time.perf_counter() - started
        except (UnsupportedOperationError, AllocationError) as error:
            if isinstance(error, InfeasibleBudgetError) and own.criterion.is_search:
                raise
            comparison = replace(comparison, refused={**comparison.refused, name: str(error)})
            whole.finished = before
            whole.leave_out(2)
            continue
        measured = yield from whole.part(evaluations.steps(allocation), name, [Evaluated.name])
        found = StrategyResult(
            allocation,
            solver.predicted_harm(allocation.bits, request.tied),
            measured,
            scores.seconds(own),
            seconds,
        )
        comparison = replace(comparison, results={**comparison.results, name: found})
    if not comparison.results:
        raise AllocationError(next(iter(comparison.refused.values()), "Name at least one strategy to compare."))
    yield whole.last()


def _allocations(study: StudyBase, wanted: Sequence[Request]) -> Generator[Progress, None, list[Allocation]]:
    """Score and solve all strategies, so that an engine can measure them side by side; leave out those refused."""
    found = []
    for own in wanted:
        with suppress(UnsupportedOperationError, AllocationError):
            yield from without_results(Scores(study).steps(own))
            found.append(Allocations(study).allocate(own))
    return found
