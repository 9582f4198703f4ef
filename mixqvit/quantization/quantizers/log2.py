"""Logarithmic quantization with base 2."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.quantization.operands import Operand
from mixqvit.quantization.quantizers.base import Described, OperandQuantizers, Quantizer, fit, saved_by_name

__all__ = ["Log2Quantizer", "log2"]


@saved_by_name
@dataclass(frozen=True)
class Log2Quantizer(Quantizer):
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

    def grid(self, channel: int) -> Tensor:
        """Return scale · 2^(-k) for all codes k."""
        return self.scale * torch.exp2(-torch.arange(2**self.bits, dtype=torch.float64))


@fit(
    Described(
        "log2",
        "Every level is half of the one before: 1, 1/2, 1/4, … A product with one is a bit shift.",
        "Wins where most values are tiny and few bits must reach them. The gaps between the large levels never get "
        "finer, so its error stops falling: more bits only add levels next to zero.",
        "FQ-ViT, arXiv 2111.13824",
    )
)
def log2(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Take log2 with the scale 1 of a softmax (log-int-softmax, FQ-ViT, arXiv 2111.13824)."""
    return {bits: Log2Quantizer(operand.values.new_ones(()), bits) for bits in bit_widths}
