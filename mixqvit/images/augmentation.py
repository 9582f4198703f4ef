"""Random changes to training images of the digits, each image changed in its own way.

torchvision's `RandomAffine` and `ElasticTransform` change all images of a batch alike, from the global generator.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["augment"]


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the digits (`[B, 1, H, W]`, 0 to 1) rotated, scaled, sheared, shifted, bent and made noisy at random."""
    count = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    angle, shear = uniform(-0.15, 0.15), uniform(-0.15, 0.15)
    width, height = uniform(0.91, 1.1), uniform(0.91, 1.1)
    cosine, sine = angle.cos(), angle.sin()
    rows = [
        torch.stack([cosine * width, (shear * cosine - sine) * height, uniform(-0.11, 0.11)], dim=1),
        torch.stack([sine * width, (shear * sine + cosine) * height, uniform(-0.11, 0.11)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    coarse = torch.randn(count, 2, 4, 4, generator=generator) * 0.03
    bend = F.interpolate(coarse, size=pixels.shape[2:], mode="bicubic", align_corners=False)
    moved = F.grid_sample(pixels, grid + bend.permute(0, 2, 3, 1), align_corners=False)
    bright = moved * uniform(0.8, 1.15).view(-1, 1, 1, 1)
    return (bright + torch.randn(pixels.shape, generator=generator) * 0.04).clamp(0, 1)
