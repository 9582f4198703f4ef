"""Weights beside others, under prefixes, or under other libraries' names: opened exactly, or refused truly."""

import json
from pathlib import Path

import pytest
import timm
import torch

from mixqvit.errors import ModelError
from mixqvit.models.loading import load_model

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=3).eval()


@pytest.fixture(scope="module")
def state(module: torch.nn.Module) -> Tensors:
    return module.state_dict()


def under(prefix: str, state: Tensors) -> Tensors:
    return {prefix + name: value for name, value in state.items()}


def saved(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "own.pth")
    return tmp_path / "own.pth"


def refused(path: Path, message: str, *names: str | None) -> None:
    for name in names or (None, "test_vit"):
        with pytest.raises(ModelError, match=message):
            load_model(name, path)


@pytest.mark.parametrize("prefix", ["net.", "encoder.", "vit.", "timm_model.", "model.net."])
@pytest.mark.parametrize("name", [None, "test_vit"])
def test_any_prefix_is_removed(tmp_path, module, state, prefix, name):
    model = load_model(name, saved(tmp_path, {"state_dict": under(prefix, state)}))
    pixels = torch.randn(1, 3, 160, 160)
    assert torch.equal(model.module(pixels), module(pixels))
    assert f"The prefix {prefix!r} was removed from every name." in model.notes


@pytest.mark.parametrize("wrapper", ["net", "weights", "ema", "teacher"])
def test_only_set_of_weights_is_taken_from_any_wrapper(tmp_path, module, state, wrapper):
    model = load_model("test_vit", saved(tmp_path, {wrapper: state, "epoch": 3, "optimizer": {"state": {0: {}}}}))
    assert torch.equal(model.module.head.weight, module.head.weight)
    assert repr(wrapper) in str(model.notes)


def test_what_lies_beside_the_model_is_not_used_and_named(tmp_path, state):
    path = saved(tmp_path, {"state_dict": {**under("model.", state), "criterion.weight": torch.ones(3)}})
    for name in (None, "test_vit"):
        notes = load_model(name, path).notes
        assert "The weights are those whose names begin with 'model.'; not used: criterion.weight." in notes


def test_several_models_are_told_apart(tmp_path, state):
    path = saved(tmp_path, {"student": state, "teacher": state, "epoch": 3})
    refused(path, "several sets of weights, under 'student', 'teacher'; save the state_dict")
    path = saved(tmp_path, {"state_dict": {**under("student.", state), **under("teacher.", state)}})
    refused(path, r"several models \(student., teacher.\)")


def test_classifier_beside_the_features_is_named(tmp_path, state):
    features = {name: value for name, value in state.items() if not name.startswith("head.")}
    beside = {"classifier.weight": torch.zeros(3, 64), "classifier.bias": torch.zeros(3)}
    for content in ({**features, **beside}, {**under("backbone.", features), **beside}):
        refused(saved(tmp_path, content), r"classifier\.weight.* classifier.*head\.weight", "test_vit")
    refused(saved(tmp_path, under("backbone.", features)), "holds no classifier", "test_vit")


@pytest.mark.parametrize(
    ("names", "owner"),
    [
        (["vit.embeddings.patch_embeddings.projection.weight", "classifier.weight"], "Hugging Face transformers"),
        (["vision_model.embeddings.class_embedding", "classifier.weight"], "Hugging Face transformers"),
        (["conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight", "heads.head.weight"], "torchvision"),
        (["visual.conv1.weight", "visual.transformer.resblocks.0.ln_1.weight"], "OpenAI's CLIP and open_clip"),
        (["backbone.patch_embed.projection.weight", "head.fc.weight"], "mmpretrain"),
    ],
)
def test_names_of_other_libraries_are_recognized(tmp_path, names, owner):
    path = saved(tmp_path, {name: torch.zeros(3, 64) for name in names})
    refused(path, f"those of {owner}, which are not read yet; give weights under timm's names")


def test_folder_of_transformers_is_called_what_it_is(tmp_path):
    config = {"model_type": "swin", "architectures": ["SwinForImageClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = (
        r"Hugging Face transformers \(SwinForImageClassification\), whose layout is not read yet; use the same model"
    )
    with pytest.raises(ModelError, match=message):
        load_model(f"local-dir:{tmp_path}")


def test_folder_that_transformers_wrote_around_timm_is_read(tmp_path, module, state):
    config = {"model_type": "timm_wrapper", "architecture": "test_vit", "num_classes": 3, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(under("timm_model.", state), tmp_path / "pytorch_model.bin")
    assert torch.equal(load_model(f"local-dir:{tmp_path}").module.head.weight, module.head.weight)


def test_weights_in_several_files_are_called_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "num_classes": 3}))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="split into several files"):
        load_model(f"local-dir:{tmp_path}")


def test_path_in_place_of_a_name():
    with pytest.raises(ModelError, match=r"unknown model 'models/vit'; .* as local-dir:models/vit"):
        load_model("models/vit")
