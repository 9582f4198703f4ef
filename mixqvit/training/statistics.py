"""Weights quantized by their own statistics (StatsQ of OFQ, Liu et al. 2023, arXiv 2302.02210), and their annealing."""

from typing import Any

import torch
from torch import Tensor, nn

from mixqvit.quantization.quantizers.uniform import UniformQuantizer

__all__ = ["BOUNDARY_RANGE", "StatisticalStep", "near_threshold", "statistical_quantizer"]

BOUNDARY_RANGE = 0.005
"""Half the width of the band around a rounding threshold, in steps, in which weights are still trained."""


def statistical_quantizer(weight: Tensor, bits: int) -> UniformQuantizer:
    """Return the quantizer of a weight `[out, ...]` whose scale follows from the weight.

    Every output channel c is scaled by α_c = 2 · mean|w_c| and has 2^bits values, symmetric and without zero:
    α · (k + ½) / 2^(bits - 1) for k from -2^(bits - 1) to 2^(bits - 1) - 1. Nothing is learned, so that scale and
    weights do not chase each other (oscillation).

    Returns:
        Scale `[out, 1, ...]` and a zero point halfway between two codes.
    """
    levels = 2 ** (bits - 1)
    mean = weight.detach().abs().flatten(1).mean(dim=1).view(-1, *[1] * (weight.dim() - 1))
    scale = 2 * mean / levels
    scale = torch.where(scale > torch.finfo(scale.dtype).tiny * 2**bits, scale, torch.ones_like(scale))
    return UniformQuantizer(scale, torch.full_like(scale, levels - 0.5), bits)


def quantized(weight: Tensor, quantizer: UniformQuantizer) -> Tensor:
    """Return the values of a weight on the grid of `statistical_quantizer`."""
    return (_codes(weight, quantizer) - quantizer.zero_point).mul_(quantizer.scale)


def _codes(weight: Tensor, quantizer: UniformQuantizer) -> Tensor:
    position = torch.addcdiv(quantizer.zero_point, weight, quantizer.scale)
    return position.round_().clamp_(0, 2**quantizer.bits - 1)


def near_threshold(weight: Tensor, quantizer: UniformQuantizer, boundary: float = BOUNDARY_RANGE) -> Tensor:
    """Return which weights are so near to a rounding threshold that they may go either way (CGA, section 4.2).

    Confidence-guided annealing trains those and freezes all others. Beyond the outermost thresholds nothing
    changes any more, so that weights there are confident.

    Args:
        weight: `[out, ...]`.
        quantizer: Its quantizer.
        boundary: Half the width of the band, in steps.

    Returns:
        Booleans shaped like the weight.
    """
    position = torch.addcdiv(quantizer.zero_point.expand_as(weight), weight, quantizer.scale)
    threshold = (position - 0.5).round_().clamp_(0, 2**quantizer.bits - 2)
    return (position - 0.5 - threshold).abs() <= boundary


class _StraightThrough(torch.autograd.Function):
    """Quantized values with the gradients of the weight; weight + (values - weight) would round them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor) -> Tensor:
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class StatisticalStep(nn.Module):
    """A weight quantizer without parameters: the scale follows from the weight.

    Attributes:
        first: Scales before training, `[out, 1, ...]`.
        bits: Bit-width.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        """Remember the scales that the weight `[out, ...]` starts with."""
        super().__init__()
        self.bits = bits
        self.register_buffer("first", self.quantizer(weight).scale)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight; gradients go straight through, to all weights."""
        return _StraightThrough.apply(weight, self.values(weight))

    def values(self, weight: Tensor) -> Tensor:
        """Return the values that the codes of a weight stand for."""
        return quantized(weight.detach(), self.quantizer(weight))

    def quantizer(self, weight: Tensor) -> UniformQuantizer:
        """Return the quantizer of the weight as it is."""
        return statistical_quantizer(weight, self.bits)
