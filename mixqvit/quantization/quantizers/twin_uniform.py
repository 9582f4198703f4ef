"""Twin uniform quantization: two uniform ranges share the codes (PTQ4ViT, arXiv 2111.12293, section 3.2).

T(x) is the uniform quantizer of range R1 for x in R1 and that of R2 otherwise, each with 2^(bits - 1) codes; the step
of R2 is the step of R1 times 2^exponent, so that integer products of both ranges are aligned by a shift.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.quantization.operands import Operand, sampled_values
from mixqvit.quantization.quantizers.base import Described, OperandQuantizers, Quantizer, fit, saved_by_name
from mixqvit.quantization.sorted_values import SortedValues

__all__ = [
    "TwinGeluQuantizer",
    "TwinSoftmaxQuantizer",
    "fit_twin_gelu",
    "fit_twin_softmax",
    "twin_gelu",
    "twin_softmax",
]


@saved_by_name
@dataclass(frozen=True)
class TwinSoftmaxQuantizer(Quantizer):
    """Twin uniform quantization of post-softmax values: R1 = [0, 2^(bits - 1) · scale), R2 = [0, 1].

    Differs from the paper where R2 would round a value above R1 down to zero: it becomes the largest value of R1,
    which is nearer and keeps the order of values.

    Attributes:
        scale: Step of the fine range R1.
        exponent: log2 of the coarse step of R2 over the fine one, a whole number, zero or more.
        bits: Bit-width.
    """

    scale: Tensor
    exponent: Tensor
    bits: int

    def __call__(self, values: Tensor) -> Tensor:
        """Return `values` rounded to the grid of the range they lie in, same shape; below zero counts as zero."""
        last = 2 ** (self.bits - 1) - 1
        coarse_scale = torch.ldexp(self.scale, self.exponent)
        fine = torch.div(values, self.scale).round_().clamp_(0, last).mul_(self.scale)
        coarse = torch.div(values, coarse_scale).round_().clamp_(max=last).mul_(coarse_scale)
        # Beyond R1 the fine value is R1's largest, and that is what a coarse value below it gives way to.
        beyond = torch.ge(values, (last + 1) * self.scale, out=torch.empty_like(values))
        return torch.maximum(fine, coarse.mul_(beyond), out=fine)

    def grid(self, channel: int) -> Tensor:
        """Return both ranges, of R2 what lies beyond R1."""
        codes = torch.arange(2 ** (self.bits - 1), dtype=torch.float64)
        fine, coarse = codes * self.scale, codes * torch.ldexp(self.scale, self.exponent)
        return torch.cat([fine, coarse[coarse > fine[-1]]])


@saved_by_name
@dataclass(frozen=True)
class TwinGeluQuantizer(Quantizer):
    """Twin uniform quantization of post-GELU values: R1 = [-2^(bits - 1) · scale, 0], R2 holds what is positive.

    Attributes:
        scale: Step of the negative range R1.
        exponent: log2 of the step of the positive range R2 over that of R1, a whole number.
        bits: Bit-width.
    """

    scale: Tensor
    exponent: Tensor
    bits: int

    def __call__(self, values: Tensor) -> Tensor:
        """Return `values` rounded to the grid of their sign, same shape."""
        half = 2 ** (self.bits - 1)
        positive_scale = torch.ldexp(self.scale, self.exponent)
        negative = torch.div(values, self.scale).round_().clamp_(-half, 0).mul_(self.scale)
        # One of the two is zero everywhere.
        positive = torch.div(values, positive_scale).round_().clamp_(0, half - 1).mul_(positive_scale)
        return negative.add_(positive)

    def grid(self, channel: int) -> Tensor:
        """Return both ranges."""
        codes = torch.arange(2 ** (self.bits - 1) + 1, dtype=torch.float64)
        return torch.cat([-codes * self.scale, codes[:-1] * torch.ldexp(self.scale, self.exponent)])


_TWIN_UNIFORM = Described(
    "twin uniform",
    "Two even grids share the codes. After softmax: a fine one near zero and a coarse one up to 1. After GELU: one for "
    "negative values, one for positive ones.",
    "Wins with many bits over log2 and log√2, since its steps get finer everywhere and theirs do not, and in places "
    "over adaptive log. Each of its two grids has only half of the codes.",
    "PTQ4ViT, arXiv 2111.12293",
)


@fit(_TWIN_UNIFORM)
def twin_softmax(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Fit the twin ranges of post-softmax values (PTQ4ViT, arXiv 2111.12293)."""
    ordered = SortedValues.of(sampled_values(operand.values))
    return {bits: fit_twin_softmax(ordered, bits) for bits in bit_widths}


@fit(_TWIN_UNIFORM)
def twin_gelu(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Fit the twin ranges of post-GELU values (PTQ4ViT, arXiv 2111.12293)."""
    ordered = SortedValues.of(sampled_values(operand.values))
    return {bits: fit_twin_gelu(ordered, bits) for bits in bit_widths}


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
