"""Random changes to training images other than the digits: timm's, with random numbers that are the image's own.

timm's and torchvision's transforms draw from the global generators of a process, which all of its threads share: a view
would depend on what else a dashboard does, and not on seed, epoch and image alone.
"""

import hashlib
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mixqvit.models.preprocessing import Preprocessing

__all__ = ["CROP_AREA", "FLIP_PROBABILITY", "JITTER", "random_number", "random_view"]

CROP_AREA = (0.35, 1.0)
"""Part of the image's area that a crop takes. A model that is trained already needs less change than from scratch
(timm: from 0.08)."""

FLIP_PROBABILITY = 0.5
"""How often an image is mirrored."""

JITTER = 0.3
"""By which part brightness, contrast and saturation change at most."""

_ATTEMPTS = 10  # at a crop of a drawn shape that fits; see timm


def random_number(purpose: str, *parts: int) -> int:
    """Return a seed of 63 bits that is the same on every machine; unlike a sum, no two lists of numbers share one."""
    text = f"mixqvit {purpose} {'/'.join(map(str, parts))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def random_view(preprocessing: Preprocessing) -> Callable[[Image.Image, int], Tensor]:
    """Return a function from a picture and a seed to a view of it, `[C, H, W]` uint8.

    Steps and their settings are those of `timm.data.create_transform` for training: a crop of random area and shape
    resized with the model's own filter, mirroring, and changes of brightness, contrast and saturation in random order.
    The random numbers are those that timm draws, from generators that the seed alone fills: with global generators
    seeded alike, and no other thread, timm's own transform gives the same bits.
    """
    import timm.data

    steps = timm.data.create_transform(
        input_size=preprocessing.input_size,
        is_training=True,
        scale=CROP_AREA,
        hflip=FLIP_PROBABILITY,
        color_jitter=JITTER,
        interpolation=preprocessing.interpolation,
        normalize=False,
    ).transforms
    crop, flip, jitter, to_tensor = steps

    def view(picture: Image.Image, seed: int) -> Tensor:
        numbers, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        return to_tensor(_jittered(jitter, _flipped(flip, _cropped(crop, picture, numbers), generator), generator))

    return view


def _cropped(step: Any, picture: Image.Image, numbers: random.Random) -> Image.Image:
    """Do what timm's `RandomResizedCropAndInterpolation` does."""
    from torchvision.transforms import functional

    box = _crop_box(*picture.size, step.scale, step.ratio, numbers)
    return functional.resized_crop(picture, *box, step.size, step.interpolation)


def _crop_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], numbers: random.Random
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a crop; in the middle where no drawn one fits."""
    low, high = (math.log(side) for side in ratio)
    for _ in range(_ATTEMPTS):
        area = numbers.uniform(*scale) * (width * height)
        shape = math.exp(numbers.uniform(low, high))
        crop_width, crop_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if crop_width <= width and crop_height <= height:
            top = numbers.randint(0, height - crop_height)
            return top, numbers.randint(0, width - crop_width), crop_height, crop_width
    crop_width, crop_height = width, height
    if width / height < min(ratio):
        crop_height = round(width / min(ratio))
    elif width / height > max(ratio):
        crop_width = round(height * max(ratio))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _flipped(step: Any, picture: Image.Image, generator: torch.Generator) -> Image.Image:
    """Do what torchvision's `RandomHorizontalFlip` does."""
    from torchvision.transforms import functional

    return functional.hflip(picture) if torch.rand(1, generator=generator) < step.p else picture


def _jittered(step: Any, picture: Image.Image, generator: torch.Generator) -> Image.Image:
    """Do what torchvision's `ColorJitter` does, whose hue timm leaves as it is."""
    from torchvision.transforms import functional

    changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    order = torch.randperm(4, generator=generator).tolist()  # the fourth is the hue
    factors = [
        torch.empty(1).uniform_(*limits, generator=generator).item()
        for limits in (step.brightness, step.contrast, step.saturation)
    ]
    for place in order:
        if place < len(changes):
            picture = changes[place](picture, factors[place])
    return picture
