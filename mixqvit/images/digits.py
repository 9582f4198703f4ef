"""The handwritten digits that come with scikit-learn: no download, the same split everywhere."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from mixqvit.errors import ImageError
from mixqvit.images.images import Images
from mixqvit.images.sampling import by_turns

if TYPE_CHECKING:
    from mixqvit.models.model import Model

__all__ = ["DIGITS_MEAN", "DIGITS_SIZE", "DIGITS_STD", "load_digits"]

DIGITS_SIZE = (1, 32, 32)
# Mean and standard deviation of the training digits after enlarging, rounded.
DIGITS_MEAN = (0.311,)
DIGITS_STD = (0.355,)
DIGITS_COUNTS = {"calibration": 128, "evaluation": 500}  # all others are training images
DIGITS_SEED = "mixqvit digits split 1"


def load_digits(split: str, model: "Model | None") -> Images:
    """Returns one split of the digits: `calibration`, `evaluation` or `training`.

    Raises:
        ImageError: The model reads other images, or has other classes.
    """
    import sklearn.datasets

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
    shuffled = sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"{DIGITS_SEED}/{i}".encode()).digest())
    remaining = [shuffled[position] for position in by_turns([labels[i] for i in shuffled])]
    splits = {}
    for name, count in DIGITS_COUNTS.items():
        splits[name], remaining = remaining[:count], remaining[count:]
    splits["training"] = remaining
    return splits
