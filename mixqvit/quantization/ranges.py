"""Fitting quantizers to values: extremes, percentiles and grids, and the search for the least squared error."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mixqvit.quantization.quantizers import (
    AdaptiveLogQuantizer,
    Log2Quantizer,
    LogSqrt2Quantizer,
    PowerOfTwoFactorQuantizer,
    TwinGeluQuantizer,
    TwinSoftmaxQuantizer,
    UniformQuantizer,
)
from mixqvit.quantization.sorted_values import SortedValues

__all__ = [
    "LARGEST_FACTOR_EXPONENT",
    "PERCENTILES",
    "fit_adaptive_log",
    "fit_log2",
    "fit_log_sqrt2",
    "fit_min_max",
    "fit_min_max_per_channel",
    "fit_min_max_weight",
    "fit_per_channel",
    "fit_per_tensor",
    "fit_power_of_two_factor",
    "fit_twin_gelu",
    "fit_twin_softmax",
    "fit_weight",
    "power_of_two",
    "tail_quantiles",
    "uniform_quantizer",
]

PERCENTILES = (0.999, 0.9999, 0.99999)
"""Candidate percentiles of the range search (RepQ-ViT, published code)."""

LARGEST_FACTOR_EXPONENT = 3
"""K of the power-of-two factors: the exponents are 0 to K (FQ-ViT, arXiv 2111.13824)."""

FixedBaseLogQuantizer = TypeVar("FixedBaseLogQuantizer", Log2Quantizer, LogSqrt2Quantizer)


def tail_quantiles(values: Tensor, percentiles: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return lower and upper quantiles along dimension 0, to the last bit what `torch.quantile` returns.

    Only the tails are sorted, which makes high percentiles of large tensors cheap. The published RepQ-ViT code calls
    `torch.quantile`, which rounds the percentile to the tensor's own type before it takes the rank. In a quantized
    network whole groups of values may lie exactly halfway between two codes, and the last bit of a scale moves them.

    Args:
        values: `[N, ...]`.
        percentiles: Upper percentiles p, each above 0.5; the lower ones are 1 - p.

    Returns:
        Two tensors `[len(percentiles), ...]`: the (1 - p)- and the p-quantiles.
    """
    last = values.shape[0] - 1
    lower_ranks = [_rank(1.0 - percentile, last, values.dtype) for percentile in percentiles]
    upper_ranks = [_rank(percentile, last, values.dtype) for percentile in percentiles]
    ascending = values.topk(math.ceil(max(lower_ranks)) + 1, dim=0, largest=False).values
    descending = values.topk(last - math.floor(min(upper_ranks)) + 1, dim=0).values
    lower = [
        torch.lerp(ascending[math.floor(rank)], ascending[math.ceil(rank)], rank - math.floor(rank))
        for rank in lower_ranks
    ]
    upper = [
        torch.lerp(descending[last - math.floor(rank)], descending[last - math.ceil(rank)], rank - math.floor(rank))
        for rank in upper_ranks
    ]
    return torch.stack(lower), torch.stack(upper)


def _rank(quantile: float, last: int, dtype: torch.dtype) -> float:
    """Return the position of a quantile among sorted values 0 to `last`; the quantile is rounded to `dtype` first."""
    return float(torch.tensor(quantile, dtype=dtype)) * last


def uniform_quantizer(lower: Tensor, upper: Tensor, bits: int) -> UniformQuantizer:
    """Return the quantizer whose grid spans `lower` to `upper`, element by element.

    An empty range is widened to reach zero, so that a constant is represented exactly and never divided by zero.
    """
    is_empty = upper <= lower
    lower = torch.where(is_empty, lower.clamp(max=0), lower)
    upper = torch.where(is_empty, upper.clamp(min=0), upper)
    scale = (upper - lower) / (2**bits - 1)
    # The smallest normal number keeps 1 / scale finite for ranges that underflow.
    scale = torch.where(scale < torch.finfo(scale.dtype).tiny * 2**bits, torch.ones_like(scale), scale)
    return UniformQuantizer(scale, torch.round(-lower / scale), bits)


def _best(candidates: Sequence[UniformQuantizer], errors: Tensor) -> UniformQuantizer:
    """Pick per column the candidate with the least error; errors `[candidates, C]`, quantizers over `[C]`."""
    best = errors.argmin(dim=0, keepdim=True)
    scale = torch.stack([candidate.scale for candidate in candidates]).gather(0, best)[0]
    zero_point = torch.stack([candidate.zero_point for candidate in candidates]).gather(0, best)[0]
    return UniformQuantizer(scale, zero_point, candidates[0].bits)


def fit_per_channel(values: Tensor, bits: int, ranges: tuple[Tensor, Tensor] | None = None) -> UniformQuantizer:
    """Fit one scale and zero point per channel by percentile search for the least squared error.

    Args:
        values: `[N, C]`.
        bits: Bit-width.
        ranges: Lower and upper quantiles of `values` at `PERCENTILES`, where they are known already.

    Returns:
        A quantizer with scale and zero point `[C]`.
    """
    lower, upper = ranges or tail_quantiles(values, PERCENTILES)
    candidates = [uniform_quantizer(low, high, bits) for low, high in zip(lower, upper, strict=True)]
    unit = power_of_two(torch.maximum(lower.abs(), upper.abs()).amax(dim=0))
    errors = torch.stack([_squared_errors(candidate, values, unit) for candidate in candidates])
    return _best(candidates, errors)


def power_of_two(values: Tensor) -> Tensor:
    """Return a power of two near each value: squares of what is divided by it neither overflow nor underflow."""
    return torch.ldexp(torch.ones_like(values), torch.frexp(values).exponent)


def _squared_errors(quantizer: Callable[[Tensor], Tensor], values: Tensor, unit: Tensor) -> Tensor:
    """Return the squared error of each column in squares of `unit`; a power of two changes no other digit."""
    return quantizer(values).sub_(values).div_(unit).square_().sum(dim=0)


def fit_weight(weight: Tensor, bits: int) -> UniformQuantizer:
    """Fit a weight quantizer per output channel by percentile search for the least squared error.

    Args:
        weight: `[out, ...]`.
        bits: Bit-width.

    Returns:
        A quantizer whose scale and zero point broadcast to `weight`.
    """
    columns = weight.flatten(1).T.contiguous()
    fitted = fit_per_channel(columns, bits)
    shape = (-1, *[1] * (weight.dim() - 1))
    return UniformQuantizer(fitted.scale.reshape(shape), fitted.zero_point.reshape(shape), bits)


def fit_per_tensor(values: Tensor, bits: int, ranges: tuple[Tensor, Tensor] | None = None) -> UniformQuantizer:
    """Fit one scale and zero point for a whole tensor by percentile search for the least squared error."""
    fitted = fit_per_channel(values.reshape(-1, 1), bits, ranges)
    return UniformQuantizer(fitted.scale[0], fitted.zero_point[0], bits)


def fit_log_sqrt2(values: Tensor, bits: int, ranges: tuple[Tensor, Tensor] | None = None) -> LogSqrt2Quantizer:
    """Fit the scale of a √2 logarithm to non-negative values by percentile search for the least squared error."""
    return _fit_logarithm(LogSqrt2Quantizer, values, bits, ranges)


def fit_log2(values: Tensor, bits: int, ranges: tuple[Tensor, Tensor] | None = None) -> Log2Quantizer:
    """Fit the scale of a base-2 logarithm to non-negative values by percentile search for the least squared error.

    The search is ours: FQ-ViT (arXiv 2111.13824) always takes scale 1, the range of a softmax.
    """
    return _fit_logarithm(Log2Quantizer, values, bits, ranges)


def _fit_logarithm(
    kind: type[FixedBaseLogQuantizer], values: Tensor, bits: int, ranges: tuple[Tensor, Tensor] | None
) -> FixedBaseLogQuantizer:
    _, upper = ranges or tail_quantiles(values.reshape(-1, 1), PERCENTILES)
    tiny = torch.finfo(values.dtype).tiny
    candidates = [kind(scale.clamp(min=tiny), bits) for scale in upper[:, 0]]
    unit = power_of_two(candidates[-1].scale)
    errors = [float(_squared_errors(candidate, values.reshape(-1, 1), unit)) for candidate in candidates]
    return candidates[errors.index(min(errors))]


def fit_min_max(values: Tensor, bits: int) -> UniformQuantizer:
    """Return one scale and zero point for a whole tensor: its smallest and largest value end the grid."""
    return uniform_quantizer(*torch.aminmax(values), bits)


def fit_min_max_per_channel(values: Tensor, bits: int) -> UniformQuantizer:
    """Return a scale and zero point `[C]` per channel of `values` `[N, C]` from its smallest and largest value."""
    return uniform_quantizer(*torch.aminmax(values, dim=0), bits)


def fit_min_max_weight(weight: Tensor, bits: int) -> UniformQuantizer:
    """Return the min-max quantizer per output channel of `weight` `[out, ...]`; it broadcasts to the weight."""
    lower, upper = torch.aminmax(weight.flatten(1), dim=1)
    shape = (-1, *[1] * (weight.dim() - 1))
    return uniform_quantizer(lower.reshape(shape), upper.reshape(shape), bits)


def fit_power_of_two_factor(values: Tensor, bits: int) -> PowerOfTwoFactorQuantizer:
    """Fit power-of-two factors to a post-LayerNorm input (FQ-ViT, arXiv 2111.13824).

    The coarsest grid, exponent K = 3, spans the tensor's range (widened to reach zero, so that the zero point is
    a code); every channel takes the exponent from 0 to K with the least squared error, saturation included.

    Args:
        values: `[N, C]`.
        bits: Bit-width.

    Returns:
        A quantizer with scalar scale and zero point and exponents `[C]`.
    """
    lower, upper = torch.aminmax(values)
    widest = uniform_quantizer(lower.clamp(max=0), upper.clamp(min=0), bits)
    unit = power_of_two(torch.maximum(-lower, upper))
    exponents = torch.arange(LARGEST_FACTOR_EXPONENT + 1, dtype=values.dtype, device=values.device)
    scales = torch.ldexp(widest.scale, exponents - LARGEST_FACTOR_EXPONENT)
    candidates = [UniformQuantizer(scale, widest.zero_point, bits) for scale in scales]
    errors = torch.stack([_squared_errors(candidate, values, unit) for candidate in candidates])
    return PowerOfTwoFactorQuantizer(scales[0].clone(), widest.zero_point, exponents[errors.argmin(dim=0)], bits)


def fit_twin_softmax(values: Tensor | SortedValues, bits: int) -> TwinSoftmaxQuantizer:
    """Fit the twin ranges to post-softmax values: the coarse one is [0, 1], the exponent has the least squared error.

    PTQ4ViT (arXiv 2111.12293) compares candidates by a Hessian-guided distance of the layer's output instead. Its
    published code has the same candidates, exponents 0 to 19, and the same step, so that 1 is a code.

    Args:
        values: Attention probabilities of any shape, or what `SortedValues.of` made of them, to share between bits.
        bits: Bit-width.
    """
    ordered = values if isinstance(values, SortedValues) else SortedValues.of(values)
    codes = torch.arange(2 ** (bits - 1), dtype=torch.float64, device=ordered.values.device)
    last = len(codes) - 1
    exponents = torch.arange(20, dtype=torch.float64, device=codes.device)[:, None]
    coarse = codes.new_tensor(1 / last)
    fine = torch.ldexp(coarse, -exponents)
    levels = torch.cat([codes * fine, torch.maximum(codes * coarse, last * fine)], dim=1)
    # A value at the end of R1 or beyond belongs to R2.
    end = (last + 1) * fine
    thresholds = torch.cat([(codes[1:] - 0.5) * fine, end, torch.maximum((codes[1:] - 0.5) * coarse, end)], dim=1)
    best = ordered.squared_errors(levels, thresholds).argmin()
    return TwinSoftmaxQuantizer(fine[best, 0].to(ordered.dtype), exponents[best, 0].to(ordered.dtype), bits)


def fit_twin_gelu(values: Tensor | SortedValues, bits: int) -> TwinGeluQuantizer:
    """Fit the twin ranges to post-GELU values: R1 ends at the smallest value, the exponent has the least squared error.

    PTQ4ViT (arXiv 2111.12293) ends R1 at the minimum of GELU itself and compares candidates by a Hessian-guided
    distance of the layer's output.

    Args:
        values: Values of any shape, or what `SortedValues.of` made of them, to share between bits.
        bits: Bit-width.
    """
    ordered = values if isinstance(values, SortedValues) else SortedValues.of(values)
    half = 2 ** (bits - 1)
    # The steps that reach the smallest and the largest value, not too far apart for a power of two to bridge.
    negative, positive = max(-ordered.smallest, 0.0) / half, max(ordered.largest, 0.0) / (half - 1)
    least = max(2.0**-16 * max(negative, positive), 2.0**8 * torch.finfo(ordered.dtype).tiny)
    scale, widest = max(negative, least), max(positive, least)
    codes = torch.arange(-half, half, dtype=torch.float64, device=ordered.values.device)
    # From a positive range that reaches the largest value down to one that clips it at 1 / 256.
    exponents = math.ceil(math.log2(widest / scale)) - torch.arange(9, dtype=torch.float64, device=codes.device)
    steps = scale * torch.exp2(exponents)
    levels = torch.where(codes < 0, codes * scale, codes * steps[:, None])
    best = ordered.squared_errors(levels, (levels[:, 1:] + levels[:, :-1]) / 2).argmin()
    return TwinGeluQuantizer(codes.new_tensor(scale).to(ordered.dtype), exponents[best].to(ordered.dtype), bits)


def fit_adaptive_log(
    values: Tensor | SortedValues, bits: int, shift: float = 0.0, zero_code: bool = False
) -> AdaptiveLogQuantizer:
    """Fit base and scale of a logarithm by a grid search, twice narrowed, for the least squared error of the values.

    AdaLog (arXiv 2407.12951) narrows progressively too, but compares candidates by the layer's output.

    Args:
        values: Values of any shape, or what `SortedValues.of` made of them, to share between bits.
        bits: Bit-width.
        shift: Added before the logarithm: 0 after softmax, 0.17 after GELU.
        zero_code: Whether the largest code stands for zero after the shift.
    """
    ordered = values if isinstance(values, SortedValues) else SortedValues.of(values)
    largest = max(ordered.largest + shift, torch.finfo(ordered.dtype).tiny)
    codes = torch.arange(2**bits - 1, -1, -1, dtype=torch.float64, device=ordered.values.device)

    def error_of(scales: Tensor, steps: Tensor) -> Tensor:
        levels = scales[:, None] * torch.exp2(-codes * steps[:, None])
        thresholds = scales[:, None] * torch.exp2((0.5 - codes[:-1]) * steps[:, None])
        if zero_code:
            levels[:, 0] = 0
        return ordered.squared_errors(levels - shift, thresholds - shift)

    # log2 of the scale from 1/64 of the largest value to √2 of it; log2 of the step from 1/16 to 4.
    spacing = 0.25
    scale_exponents = torch.arange(-6, 0.5 + spacing, spacing, dtype=torch.float64, device=codes.device)
    step_exponents = torch.arange(-4, 2 + spacing, spacing, dtype=torch.float64, device=codes.device)
    for _ in range(3):
        grid = torch.cartesian_prod(scale_exponents, step_exponents)
        scale, step = grid[error_of(largest * torch.exp2(grid[:, 0]), torch.exp2(grid[:, 1])).argmin()]
        spacing /= 4
        offsets = spacing * torch.arange(-4, 5, dtype=torch.float64, device=codes.device)
        scale_exponents, step_exponents = scale + offsets, step + offsets
    fitted = (largest * torch.exp2(scale)).to(ordered.dtype), torch.exp2(step).to(ordered.dtype)
    return AdaptiveLogQuantizer(*fitted, shift, bits, zero_code)
