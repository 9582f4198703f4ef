"""Checkpoints in the wrappers and under the names in which people have them."""

import argparse
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from mixqvit.errors import ImageError, ModelError
from mixqvit.models.cards import ASSETS
from mixqvit.models.loading import load_model
from mixqvit.packing import architecture


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(ASSETS / "digits_vit.safetensors")


def loaded(tmp_path: Path, content: object, name: str = "digits_vit", file: str = "own.pth"):
    torch.save(content, tmp_path / file)
    return load_model(name, tmp_path / file)


def same(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state", "model_ema", "state_dict_ema"])
def test_wrapper_is_removed_and_named(tmp_path, state, wrapper):
    model = loaded(tmp_path, {wrapper: state, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}})
    assert same(model.module, state)
    assert repr(wrapper) in model.notes[0]
    assert ("averaged" in model.notes[0]) == ("ema" in wrapper)


def test_plain_weights_are_preferred_to_averaged_ones(tmp_path, state):
    averaged = {key: value + 1 for key, value in state.items()}
    model = loaded(tmp_path, {"model_ema": averaged, "model": state, "args": argparse.Namespace(lr=0.1)})
    assert same(model.module, state)
    assert "not the averaged ones in 'model_ema'" in model.notes[0]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model.", "backbone.", "model._orig_mod."])
def test_prefix_of_every_name_is_removed(tmp_path, state, prefix):
    model = loaded(tmp_path, {"state_dict": {prefix + key: value for key, value in state.items()}})
    assert same(model.module, state)
    assert repr(prefix) in model.notes[-1]


def test_prefix_of_some_names_is_kept(tmp_path, state):
    mixed = {("module." if key == "norm.bias" else "") + key: value for key, value in state.items()}
    with pytest.raises(ModelError, match=r"1 missing \(norm.bias\) and 1 unknown \(module.norm.bias\)"):
        loaded(tmp_path, mixed)


def test_entries_that_are_no_tensors_are_left_out_and_named(tmp_path, state):
    model = loaded(tmp_path, {**state, "epoch": 3})
    assert model.notes == ("Left out: epoch, which is no tensor.",)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, state, kind):
    model = loaded(tmp_path, {key: value.to(kind) for key, value in state.items()})
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert torch.equal(model.module.head.weight, state["head.weight"].to(kind).float())
    assert ("became float32" in str(model.notes)) == (kind != torch.float64)


@pytest.mark.parametrize("file", ["own.pt", "own.bin", "own.ckpt", "own.pth.tar"])
def test_suffixes_that_are_read(tmp_path, state, file):
    assert same(loaded(tmp_path, state, file=file).module, state)
    safetensors.torch.save_file(state, tmp_path / file)  # the content counts, not the suffix
    assert same(load_model("digits_vit", tmp_path / file).module, state)


def test_legacy_format_of_torch_is_read(tmp_path, state):
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(load_model("digits_vit", tmp_path / "old.pth").module, state)


def test_swin_as_microsoft_released_it(tmp_path):
    """Downsampling at the end of a stage, the head without `fc`, and buffers that timm computes itself."""
    state = safetensors.torch.load_file(ASSETS / "digits_swin.safetensors")
    official = {
        key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): value
        for key, value in state.items()
    }
    official["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    official["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    assert set(official) != set(state)
    assert same(loaded(tmp_path, {"model": official}, "digits_swin").module, state)


def test_mismatches_are_counted_and_the_first_ones_listed(tmp_path, state):
    del state["norm.weight"], state["norm.bias"]
    state["head.bias"] = torch.zeros(4)
    state |= {f"extra.{index}": torch.zeros(1) for index in range(5)}
    state["pos_embed"] = torch.zeros(state["pos_embed"].shape, dtype=torch.int32)
    with pytest.raises(ModelError) as caught:
        loaded(tmp_path, state)
    for words in (
        "2 missing (norm.weight, norm.bias)",
        "5 unknown (extra.0, extra.1, extra.2, ...)",
        "1 of another shape (head.bias has shape (4,) instead of (10,))",
        "1 of another kind of number (pos_embed holds int32)",
    ):
        assert words in str(caught.value)


def test_weights_that_timm_would_resize_are_of_another_shape(tmp_path):
    state = safetensors.torch.load_file(ASSETS / "digits_swin.safetensors")
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    state[key] = torch.zeros(25, state[key].shape[1])
    with pytest.raises(ModelError, match=r"bias_table has shape \(25, \d+\) instead"):
        loaded(tmp_path, state, "digits_swin")


def test_values_that_are_not_finite_are_named(tmp_path, state):
    state["norm.bias"][3], state["head.weight"][0, 0] = float("nan"), float("inf")
    with pytest.raises(ModelError, match=r"values in .*norm.bias.* that are not finite"):
        loaded(tmp_path, state)


def test_classes_channels_and_size_come_from_the_shapes(tmp_path):
    module = timm.create_model("test_vit", num_classes=7, in_chans=1, img_size=80)
    model = loaded(tmp_path, module.state_dict(), "test_vit")
    assert model.input_size == (1, 80, 80)
    assert model.class_names == model.label_names == tuple(f"class {index}" for index in range(7))
    assert len(model.mean) == 1
    assert any("average is taken" in note for note in model.notes)
    assert any("7 classes, 1 channel, 80 pixels" in note for note in model.notes)
    pixels = torch.randn(2, 1, 80, 80)
    assert torch.equal(model.module(pixels), module.eval()(pixels))
    description = architecture.describe(model)
    assert description == {"timm": "test_vit", "arguments": {"num_classes": 7, "in_chans": 1, "img_size": 80}}
    graph = architecture.rebuild(description, None, model.input_size)
    assert architecture.fingerprint(graph) == architecture.fingerprint(architecture.rebuild(None, module, (1, 80, 80)))


def test_imagenet_classes_have_words_and_wordnet_ids(tmp_path):
    model = loaded(tmp_path, timm.create_model("test_vit").state_dict(), "test_vit")
    assert (model.class_names[0], model.label_names[0]) == ("tench, Tinca tinca", "n01440764")
    assert any("taken for ImageNet's" in note for note in model.notes)


def test_features_without_a_classifier_are_refused(tmp_path):
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    with pytest.raises(ModelError, match="holds no classifier"):
        loaded(tmp_path, state, "test_vit")


def test_loading_leaves_random_numbers_alone(tmp_path):
    state = timm.create_model("test_vit").state_dict()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loaded(tmp_path, state, "test_vit")
    assert torch.equal(torch.get_rng_state(), before)


def test_preprocessing_can_be_overridden(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "own.pth")
    changes = {"mean": [0.1, 0.2, 0.3], "crop_pct": 1.0, "interpolation": "bilinear"}
    model = load_model("test_vit", tmp_path / "own.pth", changes)
    assert (model.mean, model.preprocessing.crop_pct) == ((0.1, 0.2, 0.3), 1.0)
    assert model.preprocessing.interpolation == "bilinear"
    with pytest.raises(ImageError, match="no 'input_size' to change"):
        load_model("test_vit", tmp_path / "own.pth", {"input_size": (3, 8, 8)})


@pytest.mark.parametrize(
    "arguments",
    [
        {"img_size": 10**9},
        {"depth": 10**6},
        {"checkpoint_path": "/etc/passwd"},
        {"pretrained": True},
        {"no_such": 1},
        {"embed_dim": 99_999, "num_heads": 1},
        {"num_classes": float("nan")},
        {"act_layer": ["x"] * 100},
        {"act_layer": {"a": {"b": {"c": {"d": 1}}}}},
    ],
)
def test_impossible_architectures_are_refused_before_they_are_built(arguments):
    with pytest.raises(ModelError):
        architecture.rebuild({"timm": "test_vit", "arguments": arguments}, None, (3, 160, 160))
