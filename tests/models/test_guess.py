"""The architecture from names and shapes alone; most weights here have no values, so that none are written."""

from pathlib import Path

import pytest
import torch

from mixqvit.errors import ModelError
from mixqvit.models.architectures import on_meta
from mixqvit.models.catalogue import CATALOGUE
from mixqvit.models.checkpoints import Checkpoint
from mixqvit.models.guess import guess_architecture
from mixqvit.models.loading import load_model


def checkpoint(name: str, file: str = "weights.pth", **arguments: object) -> Checkpoint:
    return Checkpoint(Path(file), on_meta(name, arguments).state_dict(), ())


def test_real_deit_tiny_is_recognized(shared):
    path = shared / "real" / "deit_tiny_patch16_224.safetensors"
    model = load_model(None, path)
    assert model.name == "deit_tiny_patch16_224"
    assert model.arguments == {}
    assert model.mean == (0.485, 0.456, 0.406)
    assert "vit_tiny_patch16_224" in str(model.notes)
    assert "mean=0.5,0.5,0.5 --preprocessing std=0.5,0.5,0.5" in model.notes[-1], "vit_tiny_patch16_224 has these"
    assert model.fingerprint == load_model("deit_tiny_patch16_224", path).fingerprint


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_336", "pvt_v2_b0", "vit_small_patch14_dinov2", "test_vit3"],
)
def test_architecture_is_recognized(name):
    assert guess_architecture(checkpoint(name, num_classes=7))[0] == name


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in CATALOGUE])
def test_every_entry_of_the_catalogue_is_recognized(name):
    architecture = name.split(".")[0]
    assert guess_architecture(checkpoint(name, f"{name}.safetensors", num_classes=3))[0] == name
    assert architecture in guess_architecture(checkpoint(name, num_classes=3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"img_size": 96, "in_chans": 1}),
        ("deit3_small_patch16_224", {"img_size": 288}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 224}),
        ("beit_base_patch16_224", {"img_size": 128}),
        ("swin_tiny_patch4_window7_224", {"img_size": 256, "window_size": 8}),
        ("swin_tiny_patch4_window7_224", {"img_size": 112}),
        ("eva02_tiny_patch14_224", {"img_size": 196}),
        ("cait_xxs24_224", {"img_size": 128}),
        ("vit_base_patch32_clip_224", {"img_size": 160}),
    ],
)
def test_other_sizes_and_channels_are_recognized(name, arguments):
    assert name in guess_architecture(checkpoint(name, num_classes=3, **arguments))


def test_name_of_the_file_decides_between_equal_shapes():
    assert guess_architecture(checkpoint("vit_tiny_patch16_224"))[0] == "deit_tiny_patch16_224"
    for file in ("my_vit_tiny_patch16_224.pth", "vit-tiny-patch16-224-best.pth", "vit_tiny_finetuned.pth"):
        assert guess_architecture(checkpoint("vit_tiny_patch16_224", file))[0] == "vit_tiny_patch16_224"
    tagged = "vit_tiny_patch16_224.augreg_in21k"
    assert guess_architecture(checkpoint("vit_tiny_patch16_224", f"{tagged}.safetensors"))[0] == tagged


def test_official_names_are_recognized():
    """PVT v2 and DeiT III as their authors released them."""
    state = dict(checkpoint("deit3_small_patch16_224").state)
    official = {key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): state[key] for key in state}
    assert guess_architecture(Checkpoint(Path("a.pth"), official, ()))[0] == "deit3_small_patch16_224"
    state = dict(checkpoint("pvt_v2_b0").state)
    official = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "patch_embed":
            parts[0] = "patch_embed1"
        elif parts[0] == "stages":
            stage = int(parts[1]) + 1
            rest = {"downsample": f"patch_embed{stage}", "norm": f"norm{stage}", "blocks": f"block{stage}"}[parts[2]]
            parts = [rest, *parts[3:]]
        official[".".join(parts).replace("mlp.dwconv", "mlp.dwconv.dwconv")] = value
    assert guess_architecture(Checkpoint(Path("a.pth"), official, ()))[0] == "pvt_v2_b0"


def test_what_fits_nothing_is_described():
    state = dict(checkpoint("deit_tiny_patch16_224").state)
    state.pop("norm.bias")
    with pytest.raises(ModelError, match=r"looks like a ViT of 12 blocks, width 192 and patches of 16 pixels"):
        guess_architecture(Checkpoint(Path("a.pth"), state, ()))
    swin = on_meta("swin_tiny_patch4_window7_224", {"depths": (2, 2, 3, 2)}).state_dict()
    with pytest.raises(ModelError, match=r"a Swin of 2 \+ 2 \+ 3 \+ 2 blocks, width 96"):
        guess_architecture(Checkpoint(Path("a.pth"), swin, ()))


def test_other_networks_are_not_recognized():
    with pytest.raises(ModelError, match=r"its names \(conv1.weight, .*name the architecture"):
        guess_architecture(checkpoint("resnet18"))
    with pytest.raises(ModelError, match="no vision transformer"):
        guess_architecture(Checkpoint(Path("a.pth"), {"patch_embed.proj.weight": torch.zeros(3)}, ()))
