"""Recipes: which quantizer each operand gets and how it is fitted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mixqvit.bits import BIT_WIDTHS, PATCH_EMBED_INPUT_BITS, Bits
from mixqvit.errors import CalibrationError
from mixqvit.graph import Graph
from mixqvit.layers import Layer
from mixqvit.quantization import ranges
from mixqvit.quantization.quantizers import ActivationQuantizer, ReparameterizedQuantizer, UniformQuantizer
from mixqvit.quantization.ranges import PERCENTILES, tail_quantiles, uniform_quantizer
from mixqvit.quantization.reparameterization import clip_ranges, fold, reparameterized_quantizer

__all__ = ["CLIPS", "RECIPES", "OperandQuantizers", "Recipe", "find_recipe"]

OperandQuantizers = Mapping[int, ActivationQuantizer]
"""Quantizers of one activation operand by bit-width."""

CLIPS = (0.0, 0.005, 0.01, 0.02, 0.05)
"""Fractions of channels whose range may be clipped at either side; 0 is no clipping."""

# Errors are compared on a sample, ranges always come from all values.
_SAMPLED_ROWS = 1024
_SAMPLED_VALUES = 2**17


@dataclass(frozen=True)
class Recipe:
    """How to fit the activation quantizers of one layer.

    Attributes:
        name: What users call it.
        one_setting: Calibrated for one (weight bits, activation bits), with the layers before already quantized.
        fit: From graph, layer, its full activation operands and the bits (None for any) to quantizers per operand.
    """

    name: str
    one_setting: bool
    fit: Callable[[Graph, Layer, tuple[Tensor, ...], Bits | None], tuple[OperandQuantizers, ...]]


def _fit_mix_qvit(
    graph: Graph, layer: Layer, operands: tuple[Tensor, ...], bits: Bits | None
) -> tuple[OperandQuantizers, ...]:
    """Fit every operand on full-precision inputs for all bit-widths (Mix-QViT, arXiv 2501.06357; METHOD.md)."""
    if layer.is_matmul:
        first, second = operands
        fit_first = ranges.fit_log_sqrt2 if layer.kind == "matmul2" else ranges.fit_per_tensor
        return _fit_all_bits(first, fit_first), _fit_all_bits(second, ranges.fit_per_tensor)
    (values,) = operands
    if layer.is_reparameterized:
        return (_fit_clipped_channels(graph, layer, values),)
    if layer.kind == "patch_embed" or values.dim() > 3:
        return (_fit_all_bits(values, ranges.fit_per_tensor),)
    return (_fit_by_output_error(graph, layer, values),)


def _fit_all_bits(
    values: Tensor, fit: Callable[[Tensor, int, tuple[Tensor, Tensor]], ActivationQuantizer]
) -> OperandQuantizers:
    """Search the percentile of least squared error for every bit-width."""
    flat = values.reshape(-1)
    extremes = tail_quantiles(flat[:, None], PERCENTILES)
    sample = _sample(flat, _SAMPLED_VALUES)
    return {bits: fit(sample, bits, extremes) for bits in BIT_WIDTHS}


def _fit_by_output_error(graph: Graph, layer: Layer, values: Tensor) -> OperandQuantizers:
    """Search the percentile with the least squared error of the layer's output.

    Post-GELU inputs have rare large values that carry the function; the error of the input itself would clip them.
    """
    rows = values.flatten(0, -2)
    lower, upper = tail_quantiles(rows.reshape(-1, 1), (*PERCENTILES, 1.0))
    sample = _sample(rows, _SAMPLED_ROWS)
    weight = graph.weight(layer)
    chosen = {}
    for bits in BIT_WIDTHS:
        candidates = [uniform_quantizer(low[0], high[0], bits) for low, high in zip(lower, upper, strict=True)]
        errors = [_squared(functional.linear(quantizer(sample) - sample, weight)) for quantizer in candidates]
        chosen[bits] = candidates[errors.index(min(errors))]
    return chosen


def _fit_clipped_channels(graph: Graph, layer: Layer, values: Tensor) -> OperandQuantizers:
    """Fit per channel, clip across channels, reparameterize; the clip with the least output error wins.

    Clipped channel-wise quantization (Mix-QViT; METHOD.md, ours): without clipping is among the candidates.
    """
    rows = values.flatten(0, -2)
    extremes = tail_quantiles(rows, PERCENTILES)
    sample = _sample(rows, _SAMPLED_ROWS)
    return {bits: _best_clip(graph, layer, sample, extremes, bits) for bits in BIT_WIDTHS}


def _best_clip(
    graph: Graph, layer: Layer, sample: Tensor, extremes: tuple[Tensor, Tensor], bits: int
) -> ReparameterizedQuantizer:
    lower, upper = channel_range(ranges.fit_per_channel(sample, bits, extremes))
    candidates = [
        reparameterized_quantizer(uniform_quantizer(*clip_ranges(lower, upper, clip), bits), clip=clip)
        for clip in CLIPS
    ]
    errors = [output_error(graph, layer, sample, quantizer, bits) for quantizer in candidates]
    return candidates[errors.index(min(errors))]


def channel_range(channels: UniformQuantizer) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value that each channel's grid represents, `[C]` each."""
    lower = -channels.zero_point * channels.scale
    return lower, lower + (2**channels.bits - 1) * channels.scale


def output_error(
    graph: Graph, layer: Layer, rows: Tensor, quantizer: ReparameterizedQuantizer, weight_bits: int
) -> float:
    """Return the squared error of the layer's output ‖W x - Ŵ x̂‖² over `rows` `[N, C]`, both operands quantized."""
    weight = graph.weight(layer)
    folded, bias = fold(weight, None, quantizer)
    quantized = ranges.fit_weight(folded, weight_bits)(folded)
    return _squared(functional.linear(quantizer(rows), quantized, bias) - functional.linear(rows, weight))


def _fit_repq_vit(
    graph: Graph, layer: Layer, operands: tuple[Tensor, ...], bits: Bits | None
) -> tuple[OperandQuantizers, ...]:
    """Fit every operand as the published RepQ-ViT code does (arXiv 2212.08254), for one setting."""
    width = PATCH_EMBED_INPUT_BITS if layer.kind == "patch_embed" else bits[1]
    if layer.is_reparameterized:
        channels = ranges.fit_per_channel(operands[0].flatten(0, -2), width)
        return ({width: reparameterized_quantizer(channels, round_zero_point=False)},)
    fits = [ranges.fit_per_tensor for _ in operands]
    if layer.kind == "matmul2":
        fits[0] = lambda values, bits: ranges.fit_log_sqrt2(values, bits)
    return tuple({width: fit(values, width)} for fit, values in zip(fits, operands, strict=True))


def _sample(values: Tensor, count: int) -> Tensor:
    """Return at most `count` of the values along dimension 0, the same ones every time."""
    if len(values) <= count:
        return values
    generator = torch.Generator().manual_seed(0)
    return values[torch.randperm(len(values), generator=generator)[:count].to(values.device)]


def _squared(values: Tensor) -> float:
    return float(values.square().sum())


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (Recipe("mix-qvit", False, _fit_mix_qvit), Recipe("repq-vit", True, _fit_repq_vit))
}
"""All recipes by name."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        CalibrationError: There is none.
    """
    if name not in RECIPES:
        raise CalibrationError(f"There is no recipe {name!r}; choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]
