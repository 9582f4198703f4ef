import pytest
import timm

from mixqvit.models.names import suggestions


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("deit_tiny_patch16_244", "deit_tiny_patch16_224.fb_in1k"),
        ("DeiT-Tiny", "deit_tiny_patch16_224.fb_in1k"),
        ("deit3 small", "deit3_small_patch16_224.fb_in1k"),
        ("DeiT III small", "deit3_small_patch16_224.fb_in1k"),
        ("vit-b/16", "vit_base_patch16_224.augreg_in21k_ft_in1k"),
        ("ViT-S/16", "vit_small_patch16_224.augreg_in21k_ft_in1k"),
        ("swin tiny", "swin_tiny_patch4_window7_224.ms_in1k"),
        ("CLIP ViT-B/32", "vit_base_patch32_clip_224.laion2b_ft_in12k_in1k"),
        ("dinov2 small", "vit_small_patch14_dinov2.lvd142m"),
        ("digits_vitt", "digits_vit"),
        ("convnext_tny", "convnext_tiny"),
    ],
)
def test_what_was_meant_comes_first(typed, meant):
    assert suggestions(typed)[0] == meant


def test_right_architecture_with_a_wrong_tag_is_offered_its_tags():
    found = suggestions("deit3_base_patch16_224.fb_in21k_ft_in1k", count=2)
    assert found == ("deit3_base_patch16_224.fb_in22k_ft_in1k", "deit3_base_patch16_224.fb_in1k")


def test_suggestions_are_names_that_can_be_loaded():
    for name in suggestions("vit", count=20):
        assert name.startswith("digits_") or timm.is_model(name)


@pytest.mark.parametrize("typed", ["", "..", "qqqqqqqqqqqq", "☃", "/", "a" * 100_000, "x" * 50 + ".y"])
def test_nothing_near_is_no_suggestion(typed):
    assert suggestions(typed) == ()


def test_no_more_than_asked_for():
    assert len(suggestions("vit_base", count=5)) == 5
