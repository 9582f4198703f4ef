import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

from mixqvit.errors import ModelError
from mixqvit.models.loading import load_model
from mixqvit.packing import architecture


@pytest.fixture
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=3, img_size=64, drop_rate=0.1).eval()


@pytest.fixture
def folder(tmp_path: Path, module: torch.nn.Module) -> Path:
    save_for_hf(module, tmp_path / "saved", {"label_names": ["ant", "bee", "cow"]}, safe_serialization="both")
    return tmp_path / "saved"


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def rewritten(folder: Path, **changes: object) -> str:
    (folder / "config.json").write_text(json.dumps({**config(folder), **changes}))
    return f"local-dir:{folder}"


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_folder_that_timm_saved(folder, module, weights):
    for other in {"model.safetensors", "pytorch_model.bin"} - {weights}:
        (folder / other).unlink()
    rewritten(folder, model_args={"img_size": 64})
    model = load_model(f"local-dir:{folder}")
    assert model.name == "test_vit"
    assert model.input_size == (3, 64, 64)
    assert model.class_names == model.label_names == ("ant", "bee", "cow")
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.module(pixels), module(pixels))
    graph = architecture.rebuild(architecture.describe(model), None, model.input_size)
    assert graph(pixels).shape == (2, 3)


def test_preprocessing_and_descriptions_come_from_the_folder(folder):
    changes = {"mean": [0.1, 0.2, 0.3], "interpolation": "bilinear", "crop_pct": 0.9}
    details = {**config(folder)["pretrained_cfg"], **changes}
    described = {"ant": "an insect", "bee": "a flying insect"}
    name = rewritten(folder, model_args={"img_size": 64}, pretrained_cfg=details, label_descriptions=described)
    model = load_model(name)
    assert model.mean == (0.1, 0.2, 0.3)
    assert (model.preprocessing.interpolation, model.preprocessing.crop_pct) == ("bilinear", 0.9)
    assert model.class_names == ("an insect", "a flying insect", "cow")
    assert model.label_names == ("ant", "bee", "cow")


def test_older_description_on_one_level(folder, module):
    flat = {**config(folder)["pretrained_cfg"], "architecture": "test_vit", "labels": ["x", "y", "z"], "num_classes": 3}
    flat |= {"input_size": [3, 64, 64], "fixed_input_size": True}
    (folder / "config.json").write_text(json.dumps(flat))
    model = load_model(f"local-dir:{folder}")
    assert model.class_names == ("x", "y", "z")
    assert model.input_size == (3, 64, 64)


def test_names_of_another_number_of_classes_are_not_used(folder):
    model = load_model(rewritten(folder, model_args={"img_size": 64}, label_names=["only"]))
    assert model.class_names == ("class 0", "class 1", "class 2")
    assert any("names 1 classes, but the model has 3" in note for note in model.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "nonsense"}, "'nonsense', which this version of timm does not have"),
        ({"architecture": 3}, "must name an architecture"),
        ({"pretrained_cfg": "x"}, "must name an architecture"),
        ({"model_args": [1]}, "must name an architecture"),
        ({"model_args": {"img_size": 64, "embed_dim": 128}}, "does not hold the weights of test_vit"),
        ({"model_args": {"img_size": 64, "checkpoint_path": "/etc/passwd"}}, "no argument of an architecture"),
        ({"model_args": {"img_size": 64, "no_such": 1}}, "timm cannot build test_vit"),
        ({"model_args": {"depth": 10**9}}, "no possible argument"),
        ({"model_args": {"num_classes": 0}}, "has no classifier"),
        ({"model_args": {"num_classes": -5}}, "has no classifier"),
        ({"model_args": {"num_classes": 10**9}}, "no possible argument"),
    ],
)
def test_descriptions_that_cannot_be_used(folder, changes, message):
    with pytest.raises(ModelError, match=message):
        load_model(rewritten(folder, **changes))


@pytest.mark.parametrize(
    "details",
    [{"mean": "abc"}, {"std": [0, 0, 0]}, {"crop_pct": 7}, {"interpolation": "guess"}, {"mean": 1}],
)
def test_impossible_preprocessing_is_refused(folder, details):
    whole = {**config(folder)["pretrained_cfg"], **details}
    with pytest.raises(ModelError, match="preprocessing that comes with the model cannot be used"):
        load_model(rewritten(folder, model_args={"img_size": 64}, pretrained_cfg=whole))


def test_damaged_folders(folder, tmp_path):
    for content in ("{", "[1]", "\x00", "[" * 100_000):
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelError, match=r"config\.json"):
            load_model(f"local-dir:{folder}")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(f"local-dir:{folder}")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model("local-dir:")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "num_classes": 3}))
    with pytest.raises(ModelError, match="holds no weights beside"):
        load_model(f"local-dir:{tmp_path}")
    with pytest.raises(ModelError, match="weights of its own"):
        load_model(f"local-dir:{folder}", checkpoint="a.pth")
