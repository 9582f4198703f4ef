"""Learned step sizes (LSQ, Esser et al. 2020, arXiv 1902.08153): the step is trained with the weights."""

from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from mixqvit.quantization.quantizers.uniform import UniformQuantizer

__all__ = ["LearnedStep", "fitted_step", "gradient_scale", "learned_step", "paper_step"]

SMALLEST_RATIO = 0.01
"""Of a trained step size to its first value."""

_SAMPLED = 2**16
_STEPS = 40
_RANGE = (0.25, 2.5)


def learned_step(values: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
    """Return v̂ = s · round(clip(v / s, -Q_N, Q_P)), equations 1 and 2, with gradients for both arguments.

    ∂v̂/∂v is 1 inside the limits and 0 outside (equation 5, straight through the rounding). ∂v̂/∂s is
    round(v / s) - v / s inside, -Q_N below and Q_P above (equation 3), summed over what shares a step, times `scale`.

    Args:
        values: Weights or activations v, any shape.
        step: Step sizes s, above zero, broadcastable to `values`.
        low: Smallest code, -Q_N.
        high: Largest code, Q_P.
        scale: Of the step's gradient, see `gradient_scale`.
    """
    return _LearnedStep.apply(values, step, low, high, scale)


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
        scaled = values / step
        codes = scaled.clamp(low, high).round_()
        ctx.save_for_backward(scaled, codes)
        ctx.limits, ctx.scale, ctx.shape = (low, high), scale, step.shape
        return codes * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        scaled, codes = ctx.saved_tensors
        low, high = ctx.limits
        of_values = gradient * ((scaled > low) & (scaled < high))
        # Outside the limits the code is the limit itself.
        of_step = torch.addcmul(gradient * codes, of_values, scaled, value=-1).sum_to_size(ctx.shape)
        return of_values, of_step * ctx.scale, None, None, None


def gradient_scale(elements: int, high: int) -> float:
    """Return 1 / √(N · Q_P) (section 2.2): N weights, or elements of an image's activation, share one step."""
    return 1 / sqrt(elements * max(1, high))


def paper_step(values: Tensor, high: int, per_channel: bool) -> Tensor:
    """Return the paper's first step size, 2 · mean|v| / √Q_P (section 2.1).

    Args:
        values: Weights `[out, ...]` or activations.
        high: Largest code Q_P.
        per_channel: One step for each of the first dimension, `[out, 1, ...]`, instead of a scalar.
    """
    means = values.abs().flatten(1).mean(dim=1).view(-1, *[1] * (values.dim() - 1)) if per_channel else None
    mean = values.abs().mean() if means is None else means
    return _above_zero(2 * mean / sqrt(max(1, high)))


def fitted_step(values: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, int]:
    """Return the step size and zero point with the least squared error on `values`.

    Zero points are whole, so that zero keeps a code: 0 where nothing is negative, 2^(bits - 1) for a weight as in the
    paper (Q_N = 2^(bits - 1)), for other activations whichever up to that errs least, since what comes out of a GELU is
    negative by at most 0.17. Against `paper_step` the loss after six epochs at 2 bits is less than half
    (tests/benchmarks/training.py). (ours)

    Args:
        values: Weights `[out, ...]` or activations.
        bits: Bit-width.
        per_channel: Whether the values are weights, with one step for each of the first dimension.

    Returns:
        The step, `[out, 1, ...]` or a scalar, and the code of zero.
    """
    middle = 2 ** (bits - 1)
    if per_channel:
        return _least_squares(values, bits, middle, per_channel=True)[0], middle
    rows = _sampled(values)
    if rows.min() >= 0:
        return _least_squares(rows, bits, 0, per_channel=False)[0], 0
    tried = sorted({max(1, round(middle * part / 4)) for part in range(1, 5)})
    found = [(*_least_squares(rows, bits, zero_point, per_channel=False), zero_point) for zero_point in tried]
    step, _, zero_point = min(found, key=lambda entry: float(entry[1]))
    return step, zero_point


def _least_squares(values: Tensor, bits: int, zero_point: int, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Return the step that errs least among multiples of the smallest one that clips nothing, and its error."""
    low, high = -zero_point, 2**bits - 1 - zero_point
    start = paper_step(values, high, per_channel)
    reach = values.abs().flatten(1).amax(dim=1).view(start.shape) if per_channel else values.abs().max()
    widest = _above_zero(torch.maximum(reach / max(high, zero_point), start * _RANGE[1]))
    dims = tuple(range(1, values.dim())) if per_channel else tuple(range(values.dim()))
    best_step, best = start, torch.full_like(start, torch.inf)
    lowest = torch.minimum(start * _RANGE[0], widest)
    for place in range(_STEPS):
        step = lowest * (widest / lowest) ** (place / (_STEPS - 1))
        error = (values / step).round_().clamp_(low, high).mul_(step).sub_(values).square_().mean(dims, keepdim=True)
        error = error.view(start.shape)
        best_step, best = torch.where(error < best, step, best_step), torch.minimum(best, error)
    return best_step, best


def _sampled(values: Tensor) -> Tensor:
    flat = values.flatten()
    return flat if len(flat) <= _SAMPLED else flat[:: -(-len(flat) // _SAMPLED)]


def _above_zero(step: Tensor) -> Tensor:
    """A channel of zeros has no scale of its own; any step represents it."""
    return torch.where(step > torch.finfo(step.dtype).tiny * 2**8, step, torch.ones_like(step))


class LearnedStep(nn.Module):
    """A uniform quantizer whose step size is trained.

    The parameter is the step relative to its first value: Adam moves a parameter by about its learning rate whatever
    its size, which is little for a step at 2 bits and may be all of a step at 8 bits. (ours)

    Attributes:
        ratio: Step sizes relative to the first ones, a scalar or `[out, 1, ...]`.
        first: Step sizes before training, same shape.
        zero_point: Code of zero, whole and not trained.
        bits: Bit-width.
    """

    def __init__(self, step: Tensor, zero_point: int, bits: int, elements: int) -> None:
        """Start from a step size that `elements` values of an image, or weights, share."""
        super().__init__()
        self.ratio = nn.Parameter(torch.ones_like(step))
        self.register_buffer("first", step.detach().clone())
        self.zero_point, self.bits = zero_point, bits
        self._scale = gradient_scale(elements, self.high)

    @classmethod
    def of_weight(cls, weight: Tensor, bits: int) -> "LearnedStep":
        """Return the quantizer of a weight `[out, ...]`: one step per output channel."""
        step, zero_point = fitted_step(weight.detach(), bits, per_channel=True)
        return cls(step, zero_point, bits, prod(weight.shape[1:]))

    @classmethod
    def of_activation(cls, values: Tensor, bits: int, images: int) -> "LearnedStep":
        """Return the quantizer of an activation from its values on so many images: one step for all."""
        step, zero_point = fitted_step(values.detach(), bits, per_channel=False)
        return cls(step, zero_point, bits, values.numel() // images)

    @property
    def step(self) -> Tensor:
        """Step sizes; far below the first ones they stop, since one that crossed zero would turn all signs round."""
        return self.first * self.ratio.clamp(min=SMALLEST_RATIO)

    @property
    def low(self) -> int:
        """Smallest code relative to that of zero, -Q_N."""
        return -self.zero_point

    @property
    def high(self) -> int:
        """Largest code relative to that of zero, Q_P."""
        return 2**self.bits - 1 - self.zero_point

    def forward(self, values: Tensor) -> Tensor:
        """Return the quantized values in the precision of the step, whatever the rest computes in."""
        return learned_step(values.to(self.first.dtype), self.step, self.low, self.high, self._scale)

    def values(self, weight: Tensor) -> Tensor:
        """Return the values that the codes of a weight stand for."""
        return self(weight.detach()).detach()

    def quantizer(self, _: Tensor | None = None) -> UniformQuantizer:
        """Return the same quantization without gradients."""
        step = self.step.detach().clone()
        return UniformQuantizer(step, torch.full_like(step, self.zero_point), self.bits)
