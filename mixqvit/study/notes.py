"""The notes of a study that are known before anything is computed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mixqvit.notes import Note, as_sentence
from mixqvit.tasks.evaluation import wilson_interval

if TYPE_CHECKING:
    from mixqvit.study.base import StudyBase

__all__ = ["study_notes"]

FEW_CALIBRATION_IMAGES = 8
"""With fewer, ranges, importance and sensitivity hang on single images."""

FEW_EVALUATION_IMAGES = 30
"""With fewer, the 95 % interval of an accuracy is more than a third of the scale wide."""


def study_notes(study: "StudyBase") -> tuple[Note, ...]:
    """Return what was assumed of the model and its images, what is left out, and what is too little to measure on."""
    settings, calibration = study.settings, len(study.calibration_images)
    told = (*study.model.notes, *getattr(study.graph, "notes", ()), *study.image_sets.sample.notes)
    classes = len(study.model.class_names)
    return (
        *(Note(as_sentence(text)) for text in told),
        *_few_calibration_images(min(settings.calibration_images, settings.analysis_images, calibration)),
        *_few_evaluation_images(len(study.evaluation_images)),
        *_one_class(classes, classes if study.class_subset is None else len(study.class_subset)),
    )


def _few_calibration_images(count: int) -> Iterator[Note]:
    if count == 1:
        yield Note(
            "There is one calibration image: ranges, importance and sensitivity are those of this image alone, and "
            "there are no intervals over images. Give more images; 32 are usual.",
            is_warning=True,
        )
    elif count < FEW_CALIBRATION_IMAGES:
        yield Note(
            f"There are only {count} calibration images: ranges, importance and sensitivity hang on single ones, and "
            "their 95 % intervals, resampled from so few, are too narrow. Give more images; 32 are usual."
        )


def _few_evaluation_images(count: int) -> Iterator[Note]:
    if count < FEW_EVALUATION_IMAGES:
        low, _ = wilson_interval(count, count)
        images = "is one evaluation image" if count == 1 else f"are only {count} evaluation images"
        yield Note(
            f"There {images}: differences are hard to tell from chance. Even an accuracy of 100 % has a 95 % interval "
            f"from {100 * low:.0f} % on.",
            is_warning=count == 1,
        )


def _one_class(classes: int, choices: int) -> Iterator[Note]:
    if classes == 1:
        yield Note(
            "The model has one class: any bits agree with full precision on every image, at a KL divergence of 0. "
            "That means nothing, so accuracy, agreement and KL are left out. Choose bits by another metric of "
            "sensitivity, mse or sqnr.",
            is_warning=True,
        )
    elif choices == 1:
        yield Note(
            "Top-1 is looked for within one class, the only one among the images: any bits are right on all of them. "
            "That means nothing, so accuracy and agreement are left out. Look among all classes.",
            is_warning=True,
        )
