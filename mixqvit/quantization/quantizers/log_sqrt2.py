"""Logarithmic quantization with base √2."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import threshold_

__all__ = ["LogSqrt2Quantizer"]


@dataclass(frozen=True)
class LogSqrt2Quantizer:
    """Logarithmic quantization with base √2 for post-softmax values (RepQ-ViT, arXiv 2212.08254, eq. 11).

    value = scale · 2^(-k/2) with k = round(-2 · log2(A / scale)); k ≥ 2^bits becomes zero, as in the published code,
    which makes 2^bits + 1 values.

    Attributes:
        scale: Largest representable value, a scalar.
        bits: Bit-width.
    """

    scale: Tensor
    bits: int

    def __call__(self, values: Tensor) -> Tensor:
        """Return non-negative `values` rounded to the logarithmic grid, same shape."""
        exponents = torch.div(values, self.scale).log2_().mul_(2).round_().clamp_(max=0)
        # threshold_ is ten times faster than masked_fill_; 2^(-∞) is the zero.
        threshold_(exponents, -(2**self.bits), -torch.inf)
        return exponents.mul_(0.5).exp2_().mul_(self.scale)
