"""Logarithmic quantization with a base of its own for every operand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import threshold_

from mixqvit.quantization.operands import SAMPLED_ROWS, Operand, output_sketch, sampled_rows
from mixqvit.quantization.quantizers.base import Described, OperandQuantizers, Quantizer, fit, saved_by_name

__all__ = ["AdaptiveLogQuantizer", "adaptive_log", "fit_adaptive_log"]

GELU_SHIFT = 0.17
"""Minus the minimum of GELU, rounded up (AdaLog, arXiv 2407.12951)."""

_SCALES = (1.0, 0.8, 0.6, 0.45, 0.3)
_OCTAVES = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0)


@saved_by_name
@dataclass(frozen=True)
class AdaptiveLogQuantizer(Quantizer):
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

    def grid(self, channel: int) -> Tensor:
        """Return scale · 2^(-k · step) - shift for all codes k."""
        levels = self.scale * torch.exp2(-torch.arange(2**self.bits, dtype=torch.float64) * self.step)
        levels[-1] *= not self.zero_code
        return levels - self.shift


@fit(
    Described(
        "adaptive log",
        "A logarithm whose base and largest level are searched for the least error of the product; after GELU the "
        "values are first shifted above zero.",
        "Wins with few bits, since its base is wide enough to reach the small values, and often with more, since the "
        "base gets finer.",
        "AdaLog, arXiv 2407.12951",
    )
)
def adaptive_log(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Search scale and base of the logarithm for the least squared error of the product (AdaLog, arXiv 2407.12951).

    Post-softmax values are multiplied by the values of attention, post-GELU ones by the weight.
    """
    shift = 0.0
    if operand.role == "probabilities":
        # A part of the queries of a few images is enough for an average over all.
        images = slice(0, max(1, min(8 * operand.values.shape[0] // operand.images, 16)))
        queries = slice(0, None, max(1, operand.values.shape[-2] // 48))
        sample, partner = operand.values[images][..., queries, :], operand.partner[images]

        def error_of(difference: Tensor) -> Tensor:
            return torch.matmul(difference, partner).square_().sum()
    else:
        shift = max(GELU_SHIFT, -float(operand.values.min()))
        sample = sampled_rows(operand.rows, SAMPLED_ROWS // 8, operand.row_weights)
        sketch = output_sketch(operand.partner)

        def error_of(difference: Tensor) -> Tensor:
            return (difference @ sketch).square_().sum()

    largest = (operand.values.max() + shift).clamp(min=torch.finfo(sample.dtype).tiny)
    return {bits: fit_adaptive_log(sample, error_of, largest, shift, bits) for bits in bit_widths}


def fit_adaptive_log(
    sample: Tensor, error_of: Callable[[Tensor], Tensor], largest: Tensor, shift: float, bits: int
) -> AdaptiveLogQuantizer:
    """Return the logarithm of least error among some scales, bases and meanings of the largest code.

    Args:
        sample: Values.
        error_of: From x̂ - x, which it may overwrite, to what it costs.
        largest: The largest shifted value, above zero.
        shift: Added before the logarithm.
        bits: Bit-width.
    """
    candidates = [
        AdaptiveLogQuantizer(largest * scale, largest.new_tensor(octaves / 2**bits), shift, bits, zero_code)
        for zero_code in (False, True)
        for scale in _SCALES
        for octaves in _OCTAVES
    ]
    errors = torch.stack([error_of(candidate(sample).sub_(sample)) for candidate in candidates])
    return candidates[int(errors.argmin())]
