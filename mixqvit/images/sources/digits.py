"""The handwritten digits that come with scikit-learn: no download, the same split everywhere."""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.sources.source import Given, ImageSource, registered

if TYPE_CHECKING:  # see `source`
    from mixqvit.images.image_sets import ImageSets
    from mixqvit.images.images import Images
    from mixqvit.images.sampling import Sampling
    from mixqvit.images.training_images import TrainingImages
    from mixqvit.models.model import Model

__all__ = ["DIGITS_MEAN", "DIGITS_SIZE", "DIGITS_STD", "Digits", "load_digits"]

DIGITS_SIZE = (1, 32, 32)
# Mean and standard deviation of the training digits after enlarging, rounded.
DIGITS_MEAN = (0.311,)
DIGITS_STD = (0.355,)
DIGITS_COUNTS = {"calibration": 128, "evaluation": 500}  # all others are training images
DIGITS_SEED = "mixqvit digits split 1"


@registered
@dataclass(frozen=True)
class Digits(ImageSource):
    """The 1,797 digits, 8x8 pixels enlarged to 32x32 (bicubic), with a fixed split into three parts."""

    kind = "digits"
    words = "digits"
    details = "The embedded handwritten digits have one channel, 32×32 pixels and ten classes."

    @classmethod
    def is_named(cls, where: str) -> bool:
        """Return whether a text is the word for them."""
        return where == cls.kind

    @classmethod
    def parse(cls, given: Given) -> Self | None:
        """Return this source for its name."""
        return cls(given.where) if cls.is_named(given.where) else None

    def prepared_steps(self, model: "Model", sampling: "Sampling") -> Generator[Progress, None, None]:
        """Return None: digits are no files."""
        yield from ()

    def sets_steps(self, model: "Model", sampling: "Sampling") -> Generator[Progress, None, "ImageSets"]:
        """Load the calibration images, and so many evaluation images as are wanted: with seed 0 the first ones."""
        from mixqvit.images.image_sets import ImageSets, Sample
        from mixqvit.images.sampling import draw_evaluation, in_order

        yield from ()
        calibration, evaluation = (load_digits(split, model) for split in DIGITS_COUNTS)
        how = f"all {len(evaluation)} evaluation images of the digits"
        if sampling.evaluation is not None and sampling.evaluation < len(evaluation):
            if sampling.seed == 0:
                evaluation = evaluation.subset(sampling.evaluation)
                how = f"the first {len(evaluation)} evaluation images of the digits, classes taking turns"
            else:
                labels = evaluation.labels.tolist()
                order = in_order(evaluation.names, labels, sampling.seed)
                drawn = draw_evaluation(evaluation.names, labels, order, sampling.evaluation, sampling.seed)
                evaluation, how = evaluation.reordered(drawn.chosen), drawn.how
        sample = Sample(len(calibration) + len(evaluation), (), True, 10, how, sampling.seed, ())
        return ImageSets(calibration, evaluation, sample, sampling)

    def images(self, split: str, model: "Model | None", limit: int | None) -> "Images":
        """Return one of the three parts, or its first images."""
        images = load_digits(split, model)
        return images if limit is None else images.subset(limit)

    def training_steps(
        self, model: "Model", sampling: "Sampling", sets: "ImageSets | None", study: ImageSource
    ) -> Generator[Progress, None, "TrainingImages"]:
        """Return the training digits, which are in no other part and are changed in a way of their own."""
        from mixqvit.images.training_images import CHANGES_VERSION, TrainingDigits

        yield from ()
        digits = load_digits("training", model)
        changes = "turned, stretched, sheared, shifted, bent and made noisy at random each time"
        return TrainingDigits(
            source=self.where,
            how=f"all {len(digits):,} training digits, {changes}",
            fingerprint=hashlib.sha256(f"{CHANGES_VERSION} {changes} {digits.fingerprint}".encode()).hexdigest(),
            names=digits.names,
            labels=digits.labels,
            notes=(),
            digits=digits,
        )


def load_digits(split: str, model: "Model | None") -> "Images":
    """Returns one split of the digits: `calibration`, `evaluation` or `training`.

    Raises:
        ImageError: The model reads other images, or has other classes.
    """
    import sklearn.datasets
    import torch
    import torch.nn.functional as F

    from mixqvit.images.images import Images

    digits = sklearn.datasets.load_digits()
    class_names = tuple(str(name) for name in digits.target_names)
    if model is not None and (tuple(model.input_size) != DIGITS_SIZE or len(model.class_names) != len(class_names)):
        raise ImageError(
            f"the digits (one channel, 32x32, 10 classes) do not fit {model.name} "
            f"(input {tuple(model.input_size)}, {len(model.class_names)} classes); give a folder of images"
        )
    indices = _split(digits.target.tolist())[split]
    small = torch.from_numpy(digits.images[indices] / 16).float().unsqueeze(1)
    large = F.interpolate(small, size=DIGITS_SIZE[1:], mode="bicubic", align_corners=False).clamp(0, 1)
    return Images(
        source="digits",
        split=split,
        pixels=(large - DIGITS_MEAN[0]) / DIGITS_STD[0],
        labels=torch.from_numpy(digits.target[indices]).long(),
        class_names=class_names,
        names=tuple(f"digit {index:04d}" for index in indices),
        mean=DIGITS_MEAN,
        std=DIGITS_STD,
    )


def _split(labels: Sequence[int]) -> dict[str, list[int]]:
    """Returns the digits' indices of every split.

    The order is that of SHA-256 digests: fixed whatever the version of any random generator.
    """
    from mixqvit.images.sampling import by_turns

    shuffled = sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"{DIGITS_SEED}/{i}".encode()).digest())
    remaining = [shuffled[position] for position in by_turns([labels[i] for i in shuffled])]
    splits = {}
    for name, count in DIGITS_COUNTS.items():
        splits[name], remaining = remaining[:count], remaining[count:]
    splits["training"] = remaining
    return splits
