"""Small timm models with seeded random weights, for tests that need a function, not an accuracy."""

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

ARCHITECTURES = ("vit", "deit", "swin")


def tiny_model(architecture: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a two-block (Swin: two-stage) model whose LayerNorms differ between channels."""
    torch.manual_seed(0)
    common = {"img_size": 16, "in_chans": 1, "num_classes": 5}
    if architecture == "swin":
        shape = {"patch_size": 2, "embed_dim": 16, "depths": (2, 1), "num_heads": (2, 4), "window_size": 4}
        model = SwinTransformer(**common, **shape)
    else:
        shape = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
        model = (VisionTransformer if architecture == "vit" else VisionTransformerDistilled)(**common, **shape)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data.log_normal_(0, 0.7)
            nn.init.normal_(module.bias, 0, 0.3)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.2)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
    return model.to(dtype).eval()


def tiny_images(count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random images `[count, 1, 16, 16]`."""
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
