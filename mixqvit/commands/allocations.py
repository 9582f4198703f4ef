"""Commands that choose bits and measure them: allocate, strategies, frontier, evaluate, pack."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixqvit.commands.printing import Document, measured_columns, notice, percent, table
from mixqvit.commands.studies import allocation_request, finish, has_ceiling, score, study_of_allocation
from mixqvit.commands.studies import study as open_study
from mixqvit.errors import AllocationError, AllocationFileError, BitWidthError, CalibrationError
from mixqvit.files.allocation_document import allocation_document
from mixqvit.files.documents import measurement

if TYPE_CHECKING:
    from mixqvit.allocation.budget import Allocation
    from mixqvit.allocation.request import Request
    from mixqvit.network.bits import BitsPerLayer
    from mixqvit.study.study import Study

__all__ = ["allocate", "chosen_setting", "evaluate", "frontier", "pack", "strategies"]

_SIZE_PARTS = {
    "weight_bytes": "weight codes",
    "scale_bytes": "scales and zero points",
    "full_precision_bytes": "full precision (float32)",
    "container_bytes": "header and table of bits",
}


def allocate(options: argparse.Namespace) -> tuple[Document, str]:
    """Solve for the best bits, show them beside uniform ones, and write the allocation file if asked to."""
    study = open_study(options)
    request = allocation_request(options)
    allocation = _allocation(study, request)
    # The predicted harm of every strategy is that of the measured sensitivity.
    finish(study.scores.yardstick_steps(request.tied))
    beside = study.uniform_beside(allocation.budget, *request.yardstick)
    document = _asked(study, request) | {"budget": allocation.budget.to_json(), "gap": allocation.gap}
    mixed = replace(study.allocation(allocation.bits, *request.yardstick), budget=allocation.budget)
    document |= {"allocation": _describe(study, mixed, options.evaluate)}
    document["uniform"] = None if beside is None else _describe(study, beside, options.evaluate)
    if options.output is not None:
        measured = study.saved_evaluation(allocation) if options.evaluate else None
        written = allocation_document(study.model.name, study.settings, allocation, request, measured, study.notes)
        _write(options.output, json.dumps(written, indent=2) + "\n")
    bits = [(name, *pair) for name, pair in allocation.bits.items()]
    summary = [_summary("mixed", document["allocation"])]
    if beside is not None:
        summary.append(_summary(f"uniform {min(pair[0] for pair in beside.bits.values())}", document["uniform"]))
    columns = ("", "predicted harm", "size MB", "BitOps G", "average bits", "top-1", "agreement", "KL")
    return document, f"{table(('layer', 'weight bits', 'activation bits'), bits)}\n\n{table(columns, summary)}"


def strategies(options: argparse.Namespace) -> tuple[Document, str]:
    """Measure every strategy within one budget."""
    study = open_study(options)
    request = allocation_request(options)
    found = finish(study.compare_strategies_steps(request=request))
    document = _asked(study, request, "strategy")
    document["strategies"] = {
        name: {
            "description": study.strategies[name],
            "bits": {layer: list(pair) for layer, pair in result.allocation.bits.items()},
            "objective": result.allocation.harm,
            "gap": result.allocation.gap,
            "predicted_harm": result.predicted_harm,
            "cost": asdict(result.allocation.cost) | {"size_bytes": result.allocation.cost.size_bytes},
            "measured": measurement(result.evaluation),
            "score_seconds": result.score_seconds,
            "solve_seconds": result.solve_seconds,
        }
        for name, result in found.results.items()
    }
    document["refused"] = found.refused
    rows = [
        (*_summary(name, described), f"{described['score_seconds']:.1f}", f"{described['solve_seconds']:.3f}")
        for name, described in document["strategies"].items()
    ]
    columns = ("strategy", "predicted harm", "size MB", "BitOps G", "average bits", "top-1", "agreement", "KL")
    refused = "".join(f"\n{name}: {reason}" for name, reason in found.refused.items())
    return document, table((*columns, "score s", "solve s"), rows) + refused


def frontier(options: argparse.Namespace) -> tuple[Document, str]:
    """Solve every budget from 2 to 8 average bits."""
    study = open_study(options)
    request = allocation_request(options)
    score(study, request)
    points = finish(study.frontier_steps(request))
    document = _asked(study, request, "average_bits")
    document["points"] = [
        {"budget": point.average_bits, "feasible": point.allocation is not None}
        | ({} if point.allocation is None else _describe(study, point.allocation, False))
        for point in points
    ]
    rows = [
        (f"{found['budget']:.1f}", *(_summary("", found)[1:5] if found["feasible"] else ("nothing fits", "", "", "")))
        for found in document["points"]
    ]
    return document, table(("budget", "predicted harm", "size MB", "BitOps G", "average bits"), rows)


def pack(options: argparse.Namespace) -> tuple[Document, str]:
    """Write a quantized model as one file."""
    study, setting = chosen_setting(options)
    bits = study.resolved(setting)
    finish(study.calibration_steps())
    found = study.pack(bits, options.output)
    size = {name: getattr(found, name) for name in (*_SIZE_PARTS, "size_bytes")}
    document = {"model": study.model.name, "settings": asdict(study.settings), "file": str(options.output)}
    document |= {"bits": {name: list(pair) for name, pair in bits.items()}, "size": size}
    rows = [
        (_SIZE_PARTS.get(name, options.output), f"{count:,}", percent(count / found.size_bytes))
        for name, count in size.items()
    ]
    return document, table(("part", "bytes", "share"), rows)


def chosen_setting(options: argparse.Namespace) -> tuple["Study", "Allocation | BitsPerLayer"]:
    """Open the study and return the bits that `--bits`, a budget or `--allocation` asks for.

    Raises:
        AllocationError: None or several of them are given.
    """
    budgeted = has_ceiling(options) or bool(options.pin)
    if (options.bits is not None) + budgeted + (options.allocation is not None) != 1:
        raise AllocationError(
            "Give --bits for uniform bits, a budget such as --average-bits, or --allocation with a file that "
            "`allocate` wrote; one of the three."
        )
    if options.allocation is not None:
        return study_of_allocation(options, options.allocation)
    study = open_study(options)
    if options.bits is not None:
        return study, study.resolved(options.bits)
    return study, _allocation(study, allocation_request(options))


def evaluate(options: argparse.Namespace) -> tuple[Document, str]:
    """Measure uniform bits, an allocation file or a packed file."""
    from mixqvit.quantization.recipes import RECIPES

    if options.recipe is not None and options.recipe not in RECIPES and options.allocation is None:
        notice("--recipe names a quantization recipe; an allocation file is given as --allocation FILE.")
        options.allocation, options.recipe = options.recipe, None
    if sum(one is not None for one in (options.bits, options.allocation, options.packed)) != 1:
        raise BitWidthError(
            "Give --bits, --allocation with a file that `allocate` wrote, or --packed with one that `pack` wrote; one "
            "of the three."
        )
    if options.recipe is not None and options.bits is None:
        raise CalibrationError("--recipe goes with --bits: allocation files and packed files say theirs.")
    if options.packed is not None:
        from mixqvit.packing.model import packed_source

        options.model = options.model or packed_source(options.packed).model
        study = open_study(options)
        steps, what = study.packing.evaluate_steps(options.packed), {"packed": str(options.packed)}
    elif options.bits is not None:
        study = open_study(options)
        recipe = options.recipe or study.settings.recipe
        steps, what = study.evaluate_steps(options.bits, recipe), {"bits": options.bits, "recipe": recipe}
    else:
        study, bits = study_of_allocation(options, options.allocation)
        steps, what = study.evaluate_steps(bits), {"allocation": options.allocation}
    measured = measurement(finish(steps))
    rows = [(*what.values(), *measured_columns(measured), measured["images"])]
    document = {"model": study.model.name, **what, "measured": measured}
    return document, table((*what, "top-1", "agreement", "KL", "images"), rows)


def _asked(study: "Study", request: "Request", *without: str) -> Document:
    """Return what was asked for as a document, without what a command goes through all of."""
    asked = {name: value for name, value in request.to_json().items() if name not in without}
    return {"model": study.model.name, "settings": asdict(study.settings), "request": asked}


def _allocation(study: "Study", request: "Request") -> "Allocation":
    """Return the best allocation that is asked for, with progress."""
    score(study, request)
    return study.allocate(request)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AllocationFileError(f"The allocation cannot be written to {path}: {error.strerror or error}.") from error


def _describe(study: "Study", allocation: "Allocation", measure: bool) -> Document:
    costs = allocation.cost
    document: Document = {
        "bits": {name: list(pair) for name, pair in allocation.bits.items()},
        "predicted_harm": allocation.harm,
        "cost": asdict(costs) | {"size_bytes": costs.size_bytes},
    }
    if measure:
        document["measured"] = measurement(finish(study.evaluate_steps(allocation)))
    return document


def _summary(name: str, described: Mapping[str, Any]) -> tuple[str, ...]:
    costs = described["cost"]
    return (
        name,
        f"{described['predicted_harm']:.3e}",
        f"{costs['size_bytes'] / 1e6:.3f}",
        f"{costs['bitops'] / 1e9:.4f}",
        f"{costs['average_bits']:.3f}",
        *measured_columns(described.get("measured")),
    )
