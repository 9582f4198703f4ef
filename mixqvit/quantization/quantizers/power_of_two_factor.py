"""Power-of-two factors per channel for post-LayerNorm inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.quantization.quantizers.uniform import UniformQuantizer

__all__ = ["PowerOfTwoFactorQuantizer"]


@dataclass(frozen=True)
class PowerOfTwoFactorQuantizer:
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

    def __call__(self, values: Tensor) -> Tensor:
        """Return `values` `[..., C]` rounded to the grid of their channel, same shape."""
        return self.per_channel(values)

    @property
    def per_channel(self) -> UniformQuantizer:
        """The same quantizer written with one scale per channel, `[C]`."""
        return UniformQuantizer(torch.ldexp(self.scale, self.exponents), self.zero_point, self.bits)
