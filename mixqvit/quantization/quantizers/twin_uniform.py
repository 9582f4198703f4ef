"""Twin uniform quantization: two uniform ranges share the codes (PTQ4ViT, arXiv 2111.12293, section 3.2).

T(x) is the uniform quantizer of range R1 for x in R1 and that of R2 otherwise, each with 2^(bits - 1) codes; the step
of R2 is the step of R1 times 2^exponent, so that integer products of both ranges are aligned by a shift.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TwinGeluQuantizer", "TwinSoftmaxQuantizer"]


@dataclass(frozen=True)
class TwinSoftmaxQuantizer:
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


@dataclass(frozen=True)
class TwinGeluQuantizer:
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
