"""From options of the command line to an open study, and its stages run to their end."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixqvit.allocation.quantities import QUANTITIES
from mixqvit.allocation.request import Request
from mixqvit.commands.paths import path_of
from mixqvit.criteria.registry import WITHOUT_IMPORTANCE
from mixqvit.engines.choice import EngineChoice, find_engine
from mixqvit.errors import AllocationFileError, BitWidthError, ImageError, ModelError, UnsupportedOperationError
from mixqvit.files.allocation_document import bits_of, read_allocation, settings_of
from mixqvit.images.sources.factory import is_path
from mixqvit.models.sources.factory import find_source
from mixqvit.network.bits import WIDTHS_TEXT, Bits, read_bits
from mixqvit.stages.store import Store
from mixqvit.study.library import StudyDescription, known_studies

if TYPE_CHECKING:
    from mixqvit.engines.progress import Progress
    from mixqvit.network.bits import BitsPerLayer
    from mixqvit.study.study import Study

__all__ = [
    "absolute_images",
    "allocation_request",
    "description_of",
    "finish",
    "has_ceiling",
    "opened",
    "say_notes",
    "score",
    "study",
    "study_of_allocation",
]

SECONDS_BETWEEN_LINES = 5
"""Between lines of progress where standard error is no terminal, such as a log."""


def study(options: argparse.Namespace) -> "Study":
    """Open the study that the options name."""
    from mixqvit.files.open_studies import open_study_steps, settings_from

    description = description_of(options)
    chosen = {name: getattr(options, name) for name in ("importance", "metric", "baseline") if hasattr(options, name)}
    settings = settings_from(description, outlier_factor=options.outliers, **chosen)
    return opened(_on_engine(finish(open_study_steps(description, settings)), options), options)


def study_of_allocation(options: argparse.Namespace, path: str) -> tuple["Study", "BitsPerLayer"]:
    """Open the study that an allocation file was made with; model, checkpoint and images may be given beside it."""
    from mixqvit.files.open_studies import open_study_steps

    if options.outliers != 1:
        raise AllocationFileError("--outliers cannot be changed beside an allocation file, which says it.")
    document = read_allocation(path)
    if not options.checkpoint:
        options.model = options.model or document["model"]
    description = description_of(options)
    settings = replace(settings_of(document, str(path)), **description.settings)
    study = opened(_on_engine(finish(open_study_steps(description, settings)), options), options)
    return study, study.resolved(bits_of(document, str(path)))


def opened(study: "Study", options: argparse.Namespace) -> "Study":
    """Return the study that a command works with; its notes are said, now and before the results."""
    options.opened = study
    say_notes(options)
    return study


def say_notes(options: argparse.Namespace) -> None:
    """Print the notes of the opened study on standard error, each once."""
    notes = options.opened.notes
    if os.environ.get("RANK", "0") == "0":  # of processes that were launched together, one speaks
        for note in notes:
            if note not in options.said:
                print(note, file=sys.stderr, flush=True)
    options.said = notes


def _on_engine(study: "Study", options: argparse.Namespace) -> "Study":
    return study.with_engine(find_engine(EngineChoice(options.engine, options.workers, options.address)))


def description_of(options: argparse.Namespace) -> StudyDescription:
    """Return what the study is made of that the options name.

    Raises:
        ModelError: No model is named, or files beside a saved study.
        ImageError: A value of the preprocessing is not possible.
    """
    if not options.model and not options.checkpoint:
        raise ModelError("Say which model it is, e.g. --model digits_vit; `models` lists those that are here.")
    settings = {
        "evaluation_images": options.evaluation_images,
        "sampling_seed": options.sampling_seed,
        "label_order": options.label_order,
        "within_classes": options.within_classes or None,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    preprocessing = _preprocessing(options.preprocessing)
    saved = known_studies(Store()).get(options.model)
    if saved is None:
        source = find_source(options.model or None, options.checkpoint or None)
        source, images = source.located(lambda path: path_of(path).resolve()), absolute_images(options.images)
        return StudyDescription(
            source.model, source.checkpoint, images, preprocessing, settings, follow_links=images is not None
        )
    if options.checkpoint or options.images or preprocessing:
        raise ModelError(
            f"{options.model} is a saved study, which has its checkpoint, images and preprocessing. Leave those "
            "options out, or name the model itself."
        )
    return replace(saved, settings={**saved.settings, **settings})


def absolute_images(source: str | None) -> str | None:
    """Return a path of images as it means the same from every folder; what is no path or not there stays."""
    return str(Path(source).resolve()) if source and is_path(source) and Path(source).exists() else source


def _preprocessing(texts: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            if name in ("mean", "std"):
                found[name] = tuple(float(part) for part in value.split(","))
            else:
                found[name] = float(value) if name == "crop_pct" else value
        except ValueError as error:
            example = "mean=0.5,0.5,0.5"
            raise ImageError(f"--preprocessing is written NAME=VALUE, e.g. {example}, not {text!r}.") from error
    return found


def score(study: "Study", request: Request) -> None:
    """Compute what the strategy of a request has to know of all layers.

    Raises:
        UnsupportedOperationError: The model has no relevance and the strategy needs it; or another score is refused.
    """
    try:
        finish(study.score_steps(request))
    except UnsupportedOperationError as error:
        if not request.criterion.has_gamma:
            raise
        raise UnsupportedOperationError(
            f"{error} Strategy {request.strategy} needs importance by relevance; `allocate --strategy "
            f"{WITHOUT_IMPORTANCE}` chooses bits without it, and is as exact."
        ) from error


def has_ceiling(options: argparse.Namespace) -> bool:
    """Return whether the options give a budget."""
    return any(getattr(options, one.shown_name) is not None for one in QUANTITIES.values())


def allocation_request(options: argparse.Namespace) -> Request:
    """Return what the options ask for.

    Raises:
        AllocationError: A ceiling is no positive number.
        BitWidthError: A restriction is not written as it must be, or a bit-width does not exist.
    """
    given = {name: getattr(options, one.shown_name) for name, one in QUANTITIES.items()}
    return Request().changed(
        **{name: QUANTITIES[name].from_shown(number) for name, number in given.items() if number is not None},
        cap_bitops=not options.no_bitops_cap,
        strategy=options.strategy,
        gamma=options.gamma,
        tied=not options.independent,
        seed=options.seed,
        pinned=_bits_by_name(options.pin, "--pin", "head=8, or head=4/8 for weights and input"),
        at_least=_bits_by_name(options.at_least, "--at-least", "head=4"),
        at_most=_bits_by_name(options.at_most, "--at-most", "head=6"),
        allowed=dict(_widths(text) for text in options.allow),
    )


def _bits_by_name(texts: list[str], option: str, example: str) -> dict[str, int | Bits]:
    found = {}
    for text in texts:
        name, _, bits = text.rpartition("=")
        if not name:
            raise BitWidthError(f"{option} is written LAYER=BITS, e.g. {example}, not {text!r}.")
        found[name] = _read(bits, f"{option} {text}")
    return found


def _widths(text: str) -> tuple[str, tuple[int | Bits, ...]]:
    kind, _, widths = text.partition("=")
    if not widths:
        raise BitWidthError(f"--allow is written KIND=BITS,BITS, e.g. fc1=4,8, not {text!r}.")
    return kind, tuple(_read(part, f"--allow {text}") for part in widths.split(","))


def _read(text: str, where: str) -> int | Bits:
    found = read_bits(text)
    if found is None:
        raise BitWidthError(f"{text!r} bits are not possible in {where}: use {WIDTHS_TEXT}.")
    return found


def finish(steps: "Iterator[Progress]") -> Any:
    """Run a stage to its end; progress on standard error is a bar on a terminal, otherwise a line now and then."""
    from tqdm import tqdm

    result, is_terminal, said = None, sys.stderr.isatty(), time.monotonic()
    bar_format = "{l_bar}{bar}| {elapsed} < {remaining} {postfix}"
    with tqdm(disable=not is_terminal, file=sys.stderr, bar_format=bar_format) as bar:
        for step in steps:
            bar.total = step.total
            bar.set_postfix_str(step.doing, refresh=False)
            bar.update(step.done - bar.n)
            result = step.result
            if not is_terminal and time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                print(f"{int(step.done)} of {step.total}: {step.doing}", file=sys.stderr, flush=True)
    return result
