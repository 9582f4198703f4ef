"""Loading images to train on, from whatever source a person names."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.image_sets import ImageSets
from mixqvit.images.listing import shown
from mixqvit.images.sampling import Sampling
from mixqvit.images.sources.factory import find_source, is_same
from mixqvit.images.training_images import TrainingImages
from mixqvit.models.model import Model

__all__ = ["load_training_images", "load_training_images_steps"]


def load_training_images(
    source: str | Path, model: Model, sets: ImageSets | None = None, follow_links: bool = False
) -> TrainingImages:
    """Loads images to train on; see `load_training_images_steps`."""
    *_, last = load_training_images_steps(source, model, sets, follow_links)
    return last.result


def load_training_images_steps(
    source: str | Path, model: Model, sets: ImageSets | None = None, follow_links: bool = False
) -> Iterator[Progress]:
    """Loads images to train on, with progress. Files are listed and compared, but read only for a batch.

    The digits have training images of their own. Of another source they are all images, of one with splits those of
    `train`, without those that calibrate or evaluate, by name where the source is theirs, and without files of the
    same content as one of them, whatever the source and the name.

    Args:
        source: `digits`, or any other source of `load_image_sets_steps`.
        model: Whose preprocessing and classes to use.
        sets: The images that calibrate and evaluate; None where there are none to leave out. What they say about the
            order of labels counts for these as well.
        follow_links: Whether links that lead out of a folder are followed, where the source is not that of `sets`.

    Yields:
        How far it is; the last result is the TrainingImages.

    Raises:
        ImageError: The source is unknown or cannot be read, does not fit the model, or has no image left; the images
            that calibrate and evaluate cannot be read again to be compared; a compressed tar archive is too large.
    """
    where, sampling = str(source), Sampling() if sets is None else sets.sampling
    is_own = sets is not None and is_same(where, sets.evaluation.source)
    if not is_own:
        sampling = replace(sampling, follow_links=follow_links)
    own = study = find_source(where, sampling.follow_links)
    if sets is not None and not is_own:
        study = find_source(sets.evaluation.source, sets.sampling.follow_links)
    try:
        images = yield from own.training_steps(model, sampling, sets, study)
    except OSError as error:
        raise ImageError(f"{shown(where)} cannot be read ({error.strerror or error})") from error
    yield Progress(len(images), len(images), f"{len(images):,} training images", images)
