"""The activation operands of a layer, as recipes see them: values, what multiplies them, what their errors cost."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.quantization.fisher import Fisher
from mixqvit.quantization.roles import roles

__all__ = [
    "SAMPLED_ROWS",
    "Operand",
    "operands_of",
    "output_sketch",
    "sampled_rows",
    "sampled_values",
]

SAMPLED_ROWS = 2048
"""Rows that fits compare errors on; ranges come from all values unless a sample is weighted."""

_SAMPLED_VALUES = 2**17
_SKETCH = 64


@dataclass(frozen=True)
class Operand:
    """One activation operand of a layer on the calibration images.

    Attributes:
        layer: The layer.
        role: One of `ROLES`.
        values: Its values on all images; images first in the leading dimension.
        partner: What it is multiplied by: the weight, or the other factor of an attention product.
        bias: The layer's bias, None where it has none.
        images: Number of images.
        fisher: Squared gradients shaped like one image's part of `values`; None where the recipe needs none.
    """

    layer: Layer
    role: str
    values: Tensor
    partner: Tensor
    bias: Tensor | None
    images: int
    fisher: Tensor | None = None

    @cached_property
    def rows(self) -> Tensor:
        """The values as tokens by channels, `[N, C]`."""
        return self.values.flatten(0, -2)

    @cached_property
    def row_weights(self) -> Tensor | None:
        """How much the error of each row counts, mean 1; None where all count alike.

        One half is the token's squared gradient, averaged over images and channels, the other half is uniform: a class
        token counts for hundreds of patch tokens in the last blocks, but there is only one in an image. (ours)
        """
        if self.fisher is None:
            return None
        tokens = self.fisher.mean(dim=-1).flatten()
        return balanced(tokens).repeat(self.images)


def balanced(weights: Tensor) -> Tensor:
    """Return half of the normalized weights plus one half, so that the mean is 1."""
    mean = weights.mean()
    return (weights / mean + 1) / 2 if mean > 0 else torch.ones_like(weights)


def operands_of(
    graph: Graph, layer: Layer, values: tuple[Tensor, ...], images: int, fisher: Fisher | None = None
) -> tuple[Operand, ...]:
    """Return the operands of a layer with its values on `images` images."""
    partners = values[::-1] if layer.is_matmul else (graph.weight(layer),) * len(values)
    gradients = fisher.operands if fisher else (None,) * len(values)
    pieces = zip(roles(layer), values, partners, gradients, strict=True)
    return tuple(Operand(layer, role, own, partner, graph.bias(layer), images, g) for role, own, partner, g in pieces)


def sampled_rows(rows: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Return `count` rows of `[N, ...]`, a row as often as its weight says; the same ones every time.

    Errors averaged over them estimate the weighted average over all. Fewer rows than `count` come back all, where
    they count alike.
    """
    if weights is None:
        if len(rows) <= count:
            return rows
        generator = torch.Generator().manual_seed(0)
        return rows[torch.randperm(len(rows), generator=generator)[:count].to(rows.device)]
    shares = weights.double().cumsum(0)
    # Evenly spaced points on the running sum; a random order of rows beforehand is not needed for an average.
    points = (torch.arange(count, dtype=torch.float64, device=rows.device) + 0.5) / count * shares[-1]
    return rows[torch.searchsorted(shares, points).clamp(max=len(rows) - 1)]


def sampled_values(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return values to compare errors on, `[N]`, where no row is needed whole; weighted as in `sampled_rows`."""
    return sampled_rows(values.flatten(), _SAMPLED_VALUES, weights)


def output_sketch(weight: Tensor) -> Tensor:
    """Return a random projection of a layer's outputs, `[in, sketch]`: which keeps squared errors."""
    if weight.shape[0] <= _SKETCH:
        return weight.T
    signs = torch.randint(0, 2, (_SKETCH, weight.shape[0]), generator=torch.Generator().manual_seed(0))
    return ((signs.to(weight) * 2 - 1) / _SKETCH**0.5 @ weight).T.contiguous()
