"""Logarithmic quantization with base √2."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import threshold_

from mixqvit.quantization.operands import Operand
from mixqvit.quantization.quantizers.base import Described, OperandQuantizers, Quantizer, fit, saved_by_name
from mixqvit.quantization.ranges import PERCENTILES, by_percentile, power_of_two, squared_errors, tail_quantiles

__all__ = ["LogSqrt2Quantizer", "fit_log_sqrt2", "log_sqrt2"]


@saved_by_name
@dataclass(frozen=True)
class LogSqrt2Quantizer(Quantizer):
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

    def grid(self, channel: int) -> Tensor:
        """Return scale · 2^(-k/2) for all codes k, and zero."""
        codes = torch.arange(2**self.bits, dtype=torch.float64)
        return torch.cat([self.scale * torch.exp2(-codes / 2), codes[:1]])


@fit(
    Described(
        "log√2",
        "Every level is the one before over √2, and one more is zero; the largest is searched for.",
        "Wins over log2 where bits suffice to reach the small values: twice as many levels for the large ones. With "
        "3 bits its smallest level is 1/11 of the largest; what is much smaller becomes zero.",
        "RepQ-ViT, arXiv 2212.08254",
    )
)
def log_sqrt2(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search the scale of log√2 over percentiles (RepQ-ViT, arXiv 2212.08254)."""
    return by_percentile(operand.values, bit_widths, fit_log_sqrt2)


def fit_log_sqrt2(values: Tensor, bits: int, ranges: tuple[Tensor, Tensor] | None = None) -> LogSqrt2Quantizer:
    """Fit the scale of a √2 logarithm to non-negative values by percentile search for the least squared error.

    Args:
        values: Values of any shape.
        bits: Bit-width.
        ranges: Lower and upper quantiles of `values` at `PERCENTILES`, where they are known already.
    """
    _, upper = ranges or tail_quantiles(values.reshape(-1, 1), PERCENTILES)
    tiny = torch.finfo(values.dtype).tiny
    candidates = [LogSqrt2Quantizer(scale.clamp(min=tiny), bits) for scale in upper[:, 0]]
    unit = power_of_two(candidates[-1].scale)
    errors = [float(squared_errors(candidate, values.reshape(-1, 1), unit)) for candidate in candidates]
    return candidates[errors.index(min(errors))]
