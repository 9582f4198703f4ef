"""Does the criterion matter? All allocation strategies side by side, within the same budget, measured."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mixqvit.criteria.strategies import STRATEGIES
from mixqvit.errors import AllocationError, InfeasibleBudgetError, UnsupportedOperationError
from mixqvit.progress import Progress
from mixqvit.study.parts import PART, Parts
from mixqvit.study.records import StrategyComparison, StrategyResult

if TYPE_CHECKING:
    from mixqvit.allocation.budget import Allocation
    from mixqvit.study.study import Study

__all__ = ["compare_strategies_steps"]


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
    parts = Parts(2 * len(strategies), lambda: comparison)
    yield from (replace(step, result=None) for step in study.calibration_steps())
    tied, gamma = request.get("tied", True), request.get("gamma", 1.0)
    yield from (replace(step, result=None) for step in study.score_steps("sensitivity", tied))  # the common yardstick
    if not study.engine.is_here:
        allocations = yield from _allocations(study, strategies, request)
        yield from (replace(step, result=None) for step in study.evaluations_steps(allocations))
    for name in strategies:
        before = parts.finished
        try:
            yield from parts.forwarded(study.score_steps(name, tied, gamma), name)
            started = time.perf_counter()
            allocation = study.allocate(**request, strategy=name)
            seconds = time.perf_counter() - started
        except (UnsupportedOperationError, AllocationError) as error:
            if isinstance(error, InfeasibleBudgetError) and name != "uniform":
                raise
            comparison = replace(comparison, refused={**comparison.refused, name: str(error)})
            parts.total, parts.finished = parts.total - 2 * PART, before
            continue
        measured = yield from parts.forwarded(study.evaluate_steps(allocation), name)
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
    yield Progress(parts.total, parts.total, "comparison", comparison)


def _allocations(
    study: "Study", strategies: Sequence[str], request: Mapping[str, Any]
) -> Generator[Progress, None, list["Allocation"]]:
    """Score and solve all strategies, so that an engine can measure them side by side; leave out those refused."""
    found = []
    for name in strategies:
        with suppress(UnsupportedOperationError, AllocationError):
            steps = study.score_steps(name, request.get("tied", True), request.get("gamma", 1.0))
            yield from (replace(step, result=None) for step in steps)
            found.append(study.allocate(**request, strategy=name))
    return found
