"""Outlier channels after LayerNorm: looking at them, and amplifying them without changing the function."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mixqvit.errors import BitWidthError, MixQViTError
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.network.tracing import trace
from mixqvit.quantization.channels import (
    CLIPS,
    ChannelDistribution,
    ChannelRanges,
    ChannelStatistics,
    ClipCurve,
    TokenMap,
    Variant,
)
from mixqvit.quantization.fits import channel_range, output_error
from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.ranges import (
    PERCENTILES,
    fit_per_channel,
    fit_per_tensor,
    fit_weight,
    tail_quantiles,
    uniform_quantizer,
)
from mixqvit.quantization.reparameterization import clip_ranges, reparameterized_quantizer

__all__ = [
    "LayerInput",
    "amplify_outliers",
    "channel_distribution",
    "channel_ranges",
    "channel_statistics",
    "clip_curve",
    "clip_harm_steps",
    "layer_input",
    "layer_input_steps",
    "post_layer_norm_layers",
    "token_map",
]

# Ranges always come from all tokens; errors are compared on a sample of them.
_SAMPLED_TOKENS = 2048
_BINS = 60


@dataclass(frozen=True, eq=False)
class LayerInput:
    """A post-LayerNorm input on some images.

    Attributes:
        layer: The layer that reads it.
        values: `[images, tokens, C]`, the tokens in the order in which the layer sees them.
        extra_tokens: How many tokens at the front are no patches.
        patches_per_row: Patches in a row of the image where all other tokens are the patches in order, else 0.
        windows: Windows that the tokens are grouped into.
    """

    layer: Layer
    values: Tensor
    extra_tokens: int
    patches_per_row: int
    windows: int

    @cached_property
    def rows(self) -> Tensor:
        """All tokens of all images, `[N, C]`."""
        return self.values.flatten(0, 1)

    @cached_property
    def sample(self) -> Tensor:
        """Some of the tokens `[N, C]`, the same ones every time."""
        if len(self.rows) <= _SAMPLED_TOKENS:
            return self.rows
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(0))
        return self.rows[order[:_SAMPLED_TOKENS]]

    @cached_property
    def channel_tails(self) -> tuple[Tensor, Tensor]:
        """Lower and upper quantiles of every channel at `PERCENTILES`, `[percentiles, C]` each."""
        return tail_quantiles(self.rows, PERCENTILES)

    @cached_property
    def tensor_tails(self) -> tuple[Tensor, Tensor]:
        """Lower and upper quantiles of all values at `PERCENTILES`, `[percentiles, 1]` each."""
        return tail_quantiles(self.rows.reshape(-1, 1), PERCENTILES)


def post_layer_norm_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the layers whose input is post-LayerNorm and gets reparameterized."""
    return tuple(layer for layer in layers if layer.is_reparameterized)


def layer_input(graph: Graph, layer: Layer, pixels: Tensor) -> LayerInput:
    """Return the input of one of the `post_layer_norm_layers` for images `[N, C, H, W]`.

    Raises:
        MixQViTError: The layer's input is not post-LayerNorm.
        ImageError: The images do not fit the model.
    """
    if not layer.is_reparameterized:
        raise MixQViTError(f"The input of {layer.name} does not come from a LayerNorm; choose a qkv or fc1 layer.")
    return next(_inputs(graph, (layer,), pixels))


def layer_input_steps(graph: Graph, pixels: Tensor) -> Iterator[LayerInput]:
    """Run the images `[N, C, H, W]` through the network once; yields the input of every post-LayerNorm layer."""
    yield from _inputs(graph, post_layer_norm_layers(graph.layers), pixels)


def _inputs(graph: Graph, layers: Sequence[Layer], pixels: Tensor) -> Iterator[LayerInput]:
    by_node = {layer.node: layer for layer in layers}
    patches = next((layer.output_shape[-2:] for layer in graph.layers if layer.kind == "patch_embed"), (0, 0))
    with torch.no_grad():
        for node, values in graph.walk(pixels, list(by_node)):
            (found,) = graph.operands(by_node[node], values)
            # Swin's windows come image by image, each with its tokens, so flattening keeps every image together.
            tokens = found.reshape(len(pixels), -1, found.shape[-1])
            extra = max(0, tokens.shape[1] - patches[0] * patches[1])
            windows = len(found) // len(pixels)
            in_order = windows == 1 and tokens.shape[1] - extra == patches[0] * patches[1]
            yield LayerInput(by_node[node], tokens, extra, patches[1] if in_order else 0, windows)


def channel_statistics(found: LayerInput) -> ChannelStatistics:
    """Return range, mean, standard deviation and kurtosis of every channel over all tokens, in double precision."""
    rows = found.rows.double()
    lower, upper = rows.aminmax(dim=0)
    mean = rows.mean(dim=0)
    centred = rows - mean
    squares = centred.square()
    variance = squares.mean(dim=0)
    fourth = squares.square().mean(dim=0)
    # Where all values are equal, rounding of the mean must not pass for a spread.
    is_constant = upper == lower
    kurtosis = torch.where(is_constant, 0, fourth / torch.where(is_constant, 1, variance).square())
    deviation = torch.where(is_constant, 0, variance).sqrt()
    arrays = (tensor.numpy() for tensor in (lower, upper, mean, deviation, kurtosis))
    return ChannelStatistics(found.layer.name, len(rows), *arrays)


def channel_ranges(graph: Graph, found: LayerInput, bits: int, clip: float = 0.0) -> ChannelRanges:
    """Quantize a post-LayerNorm input and the weight that reads it in all `VARIANTS`; compare them by channel.

    Ranges are fitted as RepQ-ViT does (arXiv 2212.08254), by percentile search on the full-precision input.

    Args:
        graph: The traced model.
        found: The layer's input on calibration images.
        bits: Bit-width of weights and activations.
        clip: Fraction of channels whose range is clipped at either side in variant `clipped`.

    Raises:
        BitWidthError: The bit-width is not 2 to 8.
        MixQViTError: The fraction is not from 0 up to 0.5.
    """
    if not 0 <= clip < 0.5:
        raise MixQViTError(f"The clipped fraction of channels a side must lie from 0 up to 0.5, not {clip!r}.")
    with torch.no_grad():
        weight = graph.weight(found.layer)
        channels = _fit_channels(found, bits)
        plain = fit_per_tensor(found.sample, bits, found.tensor_tails)
        folded = reparameterized_quantizer(channels)
        variants = {
            "per tensor": _plain_variant(found, weight, plain),
            "per channel": _plain_variant(found, weight, channels),
            "reparameterized": _moved_variant(found, weight, folded),
            "clipped": _moved_variant(found, weight, _clipped(channels, clip)),
        }
        return ChannelRanges(found.layer.name, bits, clip, channel_statistics(found), variants)


def _fit_channels(found: LayerInput, bits: int) -> UniformQuantizer:
    if bits not in BIT_WIDTHS:
        raise BitWidthError(f"{bits!r} bits are not possible: use {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}.")
    return fit_per_channel(found.sample, bits, found.channel_tails)


def _clipped(channels: UniformQuantizer, clip: float) -> ReparameterizedQuantizer:
    lower, upper = clip_ranges(*channel_range(channels), clip)
    return reparameterized_quantizer(uniform_quantizer(lower, upper, channels.bits), clip=clip)


def _plain_variant(found: LayerInput, weight: Tensor, quantizer: UniformQuantizer) -> Variant:
    ones = torch.ones(weight.shape[1], dtype=weight.dtype)
    lower, upper = (end * ones for end in channel_range(quantizer))
    return _variant(found.sample, quantizer(found.sample), weight, quantizer.bits, lower, upper, ones, 0 * ones)


def _moved_variant(found: LayerInput, weight: Tensor, quantizer: ReparameterizedQuantizer) -> Variant:
    lower, upper = channel_range(quantizer.per_channel)
    ratio, shift = quantizer.ratio, quantizer.shift
    moved = found.sample / ratio - shift
    return _variant(moved, quantizer(found.sample), weight, quantizer.tensor.bits, lower, upper, ratio, shift)


def _variant(
    values: Tensor,
    quantized: Tensor,
    weight: Tensor,
    bits: int,
    grid_lower: Tensor,
    grid_upper: Tensor,
    ratio: Tensor,
    shift: Tensor,
) -> Variant:
    """Compare a layer on `values` `[N, C]`, moved already, with the same on `quantized` values and weights."""
    weight = weight * ratio
    quantized_weight = fit_weight(weight, bits)(weight)
    offset = weight @ shift
    exact = functional.linear(values, weight, offset)
    error = functional.linear(quantized, quantized_weight, offset) - exact
    size = float(exact.square().sum(dim=1).mean()) or 1.0
    value_error = (quantized - values).square().mean(dim=0)
    weight_error = (quantized_weight - weight).square().sum(dim=0)
    contribution = value_error * weight.square().sum(dim=0) + weight_error * quantized.square().mean(dim=0)
    arrays = (
        grid_lower,
        grid_upper,
        ratio,
        shift,
        value_error * ratio.square(),
        weight_error / ratio.square(),
        contribution / size,
    )
    return Variant(
        *(array.numpy() for array in arrays),
        output_error=float(error.square().sum(dim=1).mean()) / size,
        weight_columns=weight.square().mean(dim=0).sqrt().numpy(),
        weight_rows=(weight.amax(dim=1) - weight.amin(dim=1)).numpy(),
    )


def clip_curve(graph: Graph, found: LayerInput, bits: int) -> ClipCurve:
    """Measure the error of the layer's output at every one of `CLIPS`, weights and input quantized to `bits`."""
    with torch.no_grad():
        channels = _fit_channels(found, bits)
        exact = functional.linear(found.sample, graph.weight(found.layer))
        total = float(exact.square().sum()) or 1.0
        errors = {
            clip: output_error(graph.weight(found.layer), found.sample, _clipped(channels, clip), bits) / total
            for clip in CLIPS
        }
    return ClipCurve(found.layer.name, bits, errors)


def clip_harm_steps(
    graph: Graph, found: LayerInput, pixels: Tensor, bits: int, finished: Collection[float] = ()
) -> Iterator[tuple[float, float]]:
    """Measure what clipping does to the network's output, the layer alone quantized to `bits`.

    Args:
        graph: The traced model.
        found: The layer's input on calibration images.
        pixels: The images to measure on, `[N, C, H, W]`.
        bits: Bit-width of weights and activations.
        finished: Clips that are known already and are not measured again.

    Yields:
        Each of `CLIPS` with KL(full precision ‖ quantized) of the class probabilities, mean per image, in nats.
    """
    layer, todo = found.layer, [clip for clip in CLIPS if clip not in finished]
    if not todo:
        return
    with torch.no_grad():
        reference = graph(pixels)
        channels = _fit_channels(found, bits)
        _, values = next(graph.walk(pixels, [layer.node]))
        for clip in todo:
            quantizer = _clipped(channels, clip)
            weight, bias = quantizer.fold(graph.weight(layer), graph.bias(layer))
            logits = graph.resume(
                values, layer.node, {layer.node: _linear(quantizer, fit_weight(weight, bits)(weight), bias)}
            )
            yield clip, float(graph.task.divergence(reference, logits).mean())


def _linear(quantizer: ReparameterizedQuantizer, weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda values: functional.linear(quantizer(values), weight, bias)


def channel_distribution(found: LayerInput, channel: int) -> ChannelDistribution:
    """Return the histogram of one channel over all tokens, extra tokens counted apart.

    Raises:
        MixQViTError: There is no such channel.
    """
    count = found.values.shape[-1]
    if not 0 <= channel < count:
        raise MixQViTError(f"There is no channel {channel}; they are numbered 0 to {count - 1}.")
    values = found.values[..., channel].double().numpy()
    edges = np.histogram_bin_edges(values, _BINS)
    extra, _ = np.histogram(values[:, : found.extra_tokens], edges)
    patches, _ = np.histogram(values[:, found.extra_tokens :], edges)
    return ChannelDistribution(found.layer.name, channel, edges, patches, extra, found.extra_tokens)


def token_map(found: LayerInput) -> TokenMap:
    """Return the input of the first image as `[tokens, C]`."""
    values = found.values[0].numpy()
    return TokenMap(found.layer.name, values, found.extra_tokens, found.patches_per_row, found.windows)


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
