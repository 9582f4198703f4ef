"""Logarithmic quantization with base 2."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Log2Quantizer"]


@dataclass(frozen=True)
class Log2Quantizer:
    """Logarithmic quantization with base 2 for post-softmax values (FQ-ViT's Log-Int-Softmax, arXiv 2111.13824).

    value = scale · 2^(-k) with k = clamp(round(-log2(A / scale)), 0, 2^bits - 1), so that a product with it is a bit
    shift; the smallest value is scale · 2^(1 - 2^bits), not zero. The published code sets what rounds beyond
    the last code to zero instead, which would be one value more than bits can tell apart.

    Attributes:
        scale: Largest representable value; 1 in FQ-ViT, the range of a softmax.
        bits: Bit-width.
    """

    scale: Tensor
    bits: int

    def __call__(self, values: Tensor) -> Tensor:
        """Return non-negative `values` rounded to the logarithmic grid, same shape; below zero counts as zero."""
        exponents = torch.div(values, self.scale).clamp_(min=0).log2_().round_().clamp_(1 - 2**self.bits, 0)
        return exponents.exp2_().mul_(self.scale)
