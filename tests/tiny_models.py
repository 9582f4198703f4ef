"""Small timm models with seeded random weights, for tests that need a function, not an accuracy."""

from collections.abc import Callable, Mapping

import torch
from timm.layers import SwiGLUPacked
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
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


_VIT = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2}
_WINDOWS = {"patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
_GATED = {"mlp_ratio": 8 / 3, "swiglu_mlp": True}
_ROTARY = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}
_DINO3 = {"qkv_bias": False, "use_abs_pos_emb": False, "num_reg_tokens": 4, "use_fc_norm": False, "init_values": 0.1}
_PYRAMID = {
    "embed_dims": (8, 16, 16, 16),
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 2, 2, 2),
    "mlp_ratios": (2, 2, 2, 2),
}

TRANSFORMERS: Mapping[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(**_VIT),
    "vit_gray": lambda: VisionTransformer(**_VIT, in_chans=1),
    "vit_pooled": lambda: VisionTransformer(**_VIT, class_token=False, global_pool="avg"),
    "deit3": lambda: VisionTransformer(**_VIT, init_values=0.1, no_embed_class=True),
    "deit_distilled": lambda: VisionTransformerDistilled(**_VIT),
    "clip": lambda: VisionTransformer(**_VIT, pre_norm=True, act_layer="quick_gelu"),
    "dinov2": lambda: VisionTransformer(**_VIT, init_values=0.1, reg_tokens=2, no_embed_class=True),
    "dinov2_gated": lambda: VisionTransformer(**_VIT, init_values=0.1, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU),
    "siglip": lambda: VisionTransformer(**_VIT, class_token=False, global_pool="map"),
    "beit": lambda: Beit(**_VIT, init_values=0.1, use_rel_pos_bias=True, use_abs_pos_emb=False),
    "eva02": lambda: Eva(**_VIT, **_GATED, **_ROTARY, qkv_fused=False, scale_mlp=True),
    "eva02_fused": lambda: Eva(**_VIT, **_GATED, **_ROTARY),
    "dinov3": lambda: Eva(**_VIT, **_DINO3, use_rot_pos_emb=True, rope_type="dinov3", rope_rotate_half=True),
    "cait": lambda: Cait(**_VIT, init_values=0.1),
    "swin": lambda: SwinTransformer(img_size=16, **_WINDOWS),
    "swin_padded": lambda: SwinTransformer(img_size=18, **_WINDOWS),  # 9 x 9 tokens in windows of 4 x 4
    "swin_v2": lambda: SwinTransformerV2(img_size=16, **_WINDOWS),
    "pvt_v2": lambda: PyramidVisionTransformerV2(**_PYRAMID, num_classes=5),
    "pvt_v2_linear": lambda: PyramidVisionTransformerV2(**_PYRAMID, num_classes=5, linear=True),
}
"""Every architecture that the README names, small."""

_SIZES = {"swin_padded": 18, "pvt_v2": 64, "pvt_v2_linear": 64}


def small_transformer(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """Return one of `TRANSFORMERS` with random weights, and three random images for it."""
    module = TRANSFORMERS[name]().double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        is_norm_weight = "norm" in parameter_name and parameter_name.endswith("weight")
        parameter.data = 0.3 * noise + (1.0 if is_norm_weight else 0.0)
    channels, size = module.patch_embed.proj.in_channels, _SIZES.get(name, 16)
    pixels = torch.randn(3, channels, size, size, generator=generator, dtype=torch.float64)
    return module.to(dtype), pixels.to(dtype)
