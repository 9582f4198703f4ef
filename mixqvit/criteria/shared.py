"""What the criteria have in common: how their images are divided into batches.

A batch is what is saved, with random signs of its own: its size does not depend on the memory of the day. Where memory
is short, its images run in parts, with the signs that they have in the whole batch.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mixqvit.network.graph import Graph

__all__ = ["batch_size", "batch_starts", "covered", "part_of", "random_signs"]

MEMORY_BYTES = 2**29
"""Bound of what a criterion keeps for backward passes of a batch of several images (one always runs)."""

_MOST_IMAGES = 32  # more do not make a pass faster


def batch_size(graph: Graph, copies: int) -> int:
    """Return how many images are a batch when `copies` tensors like every layer's operands and output are kept."""
    return max(1, min(_MOST_IMAGES, MEMORY_BYTES // (copies * graph.layer_bytes)))


def batch_starts(images: int, size: int, seed: int) -> list[tuple[int, int]]:
    """Return the first image of each batch with a seed of its own, so that any batch can be done alone."""
    seeds = torch.Generator().manual_seed(seed)
    starts = range(0, images, size)
    own = torch.randint(2**31, (len(starts),), generator=seeds).tolist()
    return list(zip(starts, own, strict=True))


def covered(images: int, missing: Iterable[range]) -> frozenset[int]:
    """Return the images that are none of those missing: batches that begin with one are known already."""
    return frozenset(range(images)).difference(*missing)


def part_of(whole: Tensor, part: slice, images: int, shape: Sequence[int]) -> Tensor:
    """Return what belongs to some of the images of a batch.

    Args:
        whole: Of all images, which come first in the leading dimension, windows inside of them.
        part: Which images.
        images: Number of images of the batch.
        shape: Of what is wanted: that of `whole` where it belongs to no single image, as a weight does.
    """
    if tuple(shape) == tuple(whole.shape):
        return whole
    each = len(whole) // images
    return whole[part.start * each : part.stop * each]


def random_signs(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Return ±1 with equal probability, in the precision and on the device of `like`."""
    return torch.randint(0, 2, tuple(shape), generator=generator).to(like) * 2 - 1
