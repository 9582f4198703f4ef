"""The activation operands of a layer, as recipes see them: values, what multiplies them, what their errors cost."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.quantization.fisher import Fisher

__all__ = ["ROLES", "Operand", "operands_of", "roles", "sampled_rows"]

ROLES = (
    "image",
    "query",
    "key",
    "probabilities",
    "value",
    "post_layer_norm",
    "attention_output",
    "post_gelu",
    "input",
)
"""What an operand is; recipes choose a quantizer for each. `input` is any other input of a Linear or convolution."""

_MATMUL_ROLES = {"matmul1": ("query", "key"), "matmul2": ("probabilities", "value")}
_INPUT_ROLES = {"patch_embed": "image", "proj": "attention_output", "fc2": "post_gelu"}


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


def roles(layer: Layer) -> tuple[str, ...]:
    """Return the role of each activation operand of a layer."""
    if layer.is_matmul:
        return _MATMUL_ROLES[layer.kind]
    role = "post_layer_norm" if layer.is_reparameterized else _INPUT_ROLES.get(layer.kind, "input")
    # Channels may move into the weight, which can be done for one input of it only.
    if layer.more_nodes and role == "attention_output":
        role = "input"
    return (role,) * len(layer.nodes)


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
