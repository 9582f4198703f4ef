"""What the criteria have in common: the bits they score, and how many images fit into memory at once."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from mixqvit.bits import BIT_WIDTHS, Bits, uniform
from mixqvit.graph import Graph
from mixqvit.layers import Layer

__all__ = ["batch_starts", "images_at_once", "random_signs", "tied_bits"]

MEMORY_BYTES = 2**29
"""Bound of what a criterion keeps for backward passes, reached with several images at once (one always runs)."""

_MOST_IMAGES = 32  # more do not make a pass faster


def tied_bits(layer: Layer, bit_widths: Sequence[int] = BIT_WIDTHS) -> tuple[Bits, ...]:
    """Return (b, b) for every bit-width b; (b, 8) for the patch embedding, as in every allocation."""
    return tuple(uniform((layer,), bits)[layer.name] for bits in bit_widths)


def images_at_once(graph: Graph, pixels: Tensor, copies: int) -> int:
    """Return how many images to run at once when `copies` tensors like every layer's operands and output are kept."""
    elements = sum(prod(layer.input_shape) + prod(layer.output_shape) for layer in graph.layers)
    return max(1, min(_MOST_IMAGES, MEMORY_BYTES // (copies * elements * pixels.element_size())))


def batch_starts(images: int, size: int, seed: int) -> list[tuple[int, torch.Generator]]:
    """Return the first image of each batch with a generator of its own, so that any batch can be done alone."""
    seeds = torch.Generator().manual_seed(seed)
    starts = range(0, images, size)
    own = torch.randint(2**31, (len(starts),), generator=seeds).tolist()
    return [(start, torch.Generator().manual_seed(number)) for start, number in zip(starts, own, strict=True)]


def random_signs(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Return ±1 with equal probability, in the precision and on the device of `like`."""
    return torch.randint(0, 2, tuple(shape), generator=generator).to(like) * 2 - 1
