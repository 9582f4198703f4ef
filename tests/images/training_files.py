"""Training images that tests are made of, and how they compare what they get."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mixqvit.images.training_images import TrainingBatch, TrainingImages
from tests.images.files import ANIMALS, encoded


def noise(number: int) -> bytes:
    """A picture in which every crop differs from every other."""
    pixels = np.random.default_rng(number).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    return encoded(picture_of(pixels))


def picture_of(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels)


def noise_folder(folder: Path, count: int = 70) -> Path:
    for number in range(count):
        path = folder / ANIMALS[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(number))
    return folder


def epoch_of(images: TrainingImages, seed: int = 0, epoch: int = 0, batch: int = 8) -> list[TrainingBatch]:
    return list(images.batches(seed, epoch, batch))


def same(left: list[TrainingBatch], right: list[TrainingBatch]) -> bool:
    return len(left) == len(right) and all(
        a.positions == b.positions
        and torch.equal(a.pixels, b.pixels)
        and torch.equal(a.labels, b.labels)
        and (a.images, a.left_out) == (b.images, b.left_out)
        for a, b in zip(left, right, strict=True)
    )
