"""The notes of a study that are known before anything is computed."""

from collections.abc import Iterator

from mixqvit.notes import Note, as_sentence
from mixqvit.stages.context import Context
from mixqvit.study.settings import Settings

__all__ = ["study_notes"]

FEW_CALIBRATION_IMAGES = 8
"""With fewer, ranges, importance and sensitivity hang on single images."""


def study_notes(study: Context, settings: Settings) -> tuple[Note, ...]:
    """Return what was assumed of the model and its images, what is left out, and what is too little to measure on."""
    calibration, graph = len(study.calibration_images), study.graph
    told = (*study.model.notes, *graph.notes, *study.image_sets.sample.notes)
    return (
        *(Note(as_sentence(text), is_warning=text in graph.warnings) for text in told),
        *_few_calibration_images(min(settings.calibration_images, settings.analysis_images, calibration)),
        *study.task.notes(len(study.evaluation_images)),
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
