"""Uniform quantization."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mixqvit.quantization.quantizers.base import Quantizer, saved_by_name

__all__ = ["UniformQuantizer"]


@saved_by_name
@dataclass(frozen=True)
class UniformQuantizer(Quantizer):
    """Asymmetric uniform quantization: code = clamp(round(x / scale) + zero_point, 0, 2^bits - 1).

    Attributes:
        scale: Step size, a scalar or broadcastable to the input.
        zero_point: Code of the value zero, shaped like `scale`; fractional only in the published RepQ-ViT variant, and
            halfway between two codes where weights are scaled by their statistics.
        bits: Bit-width.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int

    channel_bytes: ClassVar = {"scale": 4, "zero_point": 4}

    def __call__(self, values: Tensor) -> Tensor:
        """Return `values` rounded to the grid, same shape."""
        # Clamping before the zero point is added spares two passes and is the same. Two clamps by one tensor each are
        # ten times faster than one clamp by two broadcast tensors.
        low, high = -self.zero_point, 2**self.bits - 1 - self.zero_point
        return torch.div(values, self.scale).round_().clamp_(min=low).clamp_(max=high).mul_(self.scale)

    def grid(self, channel: int) -> Tensor:
        """Return (code - zero_point) · scale for all codes."""
        codes = torch.arange(2**self.bits, dtype=torch.float64)
        scale, zero_point = self.scale.flatten(), self.zero_point.expand_as(self.scale).flatten()
        own = channel if self.is_per_channel else 0
        return (codes - zero_point[own]) * scale[own]

    @property
    def is_per_channel(self) -> bool:
        """Whether there is more than one scale."""
        return self.scale.numel() > 1

    @property
    def uniform(self) -> "UniformQuantizer":
        """Itself."""
        return self

    def codes(self, quantized: Tensor) -> Tensor:
        """Return the codes of values on the grid, int64; whether they are on it, `decoded` tells."""
        whole = self.zero_point.floor()
        steps = torch.round(quantized / self.scale + (self.zero_point - whole))
        return steps.long() + whole.long()

    def decoded(self, codes: Tensor) -> Tensor:
        """Return the values (code - zero_point) · scale of codes, to the last bit those that `codes` was given."""
        whole = self.zero_point.floor()
        steps = (codes.long() - whole.long()).to(self.scale.dtype)
        return (steps - (self.zero_point - whole)) * self.scale
