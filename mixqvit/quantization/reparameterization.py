"""Scale reparameterization of post-LayerNorm inputs (RepQ-ViT, arXiv 2212.08254, section 3.2; METHOD.md)."""

import torch
from torch import Tensor

from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from mixqvit.quantization.quantizers.uniform import UniformQuantizer

__all__ = ["clip_ranges", "reparameterized_quantizer"]


def reparameterized_quantizer(
    channels: UniformQuantizer, round_zero_point: bool = True, clip: float = 0.0
) -> ReparameterizedQuantizer:
    """Turn a per-channel quantizer into a per-tensor one on a moved input.

    Args:
        channels: Quantizer with scale s_c and zero point z_c, `[C]`.
        round_zero_point: Round z* so that codes are integers; the published code keeps it fractional.
        clip: Recorded in the result: the share of channels whose range was clipped at either side.

    Returns:
        The quantizer with s* = mean s_c, z* = mean z_c, r = s_c / s*, t = (z* - z_c) · s*.
    """
    scale = channels.scale.mean()
    zero_point = channels.zero_point.mean()
    if round_zero_point:
        zero_point = zero_point.round()
    return ReparameterizedQuantizer(channels, UniformQuantizer(scale, zero_point, channels.bits), clip)


def clip_ranges(lower: Tensor, upper: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Clip per-channel ranges across channels (clipped channel-wise quantization, Mix-QViT; METHOD.md, ours).

    Args:
        lower: Lower ends of the ranges, `[C]`.
        upper: Upper ends, `[C]`.
        clip: Fraction c: upper ends are limited to their (1 - c)-quantile over channels, lower ends to theirs at c.

    Returns:
        The clipped lower and upper ends, `[C]` each.
    """
    if clip == 0:
        return lower, upper
    return lower.clamp(min=torch.quantile(lower, clip)), upper.clamp(max=torch.quantile(upper, 1 - clip))
