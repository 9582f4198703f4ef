"""From an operand to its quantizers at several bit-widths: what recipes are made of.

Statistics that do not depend on the bits are gathered once; only the search itself runs per bit-width.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mixqvit.quantization import ranges
from mixqvit.quantization.operands import Operand, sampled_rows
from mixqvit.quantization.quantizers import (
    ActivationQuantizer,
    AdaptiveLogQuantizer,
    Log2Quantizer,
    ReparameterizedQuantizer,
    UniformQuantizer,
)
from mixqvit.quantization.ranges import PERCENTILES, tail_quantiles, uniform_quantizer
from mixqvit.quantization.reparameterization import clip_ranges, fold, reparameterized_quantizer
from mixqvit.quantization.sorted_values import SortedValues

__all__ = [
    "CLIPS",
    "Fit",
    "OperandQuantizers",
    "adaptive_log",
    "channel_range",
    "clipped_reparameterized",
    "fisher_uniform",
    "fitted_weight",
    "log2",
    "log_sqrt2",
    "min_max",
    "output_error",
    "output_error_uniform",
    "percentile",
    "percentile_reparameterized",
    "power_of_two_factor",
    "searched_channels",
    "searched_reparameterized",
    "twin_gelu",
    "twin_softmax",
]

OperandQuantizers = Mapping[int, ActivationQuantizer]
"""Quantizers of one activation operand by bit-width."""

Fit = Callable[[Operand, Sequence[int]], OperandQuantizers]
"""From an operand and bit-widths to its quantizers."""

CLIPS = (0.0, 0.005, 0.01, 0.02, 0.05)
"""Fractions of channels whose range may be clipped at either side; 0 is no clipping."""

GELU_SHIFT = 0.17
"""Minus the minimum of GELU, rounded up (AdaLog, arXiv 2407.12951)."""

# Errors are compared on samples; ranges come from all values unless a sample is weighted.
_ROWS = 2048
_VALUES = 2**17
_SKETCH = 64

_FRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_REFINEMENTS = (0.8, 0.9, 1.1, 1.2)
_LOG_SCALES = (1.0, 0.8, 0.6, 0.45, 0.3)
_LOG_OCTAVES = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0)


def min_max(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Span the smallest to the largest value, per tensor."""
    lower, upper = torch.aminmax(operand.values)
    return {bits: uniform_quantizer(lower, upper, bits) for bits in bit_widths}


def percentile(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search the percentile of least squared error, per tensor (RepQ-ViT, arXiv 2212.08254)."""
    return _by_percentile(operand.values, bit_widths, ranges.fit_per_tensor)


def log_sqrt2(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search the scale of log√2 over percentiles (RepQ-ViT, arXiv 2212.08254)."""
    return _by_percentile(operand.values, bit_widths, ranges.fit_log_sqrt2)


def log2(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Take log2 with the scale 1 of a softmax (log-int-softmax, FQ-ViT, arXiv 2111.13824)."""
    return {bits: Log2Quantizer(operand.values.new_ones(()), bits) for bits in bit_widths}


def twin_softmax(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Fit the twin ranges of post-softmax values (PTQ4ViT, arXiv 2111.12293)."""
    ordered = SortedValues.of(sampled_rows(operand.values.flatten(), _VALUES))
    return {bits: ranges.fit_twin_softmax(ordered, bits) for bits in bit_widths}


def twin_gelu(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Fit the twin ranges of post-GELU values (PTQ4ViT, arXiv 2111.12293)."""
    ordered = SortedValues.of(sampled_rows(operand.values.flatten(), _VALUES))
    return {bits: ranges.fit_twin_gelu(ordered, bits) for bits in bit_widths}


def power_of_two_factor(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Fit a power-of-two factor per channel (FQ-ViT, arXiv 2111.13824)."""
    return {bits: ranges.fit_power_of_two_factor(operand.rows, bits) for bits in bit_widths}


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


def fisher_uniform(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search both ends of the range for the least squared error weighted by squared gradients, per tensor (ours).

    The scores of attention are ruled by few large queries and keys, which the plain error clips.
    """
    fisher = operand.fisher
    weights = (fisher + 0.05 * fisher.mean()).flatten().repeat(operand.images)
    if not weights.any():
        return percentile(operand, bit_widths)
    sample = sampled_rows(operand.values.flatten(), _VALUES, weights)
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


def adaptive_log(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search scale and base of the logarithm for the least squared error of the product (AdaLog, arXiv 2407.12951).

    Post-softmax values are multiplied by the values of attention, post-GELU ones by the weight.
    """
    shift = 0.0
    if operand.role == "probabilities":
        # A part of the queries of a few images is enough for an average over all.
        images = slice(0, max(1, min(8 * operand.values.shape[0] // operand.images, 16)))
        queries = slice(0, None, max(1, operand.values.shape[-2] // 48))
        sample, partner = operand.values[images][..., queries, :], operand.partner[images]

        def error_of(difference: Tensor) -> Tensor:
            return torch.matmul(difference, partner).square_().sum()
    else:
        shift = max(GELU_SHIFT, -float(operand.values.min()))
        sample = sampled_rows(operand.rows, _ROWS // 8, operand.row_weights)
        sketch = _sketch(operand.partner)

        def error_of(difference: Tensor) -> Tensor:
            return (difference @ sketch).square_().sum()

    largest = (operand.values.max() + shift).clamp(min=torch.finfo(sample.dtype).tiny)
    return {bits: _best_log(sample, error_of, largest, shift, bits) for bits in bit_widths}


def _best_log(
    sample: Tensor, error_of: Callable[[Tensor], Tensor], largest: Tensor, shift: float, bits: int
) -> AdaptiveLogQuantizer:
    candidates = [
        AdaptiveLogQuantizer(largest * scale, largest.new_tensor(octaves / 2**bits), shift, bits, zero_code)
        for zero_code in (False, True)
        for scale in _LOG_SCALES
        for octaves in _LOG_OCTAVES
    ]
    errors = torch.stack([error_of(candidate(sample).sub_(sample)) for candidate in candidates])
    return candidates[int(errors.argmin())]


def percentile_reparameterized(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search percentiles per channel and reparameterize (RepQ-ViT, arXiv 2212.08254)."""
    sample, extremes = sampled_rows(operand.rows, _ROWS), tail_quantiles(operand.rows, PERCENTILES)
    return {bits: reparameterized_quantizer(ranges.fit_per_channel(sample, bits, extremes)) for bits in bit_widths}


def searched_reparameterized(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search both ends of every channel's range for the least weighted squared error and reparameterize (ours).

    With few bits a range narrower than any high percentile has less error.
    """
    return {
        bits: reparameterized_quantizer(channels)
        for bits, channels in _searched(operand.rows, bit_widths, operand.row_weights).items()
    }


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
    sample = sampled_rows(rows, _ROWS, weights).contiguous()
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


def clipped_reparameterized(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Fit per channel, clip across channels, reparameterize; the clip with the least output error wins.

    Clipped channel-wise quantization (Mix-QViT, arXiv 2501.06357; METHOD.md, ours): without clipping is among the
    candidates.
    """
    sample, extremes = sampled_rows(operand.rows, _ROWS), tail_quantiles(operand.rows, PERCENTILES)
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
    folded, bias = fold(weight, None, quantizer)
    quantized = ranges.fit_weight(folded, weight_bits)(folded)
    difference = functional.linear(quantizer(rows), quantized, bias) - functional.linear(rows, weight)
    return float(difference.square_().sum())


def _by_percentile(
    values: Tensor, bit_widths: Sequence[int], fit: Callable[[Tensor, int, tuple[Tensor, Tensor]], ActivationQuantizer]
) -> OperandQuantizers:
    flat = values.flatten()
    extremes = tail_quantiles(flat[:, None], PERCENTILES)
    sample = sampled_rows(flat, _VALUES)
    return {bits: fit(sample, bits, extremes) for bits in bit_widths}


def _output_error_of(operand: Operand) -> Callable[[ActivationQuantizer], float]:
    """Return a function from a quantizer of a Linear's input to the squared error of its output."""
    sample, sketch = sampled_rows(operand.rows, _ROWS), _sketch(operand.partner)
    return lambda quantizer: float((quantizer(sample).sub_(sample) @ sketch).square_().sum())


def _sketch(weight: Tensor) -> Tensor:
    """Return a random projection of the outputs, `[in, sketch]`: it keeps squared errors and costs a fraction."""
    if weight.shape[0] <= _SKETCH:
        return weight.T
    signs = torch.randint(0, 2, (_SKETCH, weight.shape[0]), generator=torch.Generator().manual_seed(0))
    return ((signs.to(weight) * 2 - 1) / _SKETCH**0.5 @ weight).T.contiguous()
