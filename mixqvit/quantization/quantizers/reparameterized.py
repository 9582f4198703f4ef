"""Per-channel quantization of a post-LayerNorm input, run per tensor."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mixqvit.quantization.quantizers.base import Quantizer, saved_by_name
from mixqvit.quantization.quantizers.uniform import UniformQuantizer

__all__ = ["ReparameterizedQuantizer"]


@saved_by_name
@dataclass(frozen=True)
class ReparameterizedQuantizer(Quantizer):
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

    # From which ratio and shift follow.
    channel_bytes: ClassVar = {f"per_channel/{name}": size for name, size in UniformQuantizer.channel_bytes.items()}
    moves_input: ClassVar = True

    @property
    def is_per_channel(self) -> bool:
        """Always."""
        return True

    @property
    def bits(self) -> int:
        """Bit-width."""
        return self.tensor.bits

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

    def grid(self, channel: int) -> Tensor:
        """Return the grid of a channel of the input."""
        return self.per_channel.grid(channel)

    @property
    def uniform(self) -> UniformQuantizer:
        """The quantizer of the moved input."""
        return self.tensor

    @property
    def move(self) -> tuple[Tensor, Tensor]:
        """1 / r and -t, `[C]`."""
        return 1 / self._divisor, -self.shift

    @property
    def unmoved(self) -> UniformQuantizer:
        """The quantizer per channel that it stands for."""
        return self.per_channel

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return W' = W · diag(r) `[out, C]` and b' = b + W' · t `[out]`, which undo the move."""
        folded = weight * self.ratio
        moved = folded @ self.shift
        return folded, moved if bias is None else bias + moved

    def unfold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W = W' · diag(1 / r) and b = b' - W' · t."""
        return weight / self._divisor, None if bias is None else bias - weight @ self.shift

    @property
    def _divisor(self) -> Tensor:
        # A ratio that underflows to zero makes a zero column, which anything undoes.
        return self.ratio.clamp(min=torch.finfo(self.ratio.dtype).tiny)
