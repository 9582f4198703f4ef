"""Fitting quantizers to values: percentile ranges and the search for the one with the least squared error."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixqvit.quantization.quantizers import LogSqrt2Quantizer, UniformQuantizer

__all__ = [
    "PERCENTILES",
    "fit_log_sqrt2",
    "fit_per_channel",
    "fit_per_tensor",
    "fit_weight",
    "tail_quantiles",
    "uniform_quantizer",
]

PERCENTILES = (0.999, 0.9999, 0.99999)
"""Candidate percentiles of the range search (RepQ-ViT, published code)."""


def tail_quantiles(values: Tensor, percentiles: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return lower and upper quantiles along dimension 0, linearly interpolated as `torch.quantile` does.

    Only the tails are sorted, which makes high percentiles of large tensors cheap.

    Args:
        values: `[N, ...]`.
        percentiles: Upper percentiles p, each above 0.5; the lower ones are 1 - p.

    Returns:
        Two tensors `[len(percentiles), ...]`: the (1 - p)- and the p-quantiles.
    """
    last = values.shape[0] - 1
    depth = min(int((1 - min(percentiles)) * last) + 2, last + 1)
    descending = values.topk(depth, dim=0).values
    ascending = values.topk(depth, dim=0, largest=False).values
    lower, upper = [], []
    for percentile in percentiles:
        position = min((1 - percentile) * last, depth - 1)
        index = int(position)
        following = min(index + 1, depth - 1)
        fraction = position - index
        upper.append(torch.lerp(descending[index], descending[following], fraction))
        lower.append(torch.lerp(ascending[index], ascending[following], fraction))
    return torch.stack(lower), torch.stack(upper)


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
    errors = torch.stack([(candidate(values) - values).square_().sum(dim=0) for candidate in candidates])
    return _best(candidates, errors)


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
    _, upper = ranges or tail_quantiles(values.reshape(-1, 1), PERCENTILES)
    tiny = torch.finfo(values.dtype).tiny
    candidates = [LogSqrt2Quantizer(scale.clamp(min=tiny), bits) for scale in upper[:, 0]]
    errors = [float((candidate(values) - values).square_().sum()) for candidate in candidates]
    return candidates[errors.index(min(errors))]
