"""The command that writes a quantized model, or its bits, for other programs."""

import argparse
from dataclasses import asdict, replace
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

from mixqvit.commands.allocations import chosen_setting
from mixqvit.commands.options import add_allocation_file
from mixqvit.commands.paths import path_of
from mixqvit.commands.printing import Document, notice, percent, table
from mixqvit.commands.studies import allocation_request, finish
from mixqvit.errors import ExportError, UnsupportedOperationError
from mixqvit.files.allocation_document import allocation_document
from mixqvit.files.export.formats import FORMATS, Exported, exported, find_format

if TYPE_CHECKING:
    from mixqvit.allocation.budget import Allocation
    from mixqvit.network.bits import BitsPerLayer
    from mixqvit.study.study import Study

__all__ = ["CHECKED_IMAGES", "DESCRIPTION", "add_export", "export"]

DESCRIPTION = "write a quantized model or its bits for other programs: ONNX, torchao, ModelOpt, Model Explorer"

CHECKED_IMAGES = 256
"""Evaluation images that `--check` runs, at most."""


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export` beside those of a study and of a budget."""
    formats = "; ".join(f"{one.name}: {one.title}" for one in FORMATS.values())
    parser.add_argument("--format", type=_format_name, choices=list(FORMATS), required=True, help=formats)
    parser.add_argument("--bits", type=int, help="the same bits for every layer: 2 to 8, or 32 for full precision")
    add_allocation_file(parser)
    parser.add_argument(
        "--output",
        type=path_of,
        required=True,
        metavar="FILE",
        help="the file to write; overlays of Model Explorer become several, FILE without its ending in front of each",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"run the ONNX model with onnxruntime on at most {CHECKED_IMAGES} evaluation images",
    )


def export(options: argparse.Namespace) -> tuple[Document, str]:
    """Write a quantized model or its bits for another program, and say what that program cannot do with them.

    Raises:
        ExportError: The format cannot hold this model, or the file cannot be written.
    """
    from mixqvit.files.export.library_config import write_file

    if options.check and options.format != "onnx":
        raise ExportError("--check runs an ONNX model; give it with --format onnx.")
    study, setting = chosen_setting(options)
    bits = study.resolved(setting)
    is_own = options.format == "allocation"
    found = _allocation_file(study, setting, options) if is_own else _exported(study, bits, options)
    files = {}
    for path, content in _paths(options, found):
        write_file(content, path)
        files[str(path)] = len(content)
    document: Document = {"model": study.model.name, "settings": asdict(study.settings), "format": options.format}
    document |= {"files": [{"file": name, "bytes": size} for name, size in files.items()]}
    document |= {"bits": {name: list(pair) for name, pair in bits.items()}, "notes": list(found.notes)}
    parts = [table(("file", "bytes"), [(name, f"{size:,}") for name, size in files.items()])]
    if found.opset is not None:
        document |= {"opset": found.opset, "stored_bits": dict(found.stored_bits)}
        parts.append(f"opset {found.opset}\n\n{_stored_widths(bits, found.stored_bits)}")
    if options.check:
        document["check"] = _check(study, bits, found)
        parts.append(_check_words(document["check"]))
    if found.notes:
        parts.append("\n".join(f"- {note}" for note in found.notes))
    return document, "\n\n".join(parts)


def _format_name(text: str) -> str:
    if text != "recipe":
        return text
    notice("--format recipe is --format allocation now: the file holds an allocation.")
    return "allocation"


def _allocation_file(study: "Study", setting: "Allocation | BitsPerLayer", options: argparse.Namespace) -> Exported:
    """Return this program's own allocation file."""
    from mixqvit.allocation.budget import Allocation
    from mixqvit.allocation.costs import cost
    from mixqvit.files.export.library_config import json_content

    if isinstance(setting, Allocation):
        allocation, request = setting, allocation_request(options)
    else:
        allocation, request = Allocation(setting, nan, cost(study.layers, setting, study.storage)), None
    document = allocation_document(study.model.name, study.settings, allocation, request, notes=study.notes)
    return Exported({FORMATS["allocation"].suffix: json_content(document)})


def _exported(study: "Study", bits: "BitsPerLayer", options: argparse.Namespace) -> Exported:
    """Compute what the format needs, with progress, and export."""
    importance, notes = None, ()
    if options.format == "onnx":
        finish(study.calibration_steps())
    elif options.format == "model-explorer":
        finish(study.sensitivity_steps())
        try:
            importance = finish(study.relevance_steps()).mean
        except UnsupportedOperationError as error:
            notes = (str(error),)
    found = exported(study, bits, options.format, importance)
    return replace(found, notes=(*found.notes, *notes))


def _paths(options: argparse.Namespace, found: Exported) -> list[tuple[Path, bytes]]:
    if len(found.files) == 1:
        return [(options.output, content) for content in found.files.values()]
    stem = options.output.stem if options.output.suffix == find_format(options.format).suffix else options.output.name
    return [(options.output.with_name(f"{stem}{ending}"), content) for ending, content in found.files.items()]


def _stored_widths(bits: "BitsPerLayer", stored: dict[str, int]) -> str:
    counts: dict[tuple[int, int], int] = {}
    for name, width in stored.items():
        pair = (bits[name][0], width)
        counts[pair] = counts.get(pair, 0) + 1
    return table(("weight bits", "stored at", "layers"), [(*pair, count) for pair, count in sorted(counts.items())])


def _check(study: "Study", bits: "BitsPerLayer", found: Exported) -> Document:
    from mixqvit.files.export.onnx_check import check_onnx

    pixels = study.evaluation_images.pixels[:CHECKED_IMAGES]
    checked = check_onnx(found.files[FORMATS["onnx"].suffix], study.packing.quantized(bits), pixels)
    return {
        "images": checked.images,
        "agreement": checked.agreement,
        "correlation": checked.correlation,
        "seconds_per_image": checked.seconds,
        "full_precision_seconds_per_image": checked.full_precision_seconds,
        "speed_ratio": checked.full_precision_seconds / checked.seconds,
    }


def _check_words(checked: Document) -> str:
    milliseconds = (1000 * checked[name] for name in ("seconds_per_image", "full_precision_seconds_per_image"))
    quantized, full = milliseconds
    rows = [
        (
            checked["images"],
            percent(checked["agreement"]),
            f"{checked['correlation']:.5f}",
            f"{quantized:.3f}",
            f"{full:.3f}",
            f"{checked['speed_ratio']:.2f}",
        )
    ]
    columns = ("images", "same top-1", "logits correlation", "ms/image", "full precision ms/image", "times as fast")
    return f"onnxruntime beside this program's quantized model\n{table(columns, rows)}"
