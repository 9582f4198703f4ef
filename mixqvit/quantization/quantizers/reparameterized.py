"""Per-channel quantization of a post-LayerNorm input, run per tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.quantization.quantizers.uniform import UniformQuantizer

__all__ = ["ReparameterizedQuantizer"]


@dataclass(frozen=True)
class ReparameterizedQuantizer:
    """Per-channel quantization of a post-LayerNorm input, run per tensor (RepQ-ViT, arXiv 2212.08254, section 3.2).

    The input is moved to x' = x / ratio - shift, on which one scale and zero point serve all channels; the layer's
    weight and bias undo the move (`fold`). On hardware the move is part of the LayerNorm's own γ and β;
    here the layer applies it to its input, which is the same function and leaves other readers of the LayerNorm and
    zero padding after it alone.

    Attributes:
        per_channel: The quantizer (s_c, z_c), `[C]` each, that it stands for. Kept as it was fitted: a scale restored
            from the ratio differs in its last bit, which is enough to leave the published values.
        tensor: Quantizer (s*, z*) of the moved input.
        clip: Fraction of channels whose range is clipped at either side; 0 for none.
    """

    per_channel: UniformQuantizer
    tensor: UniformQuantizer
    clip: float = 0.0

    @property
    def ratio(self) -> Tensor:
        """Return r = s_c / s*, `[C]`."""
        return self.per_channel.scale / self.tensor.scale

    @property
    def shift(self) -> Tensor:
        """Return t = (-z_c · s_c) / r + z* · s* = (z* - z_c) · s*, `[C]`."""
        return (self.tensor.zero_point - self.per_channel.zero_point) * self.tensor.scale

    def __call__(self, values: Tensor) -> Tensor:
        """Return the quantized moved input for `values` `[..., C]`."""
        scale, zero_point = self.tensor.scale, self.tensor.zero_point
        low, high = -zero_point, 2**self.tensor.bits - 1 - zero_point
        # A channel far below all others may have a scale that underflows; its reciprocal must stay finite.
        channel_scale = (self.ratio * scale).clamp_(min=4 * torch.finfo(scale.dtype).tiny)
        codes = torch.addcmul(-self.shift / scale, values, 1 / channel_scale)
        return codes.round_().clamp_(min=low).clamp_(max=high).mul_(scale)
