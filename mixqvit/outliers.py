"""Outlier channels after LayerNorm: looking at them, and amplifying them without changing the function."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mixqvit.errors import MixQViTError
from mixqvit.graph import Graph, trace
from mixqvit.layers import Layer
from mixqvit.quantization.calibration import Calibration
from mixqvit.quantization.quantizers import ReparameterizedQuantizer, UniformQuantizer
from mixqvit.quantization.ranges import fit_per_channel, fit_per_tensor, fit_weight
from mixqvit.quantization.recipes import channel_range, output_error
from mixqvit.quantization.reparameterization import fold, reparameterized_quantizer

__all__ = ["ChannelRanges", "amplify_outliers", "channel_ranges", "post_layer_norm_layers"]


@dataclass(frozen=True)
class ChannelRanges:
    """Per-channel ranges of one post-LayerNorm input, and what quantization makes of them.

    Attributes:
        layer: Name of the layer whose input this is.
        bits: Bit-width of weights and activations in all that follows.
        lower: Smallest value of each channel on the calibration images, `[C]`.
        upper: Largest value of each channel, `[C]`.
        grid_lower: Smallest value that each channel's grid reaches after clipping across channels, `[C]`.
        grid_upper: Largest value that each channel's grid reaches, `[C]`.
        moved_lower: Smallest value of each channel after reparameterization, `[C]`.
        moved_upper: Largest value of each channel after reparameterization, `[C]`.
        moved_grid: Smallest and largest value of the one grid that serves all channels then.
        ratio: r = s_c / s*, `[C]`: what the channel is divided by and its weight column multiplied by.
        clip: Fraction of channels clipped at either side, chosen by the layer's output error; 0 for none.
        weight_before: Root mean square of each weight column, `[C]`.
        weight_after: The same for the reparameterized weight, `[C]`.
        errors: Squared error of the layer's output relative to the squared output, by variant.
    """

    layer: str
    bits: int
    lower: np.ndarray
    upper: np.ndarray
    grid_lower: np.ndarray
    grid_upper: np.ndarray
    moved_lower: np.ndarray
    moved_upper: np.ndarray
    moved_grid: tuple[float, float]
    ratio: np.ndarray
    clip: float
    weight_before: np.ndarray
    weight_after: np.ndarray
    errors: dict[str, float]

    @property
    def spread(self) -> np.ndarray:
        """Width of each channel's range, `[C]`."""
        return self.upper - self.lower

    @property
    def max_to_median(self) -> float:
        """Widest range of a channel over the median: 1 means no outlier channel."""
        return float(self.spread.max() / max(np.median(self.spread), np.finfo(float).tiny))


def post_layer_norm_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the layers whose input is post-LayerNorm and gets reparameterized."""
    return tuple(layer for layer in layers if layer.is_reparameterized)


def channel_ranges(calibration: Calibration, layer: Layer, pixels: Tensor, bits: int) -> ChannelRanges:
    """Measure the channels of a post-LayerNorm input and compare ways to quantize it.

    Args:
        calibration: Fitted quantizers.
        layer: A layer of `post_layer_norm_layers`.
        pixels: Calibration images `[N, C, H, W]`.
        bits: Bit-width of weights and activations.

    Raises:
        CalibrationError: The calibration does not serve these bits.
        MixQViTError: The layer's input is not post-LayerNorm.
    """
    if not layer.is_reparameterized:
        raise MixQViTError(f"The input of {layer.name} does not come from a LayerNorm; choose a qkv or fc1 layer.")
    graph = calibration.graph
    (quantizer,) = calibration.quantizers(layer, (bits, bits))
    weight = graph.weight(layer)
    with torch.no_grad():
        (_, values) = next(graph.walk(pixels, [layer.node]))
        rows = graph.operands(layer, values)[0].flatten(0, -2)
        lower, upper = rows.amin(dim=0), rows.amax(dim=0)
        moved = rows / quantizer.ratio - quantizer.shift
        grid_lower, grid_upper = channel_range(quantizer.per_channel)
        return ChannelRanges(
            layer=layer.name,
            bits=bits,
            lower=lower.numpy(),
            upper=upper.numpy(),
            grid_lower=grid_lower.numpy(),
            grid_upper=grid_upper.numpy(),
            moved_lower=moved.amin(dim=0).numpy(),
            moved_upper=moved.amax(dim=0).numpy(),
            moved_grid=tuple(float(end) for end in channel_range(quantizer.tensor)),
            ratio=quantizer.ratio.numpy(),
            clip=quantizer.clip,
            weight_before=_column_size(weight),
            weight_after=_column_size(fold(weight, None, quantizer)[0]),
            errors=_errors(graph, layer, rows, quantizer, bits),
        )


def _column_size(weight: Tensor) -> np.ndarray:
    return weight.square().mean(dim=0).sqrt().numpy()


def _errors(
    graph: Graph, layer: Layer, rows: Tensor, quantizer: ReparameterizedQuantizer, bits: int
) -> dict[str, float]:
    weight = graph.weight(layer)
    quantized_weight = fit_weight(weight, bits)(weight)
    exact = rows @ weight.T
    per_tensor = fit_per_tensor(rows, bits)
    unclipped = reparameterized_quantizer(fit_per_channel(rows, bits))
    total = float(exact.square().sum()) or 1.0

    def plain(activation: UniformQuantizer) -> float:
        return float((activation(rows) @ quantized_weight.T - exact).square().sum())

    return {
        "one scale for all channels": plain(per_tensor) / total,
        "one scale per channel": plain(unclipped.per_channel) / total,
        "reparameterized": output_error(graph, layer, rows, unclipped, bits) / total,
        "clipped and reparameterized": output_error(graph, layer, rows, quantizer, bits) / total,
    }


def amplify_outliers(module: nn.Module, example_images: Tensor, factor: float, channels: int) -> nn.Module:
    """Return a copy of the model with amplified outlier channels and the same full-precision function.

    After every LayerNorm whose output is read by quantized Linear layers only, the channels with the largest
    LayerNorm weights are scaled by `factor` and the matching weight columns of those layers divided by it. Real vision
    transformers have such channels by themselves; small ones show with this control what they do to quantizers.

    Args:
        module: A timm model; not changed.
        example_images: At least one image `[B, C, H, W]`.
        factor: What to scale by; with a power of two the logits stay equal to the last bit.
        channels: How many channels of each LayerNorm.

    Raises:
        MixQViTError: The factor is not positive and finite, or there are not that many channels.
        ModelError: The model cannot be traced.
    """
    if not 0 < factor < float("inf"):
        raise MixQViTError(f"The outlier factor must be a positive number, not {factor!r}.")
    graph = trace(module, example_images)
    readers: dict[str, list[Layer]] = {}
    for layer in post_layer_norm_layers(graph.layers):
        readers.setdefault(layer.norm, []).append(layer)
    amplified = copy.deepcopy(module)
    for node in graph.nodes:
        if node.name not in readers or not _feeds_only(node, {layer.node for layer in readers[node.name]}):
            continue
        norm = amplified.get_submodule(node.target)
        if norm.weight is None or norm.bias is None:
            continue  # nothing to scale
        if not 0 <= channels <= len(norm.weight):
            raise MixQViTError(f"{node.target} has {len(norm.weight)} channels; {channels} cannot be amplified.")
        largest = norm.weight.detach().abs().topk(channels).indices
        with torch.no_grad():
            norm.weight[largest] *= factor
            norm.bias[largest] *= factor
            for layer in readers[node.name]:
                amplified.get_submodule(layer.name).weight[:, largest] /= factor
    return amplified


def _feeds_only(node: torch.fx.Node, layers: set[str]) -> bool:
    """Whether the values of a node reach nothing but these layers; shape queries do not count."""
    pending = list(node.users)
    while pending:
        user = pending.pop()
        if user.name in layers or getattr(user.target, "__name__", "") == "getattr":
            continue
        if user.op == "call_module" or user.op == "output" or getattr(user.target, "__name__", "") in ("add", "matmul"):
            return False
        pending.extend(user.users)
    return True
