"""From an operand to its quantizers at several bit-widths, by searching ranges: what recipes are made of.

Statistics that do not depend on the bits are gathered once; only the search itself runs per bit-width. Fits of
quantizers that are not uniform stand beside their classes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mixqvit.quantization import ranges
from mixqvit.quantization.operands import SAMPLED_ROWS, Operand, output_sketch, sampled_rows, sampled_values
from mixqvit.quantization.quantizers.base import Described, OperandQuantizers, Quantizer, fit
from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.ranges import PERCENTILES, tail_quantiles, uniform_quantizer
from mixqvit.quantization.reparameterization import clip_ranges, reparameterized_quantizer
from mixqvit.quantization.sorted_values import SortedValues

__all__ = [
    "CLIPS",
    "channel_range",
    "clipped_reparameterized",
    "fisher_uniform",
    "fitted_weight",
    "min_max",
    "output_error",
    "output_error_uniform",
    "percentile",
    "percentile_reparameterized",
    "searched_channels",
    "searched_reparameterized",
]

CLIPS = (0.0, 0.005, 0.01, 0.02, 0.05)
"""Fractions of channels whose range may be clipped at either side; 0 is no clipping."""

_FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_REFINEMENTS = (0.8, 0.9, 1.1, 1.2)

_WEIGHTED_SEARCH = Described(
    "weighted search",
    "Both ends of the range are searched for, and an error counts as much as the network's output feels it (squared "
    "gradients). Before a linear layer every channel has its own range, reparameterized.",
    "Wins with few bits, where narrow ranges pay, and where some tokens matter more than others. It aims at the "
    "network's output: by the layer's own error, shown here, it can come second.",
    "this project; PTQ4ViT (arXiv 2111.12293) weighs by squared gradients too",
)


@fit(
    Described(
        "min-max",
        "Levels evenly spaced from the smallest to the largest value.",
        "Wins with many bits and no outliers: nothing is cut off. A single stray value stretches every step.",
        "Jacob et al. 2018, arXiv 1712.05877",
    )
)
def min_max(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Span the smallest to the largest value, per tensor."""
    lower, upper = torch.aminmax(operand.values)
    return {bits: uniform_quantizer(lower, upper, bits) for bits in bit_widths}


@fit(
    Described(
        "percentile",
        "Evenly spaced levels whose ends are percentiles: of 99.9, 99.99 and 99.999 % the one with the least squared "
        "error of the values.",
        "Wins over min-max where few values lie far out: cutting them costs less than coarser steps for all others.",
        "RepQ-ViT, arXiv 2212.08254",
    )
)
def percentile(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search the percentile of least squared error, per tensor (RepQ-ViT, arXiv 2212.08254)."""
    return ranges.by_percentile(operand.values, bit_widths, ranges.fit_per_tensor)


@fit(
    Described(
        "output error",
        "The same candidates and the full range, chosen by the squared error of the layer's output.",
        "Wins where rare large values carry the function: their loss hardly shows in the average error of the input, "
        "but in the output. For attention products and the patch embedding it is the percentile search.",
        "this project; PTQ4ViT (arXiv 2111.12293) judges candidates by the output too",
    )
)
def output_error_uniform(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search the percentile, or none, with the least squared error of the layer's output, per tensor.

    The error of the input itself would clip rare large values that carry the function.
    """
    if operand.layer.is_matmul or operand.partner.dim() > 2:
        return percentile(operand, bit_widths)
    lower, upper = tail_quantiles(operand.rows.reshape(-1, 1), (*PERCENTILES, 1.0))
    error_of = _output_error_of(operand)
    chosen = {}
    for bits in bit_widths:
        candidates = [uniform_quantizer(low[0], high[0], bits) for low, high in zip(lower, upper, strict=True)]
        chosen[bits] = min(candidates, key=error_of)
    return chosen


@fit(_WEIGHTED_SEARCH)
def fisher_uniform(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search both ends of the range for the least squared error weighted by squared gradients, per tensor (ours).

    The scores of attention are ruled by few large queries and keys, which the plain error clips.
    """
    fisher = operand.fisher
    weights = (fisher + 0.05 * fisher.mean()).flatten().repeat(operand.images)
    if not weights.any():
        return percentile(operand, bit_widths)
    sample = sampled_values(operand.values, weights)
    ordered = SortedValues.of(sample)
    lower, upper = torch.aminmax(operand.values)
    fractions = torch.tensor((1.05, *_FRACTIONS[:-1]), dtype=sample.dtype, device=sample.device)
    low, high = torch.cartesian_prod(fractions * lower, fractions * upper).T
    chosen = {}
    for bits in bit_widths:
        candidates = uniform_quantizer(low, high, bits)
        codes = torch.arange(2**bits, device=sample.device)
        levels = (codes - candidates.zero_point[:, None]) * candidates.scale[:, None]
        best = ordered.squared_errors(levels, (levels[:, 1:] + levels[:, :-1]) / 2).argmin()
        chosen[bits] = UniformQuantizer(candidates.scale[best], candidates.zero_point[best], bits)
    return chosen


@fit(
    Described(
        "reparameterized",
        "An even grid for every channel, by percentiles; the differences are moved into LayerNorm and the next "
        "weights, so that one scale is left.",
        "Wins over one grid for all wherever channels differ. The weights get harder to quantize, which does not show "
        "here, where they stay in full precision.",
        "RepQ-ViT, arXiv 2212.08254",
    ),
    per_channel=ReparameterizedQuantizer,
)
def percentile_reparameterized(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search percentiles per channel and reparameterize (RepQ-ViT, arXiv 2212.08254)."""
    sample, extremes = sampled_rows(operand.rows, SAMPLED_ROWS), tail_quantiles(operand.rows, PERCENTILES)
    return {bits: reparameterized_quantizer(ranges.fit_per_channel(sample, bits, extremes)) for bits in bit_widths}


@fit(_WEIGHTED_SEARCH, per_channel=ReparameterizedQuantizer)
def searched_reparameterized(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search both ends of every channel's range for the least weighted squared error and reparameterize (ours).

    With few bits a range narrower than any high percentile has less error.
    """
    return {
        bits: reparameterized_quantizer(channels)
        for bits, channels in _searched(operand.rows, bit_widths, operand.row_weights).items()
    }


@fit(
    Described(
        "per channel",
        "An even grid for every channel of V, both ends searched for.",
        "Wins wherever channels differ, and for free: a channel of V is a channel of the product, so its scale can be "
        "multiplied afterwards.",
        "this project",
    ),
    per_channel=UniformQuantizer,
)
def searched_channels(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search both ends of the range of every head's every channel, for the second factor `[B, heads, N, C]`.

    Its channels are output channels of the product, so they may have scales of their own.
    """
    values = operand.values
    if values.dim() != 4:
        return percentile(operand, bit_widths)
    heads, channels = values.shape[1], values.shape[3]
    columns = values.transpose(1, 2).flatten(2).flatten(0, 1)
    return {
        bits: UniformQuantizer(
            found.scale.reshape(heads, 1, channels), found.zero_point.reshape(heads, 1, channels), bits
        )
        for bits, found in _searched(columns, bit_widths).items()
    }


def fitted_weight(weight: Tensor, bits: int) -> UniformQuantizer:
    """Search both ends of every output channel's range for the least squared error; broadcasts to `weight`."""
    columns = weight.flatten(1).T.contiguous()
    lower, upper = torch.aminmax(columns, dim=0)
    # Around zero, so that the zero point is a code.
    zero = torch.zeros_like(lower)
    found = _searched_at(columns, zero, lower.clamp(max=0), upper.clamp(min=0), bits)
    shape = (-1, *[1] * (weight.dim() - 1))
    return UniformQuantizer(found.scale.reshape(shape), found.zero_point.reshape(shape), bits)


def _searched(rows: Tensor, bit_widths: Sequence[int], weights: Tensor | None = None) -> dict[int, UniformQuantizer]:
    """Search a range per column of `[N, C]`: common fractions of the full range first, then each end alone."""
    lower, upper = torch.aminmax(rows, dim=0)
    sample = sampled_rows(rows, SAMPLED_ROWS, weights).contiguous()
    # Ranges shrink towards the median, which no quantizer should lose.
    centre = sample.median(dim=0).values
    return {bits: _searched_at(sample, centre, lower - centre, upper - centre, bits) for bits in bit_widths}


def _searched_at(sample: Tensor, centre: Tensor, below: Tensor, above: Tensor, bits: int) -> UniformQuantizer:
    unit = ranges.power_of_two(torch.maximum(below.abs(), above.abs()))
    least = torch.full_like(centre, torch.inf)
    ends = [torch.ones_like(centre), torch.ones_like(centre)]

    def consider(low: Tensor, high: Tensor) -> None:
        nonlocal least
        quantizer = uniform_quantizer(centre + below * low, centre + above * high, bits)
        errors = quantizer(sample).sub_(sample).div_(unit).square_().sum(dim=0)
        better = errors < least
        least = torch.where(better, errors, least)
        ends[0], ends[1] = torch.where(better, low, ends[0]), torch.where(better, high, ends[1])

    for fraction in _FRACTIONS:
        both = torch.full_like(centre, fraction)
        consider(both, both)
    for end in (0, 1):
        start = ends[end]
        for factor in _REFINEMENTS:
            moved = [ends[0], ends[1]]
            moved[end] = start * factor
            consider(*moved)
    return uniform_quantizer(centre + below * ends[0], centre + above * ends[1], bits)


@fit(
    Described(
        "clipped channel-wise",
        "Reparameterized after the ranges of the widest channels were clipped; how much is chosen with the weights "
        "quantized too.",
        "Wins where few channels are so wide that moving them would spoil the weights. That gain does not show here, "
        "where the weights stay in full precision.",
        "Mix-QViT, arXiv 2501.06357",
    ),
    per_channel=ReparameterizedQuantizer,
)
def clipped_reparameterized(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Fit per channel, clip across channels, reparameterize; the clip with the least output error wins.

    Clipped channel-wise quantization (Mix-QViT, arXiv 2501.06357; METHOD.md, ours): without clipping is among the
    candidates.
    """
    sample, extremes = sampled_rows(operand.rows, SAMPLED_ROWS), tail_quantiles(operand.rows, PERCENTILES)
    chosen = {}
    for bits in bit_widths:
        lower, upper = channel_range(ranges.fit_per_channel(sample, bits, extremes))
        candidates = [
            reparameterized_quantizer(uniform_quantizer(*clip_ranges(lower, upper, clip), bits), clip=clip)
            for clip in CLIPS
        ]
        errors = [output_error(operand.partner, sample, candidate, bits) for candidate in candidates]
        chosen[bits] = candidates[errors.index(min(errors))]
    return chosen


def channel_range(channels: UniformQuantizer) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest value that each channel's grid represents, `[C]` each."""
    lower = -channels.zero_point * channels.scale
    return lower, lower + (2**channels.bits - 1) * channels.scale


def output_error(weight: Tensor, rows: Tensor, quantizer: ReparameterizedQuantizer, weight_bits: int) -> float:
    """Return the squared error of a Linear's output ‖W x - Ŵ x̂‖² over `rows` `[N, C]`, both operands quantized."""
    folded, bias = quantizer.fold(weight, None)
    quantized = ranges.fit_weight(folded, weight_bits)(folded)
    difference = functional.linear(quantizer(rows), quantized, bias) - functional.linear(rows, weight)
    return float(difference.square_().sum())


def _output_error_of(operand: Operand) -> Callable[[Quantizer], float]:
    """Return a function from a quantizer of a Linear's input to the squared error of its output."""
    sample, sketch = sampled_rows(operand.rows, SAMPLED_ROWS), output_sketch(operand.partner)
    return lambda quantizer: float((quantizer(sample).sub_(sample) @ sketch).square_().sum())
