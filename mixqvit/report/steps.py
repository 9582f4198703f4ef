"""From an open study to its report."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mixqvit.allocation.budget import Budget, largest_uniform
from mixqvit.allocation.costs import cost
from mixqvit.allocation.request import Request
from mixqvit.criteria.registry import WITHOUT_IMPORTANCE
from mixqvit.engines.progress import Progress
from mixqvit.errors import AllocationError, UnsupportedOperationError
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, BitsPerLayer
from mixqvit.report.files import Report, bundle, document_of, page_of
from mixqvit.report.findings import Findings
from mixqvit.report.sections import sections
from mixqvit.study.composite import awaited, without_results
from mixqvit.study.records import FrontierPoint

if TYPE_CHECKING:
    from mixqvit.study.study import Study

__all__ = ["report_steps"]


def report_steps(
    study: "Study",
    bits: BitsPerLayer | None = None,
    average_bits: float = 4.0,
    comparisons: bool = False,
    name: str | None = None,
) -> Iterator[Progress]:
    """Compute what a report needs and is not saved yet; the last result is the `Report`.

    Args:
        study: The open study.
        bits: The allocation to report; by default the best one within `average_bits`.
        average_bits: The budget, where no bits are given.
        comparisons: Whether to compare strategies and kinds of importance too, within the average bits of the
            allocation; this takes longer.
        name: What the study is called; its model's name by default.

    Raises:
        InfeasibleBudgetError, AllocationError: The budget is not possible.
        BitWidthError: A bit-width or layer name is not possible.
    """
    importance, refused = None, ""
    yield from without_results(study.evaluate_steps(FULL_PRECISION))
    try:
        importance = yield from awaited(study.relevance_steps())
    except UnsupportedOperationError as error:
        refused = str(error)
    yield from without_results(study.sensitivity_steps())
    yield from without_results(study.channels.statistics_steps())
    request, is_given = Request(Budget(average_bits=average_bits)), bits is not None
    if importance is None:
        request = replace(request, strategy=WITHOUT_IMPORTANCE)
    if bits is None:
        bits = study.allocate(request).bits
        how = (
            f"The best bits by {request.strategy} within {average_bits:g} average bits and the BitOps of uniform bits."
        )
    else:
        bits = study.resolved(bits)
        how = "These bits were given, e.g. by an allocation file."
        given = cost(study.layers, bits, study.storage).average_bits
        request = request.changed(average_bits=min(math.ceil(given * 100) / 100, BIT_WIDTHS[-1]))
    settings: dict[str, Any] = {"full precision": study.resolved(FULL_PRECISION), "mixed": bits}
    width = largest_uniform(study.layers, request.budget, study.storage, BIT_WIDTHS) or BIT_WIDTHS[0]
    settings[f"uniform {width} bits"] = study.resolved(width)
    measured = {}
    for title, chosen in settings.items():
        yield from without_results(study.evaluate_steps(chosen))
        measured[title] = study.evaluate(chosen)
    points: Sequence[FrontierPoint] = ()
    with suppress(AllocationError):  # nothing fits any budget
        points = yield from awaited(study.frontier_steps(request))
    compared, methods = None, None
    if comparisons:
        compared = yield from awaited(study.compare_strategies_steps(request=request))
        methods = yield from awaited(study.method_comparison_steps(request.budget.average_bits))
    costs = {title: cost(study.layers, chosen, study.storage) for title, chosen in settings.items()}
    found = Findings(bits, how, request, is_given, measured, costs, importance, refused, points, compared, methods)
    title = name or study.model.name
    parts = sections(study, found)
    document = document_of(title, study, found, asdict(study.settings))
    report = Report(title, page_of(title, parts), bundle(parts, document))
    yield Progress(1, 1, "report", report)
