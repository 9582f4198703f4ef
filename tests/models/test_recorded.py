"""What training scripts write beside the weights: it decides before anything is guessed."""

import argparse
from pathlib import Path

import pytest
import timm
import torch

from mixqvit.errors import ModelError
from mixqvit.models.loading import load_model
from mixqvit.models.model import Model
from mixqvit.models.recorded import recorded_in


def state(name: str = "test_vit", **arguments: object) -> dict[str, torch.Tensor]:
    return timm.create_model(name, **{"num_classes": 3, **arguments}).state_dict()


def opened(tmp_path: Path, content: object, **options: object) -> Model:
    torch.save(content, tmp_path / "own.pth")
    return load_model(checkpoint=tmp_path / "own.pth", **options)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ({"arch": "vit_tiny_patch16_224"}, "arch"),
        ({"arch": "visiontransformer", "args": argparse.Namespace(model="vit_tiny_patch16_224")}, "args.model"),
        ({"args": {"arch": "vit_tiny_patch16_224"}}, "args.arch"),
        ({"hyper_parameters": {"lr": 1e-3, "model_name": "vit_tiny_patch16_224"}}, "hyper_parameters.model_name"),
    ],
)
def test_written_architecture_goes_before_a_guess(where, source):
    recorded = recorded_in([{"state_dict": {}, **where}])
    assert (recorded.architecture, recorded.source) == ("vit_tiny_patch16_224", source)


def test_written_architecture_brings_its_preprocessing(tmp_path):
    """By names and shapes alone no architecture fits."""
    weights = state("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=3)
    settings = argparse.Namespace(
        model="vit_tiny_patch16_224", model_kwargs={"depth": 1, "img_size": 32}, mean=None, std=None
    )
    model = opened(tmp_path, {"arch": settings.model, "state_dict": weights, "args": settings})
    assert (model.name, model.mean, model.input_size) == ("vit_tiny_patch16_224", (0.5, 0.5, 0.5), (3, 32, 32))
    assert "The file names its architecture vit_tiny_patch16_224 (args.model)." in model.notes
    assert not any("guessed" in note or "assumed" in note for note in model.notes), "timm's script leaves None to timm"


def test_preprocessing_of_the_training_is_used(tmp_path):
    settings = argparse.Namespace(
        model="test_vit", mean=[0.1, 0.2, 0.3], std=[0.4], interpolation="bilinear", crop_pct=0.8, num_classes=5
    )
    model = opened(tmp_path, {"state_dict": state(), "args": settings})
    assert (model.mean, model.preprocessing.std) == ((0.1, 0.2, 0.3), (0.4,) * 3)
    assert (model.preprocessing.interpolation, model.preprocessing.crop_pct) == ("bilinear", 0.8)
    assert "The file says 5 classes, its classifier has 3." in model.notes
    assert not any("assumed" in note for note in model.notes)


def test_arguments_are_read_after_timm_read_weights_of_its_own(tmp_path):
    content = {"state_dict": state(), "args": argparse.Namespace(model="test_vit")}
    torch.save(content, tmp_path / "own.pth")
    timm.models.load_checkpoint(timm.create_model("test_vit", num_classes=3), str(tmp_path / "own.pth"))
    assert opened(tmp_path, content).name == "test_vit"


def test_pooling_that_shows_in_no_shape_is_used(tmp_path):
    weights = state(global_pool="avg", fc_norm=False)
    settings = argparse.Namespace(model="test_vit", gp="avg", model_kwargs={"fc_norm": False})
    model = opened(tmp_path, {"state_dict": weights, "args": settings})
    assert model.module.global_pool == "avg"
    assert model.arguments == {"global_pool": "avg", "fc_norm": False, "num_classes": 3}


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("pvt_v2_b0", 96, {"depths": [1, 1, 1, 1]}),
        ("swin_tiny_patch4_window7_224", 448, {"depths": [1, 1, 1, 1], "embed_dim": 24, "num_heads": [1, 1, 1, 1]}),
    ],
)
def test_image_size_that_shows_in_no_shape_is_used(tmp_path, name, size, arguments):
    settings = argparse.Namespace(model=name, img_size=size, model_kwargs=arguments)
    assert opened(tmp_path, {"state_dict": state(name, **arguments), "args": settings}).input_size == (3, size, size)


def test_table_of_positions_goes_before_the_written_size(tmp_path):
    model = opened(tmp_path, {"state_dict": state(), "args": argparse.Namespace(model="test_vit", input_size=320)})
    assert model.input_size == (3, 160, 160)


def test_what_is_no_architecture_of_timm_is_said(tmp_path):
    model = opened(tmp_path, {"model": state(), "args": argparse.Namespace(model="my_vit", mean="grey")})
    assert model.name == "test_vit"
    assert "The file says args.model = 'my_vit', which is no architecture of timm." in model.notes
    assert "The file says mean = grey, which cannot be used." in model.notes


def test_architecture_that_a_person_names_goes_first(tmp_path):
    torch.save({"model": state(), "arch": "vit_tiny_patch16_224"}, tmp_path / "own.pth")
    model = load_model("test_vit", tmp_path / "own.pth")
    assert model.name == "test_vit"
    assert any("names another architecture, vit_tiny_patch16_224 (arch)" in note for note in model.notes)
    with pytest.raises(ModelError, match=r"not hold the weights of vit_tiny_patch16_224: .* names that architecture"):
        load_model(checkpoint=tmp_path / "own.pth")


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": [10**400] * 3, "std": [0.0, 1.0, 1.0]},
        {"mean": torch.zeros(3), "interpolation": torch.zeros(2), "crop_pct": float("nan"), "img_size": True},
        {"model_kwargs": {3: 4}, "input_size": [1, 2], "model_name": torch.zeros(2), 5: 6},
        {"img_size": -1, "num_classes": 10**9, "crop_mode": ["center"], "interpolation": "random"},
    ],
)
def test_impossible_settings_change_nothing(tmp_path, settings):
    model = opened(tmp_path, {"state_dict": state(), "arch": "test_vit", "hyper_parameters": settings})
    assert model.preprocessing == opened(tmp_path, {"state_dict": state(), "arch": "test_vit"}).preprocessing


def test_settings_cannot_name_files_or_hosts(tmp_path):
    settings = {"model": "test_vit", "model_kwargs": {"checkpoint_path": "/etc/passwd"}}
    with pytest.raises(ModelError, match="no argument of an architecture"):
        opened(tmp_path, {"state_dict": state(), "args": settings})
    for name in ("hf_hub:someone/model", "hf-hub:someone/model", "local-dir:/etc"):
        assert recorded_in([{"arch": name}]).architecture is None
