"""Loading images from whatever source a person names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.image_sets import ImageSets
from mixqvit.images.images import Images, check_limit
from mixqvit.images.sampling import Sampling
from mixqvit.images.sources.factory import find_source
from mixqvit.models.model import Model

__all__ = ["load_image_sets", "load_image_sets_steps", "load_images"]


def load_image_sets(source: str | Path, model: Model, sampling: Sampling | None = None) -> ImageSets:
    """Loads the images of a study; see `load_image_sets_steps`."""
    *_, last = load_image_sets_steps(source, model, sampling)
    return last.result


def load_image_sets_steps(source: str | Path, model: Model, sampling: Sampling | None = None) -> Iterator[Progress]:
    """Loads calibration and evaluation images, with progress.

    The source is `digits` (the 1,797 handwritten digits of scikit-learn, 8x8 pixels enlarged to 32x32 (bicubic), with
    a fixed split); a folder with one sub-folder per class, or without sub-folders and labels; a .zip or .tar archive
    of such a folder, which is never unpacked to disk; a .csv of file,label; a .parquet file or a folder of them; or
    `hf:owner/name`, `hf:owner/name@split` on the Hugging Face hub.

    Classes are WordNet ids, class names, or one for each of the model's classes in their order; where it is not certain
    what labels such as numbers mean, `sampling` must say it. Where the source has
    splits, `train` calibrates and `validation` or else `test` evaluates; otherwise every tenth file of the sorted list
    is a candidate for calibration, and all others are for evaluation. Unreadable files are skipped, named and
    replaced by others of their class.

    Args:
        source: Where the images are.
        model: Whose preprocessing and classes to use.
        sampling: How many images, which, and how their labels are read; seed 0 and all (at most `EVALUATION_LIMIT`) by
            default.

    Yields:
        How far it is; the last result is the ImageSets.

    Raises:
        ImageError: The source is unknown or cannot be read, does not fit the model, or too many files are unreadable.
    """
    sampling = sampling or Sampling()
    sets = yield from find_source(str(source), sampling.follow_links).sets_steps(model, sampling)
    count = len(sets.calibration) + len(sets.evaluation)
    yield Progress(count, count, f"{count} images", sets)


def load_images(
    source: str | Path = "digits",
    split: Literal["calibration", "evaluation", "training"] = "evaluation",
    model: Model | None = None,
    limit: int | None = None,
) -> Images:
    """Loads one split of a set of images, the same ones as `load_image_sets` with seed 0.

    The digits have 128 images for calibration, 500 for evaluation and 1,169 for training, always the same ones,
    balanced over the classes and mixed, so that the first few are of different classes.

    Args:
        source: `digits`, or any other source of `load_image_sets_steps`.
        split: Which part; `training` exists for the digits only.
        model: Whose preprocessing and classes to use; needed for all but the digits.
        limit: At most so many images: the first of the digits and of calibration images, otherwise a stratified
            sample.

    Raises:
        ImageError: Unknown source or split, too many unreadable images, images that do not fit the model, a limit
            below 1.
    """
    if split not in ("calibration", "evaluation", "training"):
        raise ImageError(f"unknown split {split!r}; choose calibration, evaluation or training")
    if limit is not None:
        check_limit(limit)
    return find_source(str(source)).images(split, model, limit)
