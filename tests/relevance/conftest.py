from collections.abc import Callable

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mixqvit.graph import Graph, trace

_VIT = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2}
_SWIN = {"patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}

_MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(**_VIT),
    "vit_gray": lambda: VisionTransformer(**_VIT, in_chans=1),
    "vit_pooled": lambda: VisionTransformer(**_VIT, class_token=False, global_pool="avg"),
    "deit3": lambda: VisionTransformer(**_VIT, init_values=0.1, no_embed_class=True),
    "deit_distilled": lambda: VisionTransformerDistilled(**_VIT),
    "swin": lambda: SwinTransformer(img_size=16, **_SWIN),
    "swin_padded": lambda: SwinTransformer(img_size=18, **_SWIN),  # 9 x 9 tokens in windows of 4 x 4
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=sorted(_MODELS))
def model_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def build() -> Callable[[str], tuple[nn.Module, Graph, Tensor]]:
    """Return a function from a model's name to a random model, its graph and three images, in float64."""
    torch.set_num_threads(1)

    def build(name: str) -> tuple[nn.Module, Graph, Tensor]:
        module = _MODELS[name]().double().eval()
        generator = torch.Generator().manual_seed(0)
        for parameter_name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm_weight = "norm" in parameter_name and parameter_name.endswith("weight")
            parameter.data = 0.3 * noise + (1.0 if is_norm_weight else 0.0)
        channels = module.patch_embed.proj.in_channels
        size = 18 if name == "swin_padded" else 16
        pixels = torch.randn(3, channels, size, size, generator=generator, dtype=torch.float64)
        return module, trace(module, pixels), pixels

    return build
