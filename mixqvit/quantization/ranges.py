"""Fitting uniform quantizers to values: extremes and percentiles, and the search for the least squared error."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mixqvit.quantization.operands import sampled_values
from mixqvit.quantization.quantizers.uniform import UniformQuantizer

__all__ = [
    "PERCENTILES",
    "by_percentile",
    "fit_min_max_weight",
    "fit_per_channel",
    "fit_per_tensor",
    "fit_weight",
    "power_of_two",
    "squared_errors",
    "tail_quantiles",
    "uniform_quantizer",
]

PERCENTILES = (0.999, 0.9999, 0.99999)
"""Candidate percentiles of the range search (RepQ-ViT, published code)."""

_Fitted = TypeVar("_Fitted")


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
    errors = torch.stack([squared_errors(candidate, values, unit) for candidate in candidates])
    return _best(candidates, errors)


def power_of_two(values: Tensor) -> Tensor:
    """Return a power of two near each value: squares of what is divided by it neither overflow nor underflow."""
    return torch.ldexp(torch.ones_like(values), torch.frexp(values).exponent)


def squared_errors(quantizer: Callable[[Tensor], Tensor], values: Tensor, unit: Tensor) -> Tensor:
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


def fit_min_max_weight(weight: Tensor, bits: int) -> UniformQuantizer:
    """Return the min-max quantizer per output channel of `weight` `[out, ...]`; it broadcasts to the weight."""
    lower, upper = torch.aminmax(weight.flatten(1), dim=1)
    shape = (-1, *[1] * (weight.dim() - 1))
    return uniform_quantizer(lower.reshape(shape), upper.reshape(shape), bits)


def by_percentile(
    values: Tensor, bit_widths: Sequence[int], search: Callable[[Tensor, int, tuple[Tensor, Tensor]], _Fitted]
) -> Mapping[int, _Fitted]:
    """Return what a search finds by bit-width, given a sample of the values and quantiles of all at `PERCENTILES`."""
    extremes = tail_quantiles(values.reshape(-1, 1), PERCENTILES)
    sample = sampled_values(values)
    return {bits: search(sample, bits, extremes) for bits in bit_widths}
