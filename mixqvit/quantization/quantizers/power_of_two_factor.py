"""Power-of-two factors per channel for post-LayerNorm inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mixqvit.quantization.operands import Operand
from mixqvit.quantization.quantizers.base import Described, OperandQuantizers, Quantizer, fit, saved_by_name
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.ranges import power_of_two, squared_errors, uniform_quantizer

__all__ = ["LARGEST_FACTOR_EXPONENT", "PowerOfTwoFactorQuantizer", "fit_power_of_two_factor", "power_of_two_factor"]

LARGEST_FACTOR_EXPONENT = 3
"""K of the power-of-two factors: the exponents are 0 to K (FQ-ViT, arXiv 2111.13824)."""


@saved_by_name
@dataclass(frozen=True)
class PowerOfTwoFactorQuantizer(Quantizer):
    """Uniform quantization of a post-LayerNorm input with a power of two per channel (FQ-ViT's Power-of-Two Factor).

    code = clamp(round(x / (2^α_c · scale)) + zero_point, 0, 2^bits - 1) for channel c (arXiv 2111.13824): one scale and
    zero point serve the tensor, and hardware applies the factors as shifts.

    Attributes:
        scale: Step size s of a channel with exponent 0, a scalar.
        zero_point: Code of the value zero, a scalar.
        exponents: α_c, whole numbers from 0 to K, `[C]`.
        bits: Bit-width.
    """

    scale: Tensor
    zero_point: Tensor
    exponents: Tensor
    bits: int

    channel_bytes: ClassVar = {"exponents": 1}

    def __call__(self, values: Tensor) -> Tensor:
        """Return `values` `[..., C]` rounded to the grid of their channel, same shape."""
        return self.uniform(values)

    def grid(self, channel: int) -> Tensor:
        """Return the grid of a channel."""
        return self.uniform.grid(channel)

    @property
    def is_per_channel(self) -> bool:
        """Always."""
        return True

    @property
    def uniform(self) -> UniformQuantizer:
        """The same quantizer written with one scale per channel, `[C]`."""
        return UniformQuantizer(torch.ldexp(self.scale, self.exponents), self.zero_point, self.bits)


@fit(
    Described(
        "power-of-two factor",
        "One even grid, stretched by 1, 2, 4 or 8 for each channel.",
        "Wins over one grid for all where some channels are much wider than others, and asks for no more than shifts. "
        "A channel between two powers wastes up to half of its levels.",
        "FQ-ViT, arXiv 2111.13824",
    ),
    per_channel=PowerOfTwoFactorQuantizer,
)
def power_of_two_factor(operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
    """Fit a power-of-two factor per channel (FQ-ViT, arXiv 2111.13824)."""
    return {bits: fit_power_of_two_factor(operand.rows, bits) for bits in bit_widths}


def fit_power_of_two_factor(values: Tensor, bits: int) -> PowerOfTwoFactorQuantizer:
    """Fit power-of-two factors to a post-LayerNorm input (FQ-ViT, arXiv 2111.13824).

    The coarsest grid, exponent K = 3, spans the tensor's range (widened to reach zero, so that the zero point is
    a code); every channel takes the exponent from 0 to K with the least squared error, saturation included.

    Args:
        values: `[N, C]`.
        bits: Bit-width.

    Returns:
        A quantizer with scalar scale and zero point and exponents `[C]`.
    """
    lower, upper = torch.aminmax(values)
    widest = uniform_quantizer(lower.clamp(max=0), upper.clamp(min=0), bits)
    unit = power_of_two(torch.maximum(-lower, upper))
    exponents = torch.arange(LARGEST_FACTOR_EXPONENT + 1, dtype=values.dtype, device=values.device)
    scales = torch.ldexp(widest.scale, exponents - LARGEST_FACTOR_EXPONENT)
    candidates = [UniformQuantizer(scale, widest.zero_point, bits) for scale in scales]
    errors = torch.stack([squared_errors(candidate, values, unit) for candidate in candidates])
    return PowerOfTwoFactorQuantizer(scales[0].clone(), widest.zero_point, exponents[errors.argmin(dim=0)], bits)
