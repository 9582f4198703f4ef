"""The pretrained models of timm that this package is tested with; listing them needs neither torch nor timm."""

from dataclasses import dataclass

__all__ = ["CATALOGUE", "CatalogueEntry", "families"]


@dataclass(frozen=True)
class CatalogueEntry:
    """A pretrained model of timm whose family is tested here, from tracing to quantization.

    Attributes:
        name: timm's full name with its pretrained tag; `load_model` takes it.
        family: What the literature calls it, such as `DeiT III`.
        parameters: Number of parameters.
        input_size: Channels, height and width of an image.
        classes: Outputs of its classifier; 0 for features without one, which need a checkpoint fine-tuned to classes.
        published_top1: Published top-1 accuracy on ImageNet-1k, 0 to 1, as the papers on quantization give it for full
            precision; None where they do not.
    """

    name: str
    family: str
    parameters: int
    input_size: tuple[int, int, int]
    classes: int
    published_top1: float | None = None

    @property
    def note(self) -> str | None:
        """What a person must know before choosing it; None where there is nothing."""
        if self.classes:
            return None
        return f"{self.family} comes without a classifier: give a checkpoint of it that is fine-tuned to classes."


def families() -> tuple[str, ...]:
    """Return the families in the order of the catalogue."""
    return tuple(dict.fromkeys(entry.family for entry in CATALOGUE))


def _entry(
    family: str, name: str, parameters: int, size: int, classes: int, published_top1: float | None = None
) -> CatalogueEntry:
    return CatalogueEntry(name, family, parameters, (3, size, size), classes, published_top1)


CATALOGUE: tuple[CatalogueEntry, ...] = (
    _entry("ViT", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", 5_717_416, 224, 1000),
    _entry("ViT", "vit_small_patch16_224.augreg_in21k_ft_in1k", 22_050_664, 224, 1000, 0.8139),
    _entry("ViT", "vit_base_patch32_224.augreg_in21k_ft_in1k", 88_224_232, 224, 1000),
    _entry("ViT", "vit_base_patch16_224.augreg_in21k_ft_in1k", 86_567_656, 224, 1000, 0.8454),
    _entry("ViT", "vit_base_patch16_384.augreg_in21k_ft_in1k", 86_859_496, 384, 1000),
    _entry("ViT", "vit_large_patch16_224.augreg_in21k_ft_in1k", 304_326_632, 224, 1000),
    _entry("DeiT", "deit_tiny_patch16_224.fb_in1k", 5_717_416, 224, 1000, 0.7221),
    _entry("DeiT", "deit_small_patch16_224.fb_in1k", 22_050_664, 224, 1000, 0.7985),
    _entry("DeiT", "deit_base_patch16_224.fb_in1k", 86_567_656, 224, 1000, 0.8180),
    _entry("DeiT", "deit_tiny_distilled_patch16_224.fb_in1k", 5_910_800, 224, 1000),
    _entry("DeiT", "deit_small_distilled_patch16_224.fb_in1k", 22_436_432, 224, 1000),
    _entry("DeiT", "deit_base_distilled_patch16_224.fb_in1k", 87_338_192, 224, 1000),
    _entry("DeiT III", "deit3_small_patch16_224.fb_in1k", 22_059_496, 224, 1000),
    _entry("DeiT III", "deit3_medium_patch16_224.fb_in1k", 38_849_512, 224, 1000),
    _entry("DeiT III", "deit3_base_patch16_224.fb_in1k", 86_585_320, 224, 1000),
    _entry("DeiT III", "deit3_large_patch16_224.fb_in1k", 304_374_760, 224, 1000),
    _entry("Swin", "swin_tiny_patch4_window7_224.ms_in1k", 28_288_354, 224, 1000),
    _entry("Swin", "swin_small_patch4_window7_224.ms_in1k", 49_606_258, 224, 1000, 0.8323),
    _entry("Swin", "swin_base_patch4_window7_224.ms_in22k_ft_in1k", 87_768_224, 224, 1000, 0.8527),
    _entry("Swin v2", "swinv2_tiny_window8_256.ms_in1k", 28_347_154, 256, 1000),
    _entry("Swin v2", "swinv2_small_window8_256.ms_in1k", 49_728_418, 256, 1000),
    _entry("Swin v2", "swinv2_base_window8_256.ms_in1k", 87_918_816, 256, 1000),
    _entry("BEiT", "beit_base_patch16_224.in22k_ft_in22k_in1k", 86_530_984, 224, 1000),
    _entry("BEiT", "beitv2_base_patch16_224.in1k_ft_in22k_in1k", 86_530_984, 224, 1000),
    _entry("EVA-02", "eva02_tiny_patch14_336.mim_in22k_ft_in1k", 5_756_584, 336, 1000),
    _entry("EVA-02", "eva02_small_patch14_336.mim_in22k_ft_in1k", 22_129_000, 336, 1000),
    _entry("DINOv2", "vit_small_patch14_dinov2.lvd142m", 22_056_192, 518, 0),
    _entry("DINOv2", "vit_small_patch14_reg4_dinov2.lvd142m", 22_057_344, 518, 0),
    _entry("DINOv2", "vit_base_patch14_dinov2.lvd142m", 86_579_712, 518, 0),
    _entry("DINOv3", "vit_small_patch16_dinov3.lvd1689m", 21_586_944, 256, 0),
    _entry("DINOv3", "vit_base_patch16_dinov3.lvd1689m", 85_641_216, 256, 0),
    _entry("CLIP", "vit_base_patch32_clip_224.laion2b_ft_in12k_in1k", 88_225_000, 224, 1000),
    _entry("CLIP", "vit_base_patch16_clip_224.openai_ft_in12k_in1k", 86_568_424, 224, 1000),
    _entry("CaiT", "cait_xxs24_224.fb_dist_in1k", 11_956_264, 224, 1000),
    _entry("CaiT", "cait_xxs36_224.fb_dist_in1k", 17_299_720, 224, 1000),
    _entry("CaiT", "cait_s24_224.fb_dist_in1k", 46_916_200, 224, 1000),
    _entry("PVT v2", "pvt_v2_b0.in1k", 3_666_760, 224, 1000),
    _entry("PVT v2", "pvt_v2_b1.in1k", 14_009_000, 224, 1000),
    _entry("PVT v2", "pvt_v2_b2.in1k", 25_362_856, 224, 1000),
    _entry("PVT v2", "pvt_v2_b2_li.in1k", 22_553_512, 224, 1000),
    _entry("PVT v2", "pvt_v2_b3.in1k", 45_238_696, 224, 1000),
)
