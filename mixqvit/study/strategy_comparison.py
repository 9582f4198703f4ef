"""Does the criterion matter? All allocation strategies side by side, within the same budget, measured."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from mixqvit.allocation.request import Request
from mixqvit.criteria.strategies import STRATEGIES, find_strategy
from mixqvit.errors import AllocationError, InfeasibleBudgetError, UnsupportedOperationError
from mixqvit.progress import Progress
from mixqvit.study.parts import PART, Parts
from mixqvit.study.records import StrategyComparison, StrategyResult

if TYPE_CHECKING:
    from mixqvit.allocation.budget import Allocation
    from mixqvit.study.study import Study

__all__ = ["compare_strategies_steps"]


def compare_strategies_steps(
    study: "Study", request: Request, strategies: Sequence[str] = tuple(STRATEGIES)
) -> Iterator[Progress]:
    """Score, solve and measure one strategy after the other; every `result` is a `StrategyComparison` so far.

    All pieces are saved by the study.

    Args:
        study: The open study.
        request: What is asked of all of them.
        strategies: Which of `STRATEGIES`.

    Raises:
        InfeasibleBudgetError, AllocationError: No strategy can meet the budget.
    """
    comparison = StrategyComparison({})
    parts = Parts(2 * len(strategies), lambda: comparison)
    yield from (replace(step, result=None) for step in study.calibration_steps())
    wanted = [replace(request, strategy=name) for name in strategies]
    yardstick = replace(request, strategy="sensitivity")
    yield from (replace(step, result=None) for step in study.score_steps(yardstick))
    if not study.engine.is_here:
        allocations = yield from _allocations(study, wanted)
        yield from (replace(step, result=None) for step in study.evaluations_steps(allocations))
    for own in wanted:
        name, before = own.strategy, parts.finished
        try:
            yield from parts.forwarded(study.score_steps(own), name)
            started = time.perf_counter()
            allocation = study.allocate(own)
            seconds = time.perf_counter() - started
        except (UnsupportedOperationError, AllocationError) as error:
            if isinstance(error, InfeasibleBudgetError) and find_strategy(name).is_search:
                raise
            comparison = replace(comparison, refused={**comparison.refused, name: str(error)})
            parts.total, parts.finished = parts.total - 2 * PART, before
            continue
        measured = yield from parts.forwarded(study.evaluate_steps(allocation), name)
        found = StrategyResult(
            allocation,
            study.predicted_harm(allocation.bits, request.tied),
            measured,
            study.score_seconds(own),
            seconds,
        )
        comparison = replace(comparison, results={**comparison.results, name: found})
    if not comparison.results:
        raise AllocationError(next(iter(comparison.refused.values()), "Name at least one strategy to compare."))
    yield Progress(parts.total, parts.total, "comparison", comparison)


def _allocations(study: "Study", wanted: Sequence[Request]) -> Generator[Progress, None, list["Allocation"]]:
    """Score and solve all strategies, so that an engine can measure them side by side; leave out those refused."""
    found = []
    for own in wanted:
        with suppress(UnsupportedOperationError, AllocationError):
            yield from (replace(step, result=None) for step in study.score_steps(own))
            found.append(study.allocate(own))
    return found
