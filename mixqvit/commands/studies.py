"""From options of the command line to an open study, and its stages run to their end."""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixqvit.engines.choice import EngineChoice, find_engine
from mixqvit.errors import AllocationError, BitWidthError, ImageError, ModelError, RecipeError
from mixqvit.files.allocation_document import read_recipe, recipe_bits, settings_of
from mixqvit.stages.store import Store
from mixqvit.study.library import StudyDescription, known_studies

if TYPE_CHECKING:
    from mixqvit.network.bits import BitsPerLayer
    from mixqvit.progress import Progress
    from mixqvit.study.study import Study

__all__ = ["absolute", "allocation_request", "description_of", "finish", "has_ceiling", "study", "study_of_recipe"]

SECONDS_BETWEEN_LINES = 5
"""Between lines of progress where standard error is no terminal, such as a log."""


def study(options: argparse.Namespace) -> "Study":
    """Open the study that the options name."""
    from mixqvit.study.open_studies import open_study_steps, settings_from

    description = description_of(options)
    names = {"importance": "method", "metric": "metric", "baseline": "baseline"}
    chosen = {name: getattr(options, option) for name, option in names.items() if hasattr(options, option)}
    settings = settings_from(description, outlier_factor=options.outliers, **chosen)
    return _on_engine(finish(open_study_steps(description, settings)), options)


def study_of_recipe(options: argparse.Namespace, path: str) -> tuple["Study", "BitsPerLayer"]:
    """Open the study that a recipe file was made with; model, checkpoint and images may be given beside it."""
    from mixqvit.study.open_studies import open_study_steps

    if options.outliers != 1:
        raise RecipeError("--outliers cannot be changed beside a recipe file: the recipe says it.")
    document = read_recipe(path)
    if not options.checkpoint:
        options.model = options.model or document["model"]
    description = description_of(options)
    settings = replace(settings_of(document, str(path)), **description.settings)
    study = _on_engine(finish(open_study_steps(description, settings)), options)
    return study, study.resolved(recipe_bits(document, str(path)))


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
        "within_classes": options.within_classes or None,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    preprocessing = _preprocessing(options.preprocessing)
    saved = known_studies(Store()).get(options.model)
    if saved is None:
        checkpoint, images = (absolute(path) for path in (options.checkpoint, options.images))
        return StudyDescription(_absolute_folder(options.model), checkpoint, images, preprocessing, settings)
    if options.checkpoint or options.images or preprocessing:
        raise ModelError(
            f"{options.model} is a saved study, which has its checkpoint, images and preprocessing. Leave those "
            "options out, or name the model itself."
        )
    return replace(saved, settings={**saved.settings, **settings})


def absolute(source: str | None) -> str | None:
    """Return a path as it means the same from every folder; other sources, such as `digits`, stay."""
    return str(Path(source).resolve()) if source and Path(source).exists() and source != "digits" else source


def _absolute_folder(model: str | None) -> str | None:
    """Return the same for a model that is a folder, `local-dir:FOLDER`; other names stay."""
    kind, found, folder = (model or "").partition("local-dir:")
    if kind or not folder:
        return model
    return f"{found}{Path(folder).expanduser().resolve()}"


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


def has_ceiling(options: argparse.Namespace) -> bool:
    """Return whether the options give a budget."""
    return any(value is not None for value in (options.average_bits, options.size_mb, options.bitops_g))


def allocation_request(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of `Study.allocate` that the options ask for."""
    if options.size_mb is not None and not 0 < options.size_mb < 1e12:
        raise AllocationError(f"The budget for model size must be a positive number, not {options.size_mb}.")
    return {
        "average_bits": options.average_bits,
        "size_bytes": None if options.size_mb is None else round(options.size_mb * 1e6),
        "bitops": None if options.bitops_g is None else options.bitops_g * 1e9,
        "cap_bitops": not options.no_bitops_cap,
        "gamma": options.gamma,
        "pinned": _bits_by_name(options.pin, "--pin", "head=8"),
        "strategy": options.strategy,
        "allowed": dict(_widths(text) for text in options.allow),
        "at_least": _bits_by_name(options.at_least, "--at-least", "head=4"),
        "at_most": _bits_by_name(options.at_most, "--at-most", "head=6"),
        "tied": not options.independent,
        "seed": options.seed,
    }


def _bits_by_name(texts: list[str], option: str, example: str) -> dict[str, int]:
    found = {}
    for text in texts:
        name, _, bits = text.rpartition("=")
        if not name or not bits.isdecimal():
            raise BitWidthError(f"{option} is written LAYER=BITS, e.g. {example}, not {text!r}.")
        found[name] = int(bits)
    return found


def _widths(text: str) -> tuple[str, tuple[int, ...]]:
    kind, _, widths = text.partition("=")
    parts = widths.split(",")
    if not kind or not all(part.isdecimal() for part in parts):
        raise BitWidthError(f"--allow is written KIND=BITS,BITS, e.g. fc1=4,8, not {text!r}.")
    return kind, tuple(int(part) for part in parts)


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
