"""Images ready for a model, and the one place where pixels are normalized."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mixqvit.errors import ImageError

__all__ = ["Images", "check_limit", "normalized"]


@dataclass(frozen=True, eq=False)
class Images:
    """Images ready for a model.

    Attributes:
        source: `digits`, or where the images came from as it was given.
        split: `calibration`, `evaluation` or `training`.
        pixels: `[N, C, H, W]` float32, normalized.
        labels: `[N]` int64, indices into `class_names`; None where nothing is known.
        class_names: The model's classes.
        names: One per image, such as `digit 0231` or the file's path inside the folder.
        mean: Per channel, what the normalization subtracted.
        std: Per channel, what the normalization divided by.
    """

    source: str
    split: str
    pixels: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of pixels and labels: two sets with the same one give the same results."""
        digest = hashlib.sha256(f"{tuple(self.pixels.shape)} {self.labels is None}".encode())
        digest.update(np.ascontiguousarray(self.pixels.numpy()))
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels.numpy()))
        return digest.hexdigest()

    def display(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns images `start` to `stop` as a screen shows them, `[N, H, W, C]`, 0 to 1, normalization undone."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (self.pixels[start:stop] * std + mean).clamp(0, 1).permute(0, 2, 3, 1)

    def subset(self, count: int) -> "Images":
        """Returns the first `count` images (all of them where there are fewer).

        Raises:
            ImageError: `count` is below 1.
        """
        check_limit(count)
        if count >= len(self):
            return self
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, pixels=self.pixels[:count], labels=labels, names=self.names[:count])

    def shuffled(self, seed: int) -> "Images":
        """Returns the same images in another order, always the same for a seed; 0 leaves them as they are."""
        if seed == 0:
            return self
        return self.reordered(np.random.default_rng(seed).permutation(len(self)).tolist())

    def reordered(self, positions: Sequence[int]) -> "Images":
        """Returns the images at these positions, in this order."""
        order = torch.tensor(positions)
        labels = None if self.labels is None else self.labels[order]
        names = tuple(self.names[position] for position in positions)
        return replace(self, pixels=self.pixels[order], labels=labels, names=names)


def check_limit(limit: int) -> None:
    """Raises ImageError where fewer than one image is asked for."""
    if limit < 1:
        raise ImageError(f"at least one image is needed, {limit} were asked for; give a number of 1 or more")


def normalized(raw: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns bytes as a model reads them, float32 of the same shape: what timm's `ToTensor` and `Normalize` compute.

    Args:
        raw: `[N, C, H, W]` or `[C, H, W]`, uint8.
        mean: Per channel, subtracted after scaling to 0 to 1.
        std: Per channel, divided by at the end.
    """
    shape = (-1, 1, 1)
    pixels = raw.to(torch.float32).div_(255)
    return pixels.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))
