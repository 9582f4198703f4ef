"""Quantizers: each maps a tensor to its quantized values, in floating-point arithmetic."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ActivationQuantizer", "LogSqrt2Quantizer", "ReparameterizedQuantizer", "UniformQuantizer"]


@dataclass(frozen=True)
class UniformQuantizer:
    """Asymmetric uniform quantization: code = clamp(round(x / scale) + zero_point, 0, 2^bits - 1).

    Attributes:
        scale: Step size, a scalar or broadcastable to the input.
        zero_point: Code of the value zero, shaped like `scale`; fractional only in the published RepQ-ViT variant.
        bits: Bit-width.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int

    def __call__(self, values: Tensor) -> Tensor:
        """Return `values` rounded to the grid, same shape."""
        # Clamping before the zero point is added spares two passes and is the same.
        low, high = -self.zero_point, 2**self.bits - 1 - self.zero_point
        return torch.div(values, self.scale).round_().clamp_(low, high).mul_(self.scale)


@dataclass(frozen=True)
class LogSqrt2Quantizer:
    """Logarithmic quantization with base √2 for post-softmax values (RepQ-ViT, arXiv 2212.08254, eq. 11).

    value = scale · 2^(-k/2) with k = round(-2 · log2(A / scale)); k ≥ 2^bits becomes zero.

    Attributes:
        scale: Largest representable value, a scalar.
        bits: Bit-width.
    """

    scale: Tensor
    bits: int

    def __call__(self, values: Tensor) -> Tensor:
        """Return non-negative `values` rounded to the logarithmic grid, same shape."""
        exponents = torch.div(values, self.scale).log2_().mul_(-2).round_().clamp_(min=0)
        vanishes = exponents >= 2**self.bits
        return exponents.mul_(-0.5).exp2_().mul_(self.scale).masked_fill_(vanishes, 0)


@dataclass(frozen=True)
class ReparameterizedQuantizer:
    """Per-channel quantization of a post-LayerNorm input, run per tensor (RepQ-ViT, arXiv 2212.08254, section 3.2).

    The input is moved to x' = x / ratio - shift, on which one scale and zero point serve all channels; the layer's
    weight and bias undo the move (`fold`). On hardware the move is part of the LayerNorm's own γ and β;
    here the layer applies it to its input, which is the same function and leaves other readers of the LayerNorm and
    zero padding after it alone.

    Attributes:
        ratio: r = s_c / s*, `[C]`.
        shift: t = (-z_c · s_c) / r + z* · s*, `[C]`.
        tensor: Quantizer (s*, z*) of the moved input.
        clip: Fraction of channels whose range is clipped at either side; 0 for none.
    """

    ratio: Tensor
    shift: Tensor
    tensor: UniformQuantizer
    clip: float = 0.0

    def __call__(self, values: Tensor) -> Tensor:
        """Return the quantized moved input for `values` `[..., C]`."""
        scale, zero_point = self.tensor.scale, self.tensor.zero_point
        low, high = -zero_point, 2**self.tensor.bits - 1 - zero_point
        codes = torch.addcmul(-self.shift / scale, values, 1 / (self.ratio * scale))
        return codes.round_().clamp_(low, high).mul_(scale)

    @property
    def per_channel(self) -> UniformQuantizer:
        """The per-channel quantizer (s_c, z_c), `[C]` each, that this one came from."""
        scale, zero_point = self.tensor.scale, self.tensor.zero_point
        channel_zero_points = torch.round(zero_point - self.shift / scale)
        return UniformQuantizer(self.ratio * scale, channel_zero_points, self.tensor.bits)


ActivationQuantizer = UniformQuantizer | LogSqrt2Quantizer | ReparameterizedQuantizer
