"""What is assumed when weights are opened is said in the model's notes, with how to choose otherwise."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from mixqvit.errors import ModelError
from mixqvit.models.architectures import on_meta
from mixqvit.models.assumed import preprocessing_note
from mixqvit.models.catalogue import CATALOGUE
from mixqvit.models.checkpoints import Checkpoint
from mixqvit.models.guess import guess, guess_architecture
from mixqvit.models.loading import load_model
from mixqvit.models.preprocessing import Preprocessing

IMAGENET = Preprocessing((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "own.pth")
    return tmp_path / "own.pth"


def test_assumed_preprocessing_is_said_with_the_likeliest_other():
    note = preprocessing_note(IMAGENET, "deit_tiny_patch16_224", ["vit_tiny_patch16_224"], ())
    assert note == (
        "The preprocessing is assumed, as of deit_tiny_patch16_224: mean=0.485,0.456,0.406 std=0.229,0.224,0.225 "
        "interpolation=bicubic crop_pct=0.9. If it differs, e.g. --preprocessing mean=0.5,0.5,0.5 "
        "--preprocessing std=0.5,0.5,0.5."
    )


def test_what_a_tag_of_the_same_architecture_has_is_the_example():
    half = replace(IMAGENET, mean=(0.5,) * 3, std=(0.5,) * 3)
    note = preprocessing_note(half, "vit_base_patch16_clip_224", [], ())
    assert note.endswith("e.g. --preprocessing mean=0.4815,0.4578,0.4082 --preprocessing std=0.2686,0.2613,0.2758.")


@pytest.mark.parametrize("pair", [IMAGENET, replace(IMAGENET, mean=(0.5,) * 3, std=(0.5,) * 3)])
def test_the_note_is_short(pair):
    for name in dict.fromkeys(entry.name.partition(".")[0] for entry in CATALOGUE):
        assert len(preprocessing_note(pair, name, (), ())) <= 250


def test_what_is_known_is_not_said():
    assert preprocessing_note(IMAGENET, "deit_tiny_patch16_224", ["vit_tiny_patch16_224"], {"mean", "std"}) is None
    note = preprocessing_note(IMAGENET, "deit_tiny_patch16_224", ["vit_tiny_patch16_224"], {"mean"})
    assert "mean=" not in note
    assert "std=0.5,0.5,0.5" in note


@pytest.mark.parametrize("name", [None, "test_vit"])
def test_note_goes_when_a_person_has_chosen(file, name):
    assert any("preprocessing is assumed" in note for note in load_model(name, file).notes)
    chosen = {"mean": (0.1, 0.2, 0.3), "std": (0.5,) * 3}
    assert not any("assumed" in note for note in load_model(name, file, chosen).notes)


def test_channels_without_a_normalization_of_their_own(tmp_path):
    torch.save(timm.create_model("test_vit", num_classes=3, in_chans=4).state_dict(), tmp_path / "own.pth")
    model = load_model(None, tmp_path / "own.pth")
    assert model.input_size == (4, 160, 160)
    assert any("average is taken" in note and "4 number(s)" in note for note in model.notes)
    chosen = {"mean": (0.5,) * 4, "std": (0.25,) * 4}
    model = load_model(None, tmp_path / "own.pth", chosen)
    assert model.mean == (0.5,) * 4
    assert not any("average" in note for note in model.notes)


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "xcit_nano_12_p16_224"])
def test_channels_are_those_of_the_image(tmp_path, name):
    """The patch embedding of a hybrid reads features, that of XCiT is several convolutions."""
    for channels in (3, 4):
        module = timm.create_model(name, num_classes=3, in_chans=channels, depth=1)
        torch.save(module.state_dict(), tmp_path / "model.pth")
        arguments = {"depth": 1, "in_chans": channels}
        config = {"architecture": name, "num_classes": 3, "model_args": arguments}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert load_model(f"local-dir:{tmp_path}").input_size[0] == channels


def test_folder_without_normalization_has_the_same_note(tmp_path):
    safetensors.torch.save_file(
        timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "model.safetensors"
    )
    config = {"architecture": "test_vit", "num_classes": 3, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "preprocessing is assumed" in str(load_model(f"local-dir:{tmp_path}").notes)
    config["pretrained_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "assumed" not in str(load_model(f"local-dir:{tmp_path}").notes)


def test_architectures_of_the_same_shapes_that_compute_something_else_are_named():
    state = on_meta("swinv2_tiny_window8_256", {"num_classes": 3}).state_dict()
    guessed = guess(Checkpoint(Path("a.pth"), state, ()))
    assert guessed.names[0] == "swinv2_tiny_window8_256"
    assert "window" in guessed.differing["swinv2_tiny_window16_256"]
    state = on_meta("vit_tiny_patch16_224", {"num_classes": 3}).state_dict()
    assert guess(Checkpoint(Path("a.pth"), state, ())).differing == {}


def test_official_swin_is_guessed():
    """Downsampling at the end of a stage, and buffers of every block: timm's filter looks all its blocks up."""
    module = on_meta("swin_tiny_patch4_window7_224", {"num_classes": 7})
    state = {}
    for name, value in module.state_dict().items():
        parts = name.replace("head.fc.", "head.").split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        state[".".join(parts)] = value
    state["layers.2.blocks.5.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64, device="meta")
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49, device="meta")
    assert "swin_tiny_patch4_window7_224" in guess_architecture(Checkpoint(Path("a.pth"), state, ()))


def test_relative_positions_are_recognized():
    state = on_meta("vit_relpos_small_patch16_224", {"num_classes": 7}).state_dict()
    assert "vit_relpos_small_patch16_224" in guess_architecture(Checkpoint(Path("a.pth"), state, ()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"global_pool": "avg"},
            r"closest is deit_tiny_patch16_224: tensors 2 missing \(norm.bias.* and 2 unknown \(fc_n",
        ),
        (
            {"global_pool": "avg", "class_token": False},
            r"timm's conversion of released weights does not take them \(.+\)",
        ),
        ({"depth": 6, "patch_size": 4}, "timm has none of this family with these dimensions"),
    ],
)
def test_own_arguments_are_refused_with_a_way_to_say_them(arguments, message):
    state = on_meta("vit_tiny_patch16_224", arguments).state_dict()
    with pytest.raises(ModelError, match=message) as caught:
        guess_architecture(Checkpoint(Path("a.pth"), state, ()))
    assert '"model_args"' in str(caught.value)
    assert "local-dir:" in str(caught.value)
