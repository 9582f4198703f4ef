"""Logarithmic quantization with a base of its own for every operand."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import threshold_

__all__ = ["AdaptiveLogQuantizer"]


@dataclass(frozen=True)
class AdaptiveLogQuantizer:
    """Logarithmic quantization whose base is fitted, after a shift (AdaLog, arXiv 2407.12951).

    value = scale · 2^(-k · step) - shift with k = clamp(round(-log2((x + shift) / scale) / step), 0, 2^bits - 1);
    x + shift ≤ 0 gets the largest code. Post-softmax values need no shift. Post-GELU values are shifted by minus the
    minimum of GELU, 0.17, above zero; the next layer's bias can absorb the shift (bias reparameterization), which is
    the same as subtracting it here.

    Attributes:
        scale: Largest representable shifted value.
        step: log2 of the base: 1 is base 2, 1/2 is base √2.
        shift: Added before the logarithm and subtracted from the value.
        bits: Bit-width.
        zero_code: The largest code stands for zero after the shift (value -shift), not for the smallest power.
    """

    scale: Tensor
    step: Tensor
    shift: float
    bits: int
    zero_code: bool = False

    def __call__(self, values: Tensor) -> Tensor:
        """Return `values` rounded to the shifted logarithmic grid, same shape."""
        last = 1 - 2**self.bits
        exponents = torch.add(values, self.shift).clamp_(min=0).div_(self.scale).log2_().div_(self.step)
        exponents.round_().clamp_(last, 0)
        if self.zero_code:
            # threshold_ is ten times faster than masked_fill_; 2^(-∞) is the zero.
            threshold_(exponents, last, -torch.inf)
        return exponents.mul_(self.step).exp2_().mul_(self.scale).sub_(self.shift)
