"""What is open, in numbers, tables and words: model, images, preprocessing, machine, expected time."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

import pandas as pd

from mixqvit.images.sources.factory import short_name
from mixqvit.models.preprocessing import Preprocessing
from mixqvit.study.library import StudyDescription
from mixqvit.views.numbers import duration, millions, percent

if TYPE_CHECKING:
    from mixqvit.images.image_sets import ImageSets
    from mixqvit.models.model import Model
    from mixqvit.study.estimate import Estimate

__all__ = ["estimate_words", "facts", "preprocessing_frame", "saved_frame", "skipped_frame"]

Fact = tuple[str, str, str, str]

ALLOCATION = "allocation"
"""The stage of an estimate that is asked for anew with every budget."""


def facts(model: "Model", images: "ImageSets", machine: str) -> list[Fact]:
    """Return label, value, line below and explanation of the numbers that say what is open."""
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    size = "×".join(map(str, model.preprocessing.input_size))
    sample = images.sample
    labels = f"{sample.classes:,} of {len(model.class_names):,} classes" if sample.labelled else "without labels"
    place, _, free = machine.partition(", ")
    return [
        ("Parameters", millions(parameters, 1), type(model.module).__name__, f"{model.name}, input {size}."),
        (
            "Evaluation images",
            f"{len(images.evaluation):,}",
            labels,
            "Only measured on. Without labels agreement and KL take the place of accuracy.",
        ),
        (
            "Calibration images",
            f"{len(images.calibration):,}",
            f"of {sample.found:,} found",
            "Every choice is made on these; no evaluation image is among them.",
        ),
        ("Device", place, free, "Chosen by itself: CUDA, else MPS, else CPU; MIXQVIT_DEVICE names another."),
    ]


def preprocessing_frame(preprocessing: Preprocessing) -> pd.DataFrame:
    """Return the preprocessing as a table of one row."""
    numbers = {name: ", ".join(f"{value:g}" for value in getattr(preprocessing, name)) for name in ("mean", "std")}
    row = {
        "input": "×".join(map(str, preprocessing.input_size)),
        "interpolation": preprocessing.interpolation,
        "crop": f"{preprocessing.crop_mode}, {percent(preprocessing.crop_pct)}",
        **numbers,
    }
    return pd.DataFrame([row])


def skipped_frame(skipped: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return the images that could not be read, with the reasons."""
    return pd.DataFrame(skipped, columns=["image", "why"])


def saved_frame(studies: Mapping[str, StudyDescription]) -> pd.DataFrame:
    """Return the saved studies as a table, the latest first."""
    rows = [
        {
            "study": name,
            "model": found.model or "guessed",
            "weights": "in the study file" if found.study_file else _file_name(found.checkpoint),
            "images": "in the study file" if found.study_file else _images(found.images),
        }
        for name, found in reversed(studies.items())
    ]
    return pd.DataFrame(rows)


def estimate_words(estimate: "Estimate | None") -> str:
    """Say how long what is not computed yet will take."""
    if estimate is None:
        return "How long it takes on a GPU was not measured. Every finished piece is saved."
    left = {stage: seconds for stage, seconds in estimate.seconds.items() if seconds > 0}
    each = left.pop(ALLOCATION, 0.0)
    measuring = f" Measuring an allocation takes about {duration(each)} each time." if each else ""
    if not left:
        return f"Relevance, calibration and sensitivity are computed already.{measuring}"
    parts = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in left.items())
    return (
        f"This takes about {duration(sum(left.values()))} on this machine: {parts}.{measuring} Every finished piece "
        "is saved: stop and come back as you like."
    )


def _file_name(checkpoint: str | None) -> str:
    return PurePath(checkpoint).name if checkpoint else "published"


def _images(source: str | None) -> str:
    return short_name(source) if source else "its own"
