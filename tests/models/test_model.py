import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from mixqvit.errors import ModelError
from mixqvit.images.loading import load_images
from mixqvit.models.cards import ASSETS, EMBEDDED, list_models, read_card
from mixqvit.models.embedded import load_embedded
from mixqvit.models.loading import load_model
from mixqvit.models.model import Model
from mixqvit.models.preprocessing import Preprocessing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """A copy of one embedded model that a test may damage."""
    for suffix in (".json", ".safetensors"):
        shutil.copy(ASSETS / f"digits_swin{suffix}", tmp_path)
    return tmp_path


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(ASSETS / "digits_swin.safetensors")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network: the hub is a closed port of this machine, its cache an empty folder, which is returned."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_model_measures_what_its_card_says(name: str) -> None:
    model = load_model(name)
    images = load_images(model.images, "evaluation", model)
    with torch.inference_mode():
        decisions = torch.cat([model.module(batch).argmax(1) for batch in images.pixels.split(128)])
    measured = (decisions == images.labels).double().mean().item()
    assert measured >= 0.98
    assert model.card["accuracy"]["top1"] == pytest.approx(measured, abs=0.0021), "one image may round differently"


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_model_is_small_and_described(name: str) -> None:
    model = load_model(name)
    assert (ASSETS / f"{name}.safetensors").stat().st_size < 4e6
    assert model.input_size == (1, 32, 32)
    assert model.class_names == tuple("0123456789")
    assert model.card["splits"] == {"training": 1169, "calibration": 128, "evaluation": 500}
    assert type(model.module).__module__.startswith("timm.models.")
    assert model.module.num_classes == 10
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_embedded_models_have_the_promised_parts() -> None:
    assert load_model("digits_deit").module.head_dist.out_features == 10
    swin = load_model("digits_swin").module
    assert [any(max(block.shift_size) > 0 for block in stage.blocks) for stage in swin.layers] == [True, False]
    assert type(swin.layers[1].downsample).__name__ == "PatchMerging"


def test_list_models_agrees_with_the_models() -> None:
    summaries = list_models()
    assert tuple(summary.name for summary in summaries) == EMBEDDED
    for summary in summaries:
        model = load_model(summary.name)
        assert summary.parameters == sum(parameter.numel() for parameter in model.module.parameters())
        assert summary.architecture == type(model.module).__name__
        assert summary.input_size == model.input_size
        assert summary.top1 == model.card["accuracy"]["top1"]


def test_list_models_needs_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from mixqvit.models.cards import list_models; list_models(); "
        "print({'torch', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_fingerprint_tells_weights_and_architectures_apart() -> None:
    first, again = load_model("digits_vit"), load_model("digits_vit")
    assert first.fingerprint == load_model("digits_vit").fingerprint
    with torch.no_grad():
        again.module.blocks[3].mlp.fc1.bias[5] += 1e-6
    assert again.fingerprint != first.fingerprint
    weights = timm.create_model("test_vit").state_dict()
    prints = set()
    for activation in (torch.nn.GELU, torch.nn.ReLU):
        module = timm.create_model("test_vit", act_layer=activation)
        module.load_state_dict(weights)
        prints.add(Model("same weights", module, Preprocessing((3, 160, 160), (0.5,) * 3, (0.5,) * 3), ()).fingerprint)
    assert len(prints) == 2


def test_embedded_checkpoint_truncated_or_altered(assets: Path) -> None:
    path = assets / "digits_swin.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:100_000])
    with pytest.raises(ModelError, match=r"is damaged.*train-embedded --model digits_swin"):
        load_embedded("digits_swin", assets)
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ModelError, match="is damaged"):
        load_embedded("digits_swin", assets)
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_embedded("digits_swin", assets)


def test_embedded_card_damaged(assets: Path) -> None:
    path = assets / "digits_swin.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "architecture": {"class": "os.system", "arguments": {}}}))
    with pytest.raises(ModelError, match=r"unknown architecture 'os\.system'"):
        load_embedded("digits_swin", assets)
    del card["checkpoint"]
    path.write_text(json.dumps(card))
    with pytest.raises(ModelError, match="lacks checkpoint"):
        read_card("digits_swin", assets)
    path.write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        read_card("digits_swin", assets)
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        read_card("digits_swin", assets)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoint_file_replaces_the_weights(tmp_path: Path, state: dict[str, torch.Tensor], suffix: str) -> None:
    state["head.fc.bias"] = torch.arange(10.0)
    path = tmp_path / f"own{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    model = load_model("digits_swin", checkpoint=path)
    assert torch.equal(model.module.head.fc.bias, torch.arange(10.0))
    assert model.card == {}, "the card's accuracy is not that of other weights"
    assert model.images == "digits"


def test_checkpoint_of_wrong_names_shapes_or_values(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "own.safetensors"

    def refused(changed: dict[str, torch.Tensor], message: str) -> None:
        safetensors.torch.save_file(changed, path)
        with pytest.raises(ModelError, match=message):
            load_model("digits_swin", path)

    refused({**state, "extra": torch.zeros(1)}, "1 unknown \\(extra")
    refused({key: value for key, value in state.items() if key != "norm.bias"}, "1 missing \\(norm.bias")
    refused({**state, "norm.bias": torch.zeros(7)}, r"norm.bias has shape \(7,\) instead of \(96,\)")
    poisoned = state["norm.bias"].clone()
    poisoned[3] = float("nan")
    refused({**state, "norm.bias": poisoned}, "norm.bias that are not finite")


def test_checkpoint_that_cannot_be_read(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model("digits_swin", tmp_path / "absent.pth")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes((ASSETS / "digits_swin.safetensors").read_bytes()[:100_000])
    with pytest.raises(ModelError, match="damaged or no safetensors file"):
        load_model("digits_swin", truncated)
    torch.save(state, tmp_path / "whole.pth")
    cut = tmp_path / "cut.pth"
    cut.write_bytes((tmp_path / "whole.pth").read_bytes()[:100_000])
    with pytest.raises(ModelError, match="cannot be read as plain weights"):
        load_model("digits_swin", cut)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="no plain state dict"):
        load_model("digits_swin", tmp_path / "list.pt")
    (tmp_path / "weights.h5").write_bytes(b"other")
    with pytest.raises(ModelError, match="an HDF5 file, as Keras writes"):
        load_model("digits_swin", tmp_path / "weights.h5")


class Writes:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "was run")


def test_checkpoint_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap.pth"
    trap.write_bytes(pickle.dumps(Writes(tmp_path / "proof"), protocol=2))
    with pytest.raises(ModelError, match="cannot be read as plain weights"):
        load_model("digits_swin", trap)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits_vitt", "did you mean digits_vit"),
        ("deit_smal_patch16_224", "did you mean deit_small_patch16_224"),
        ("qqqqqqqqqqqq", "embedded are digits_vit"),
        ("vit_base_patch16_224.nonsense", "not this tag"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)
    with pytest.raises(ModelError, match=message):
        load_model(name, checkpoint="any.safetensors")


def test_pretrained_weights_without_network(no_hub: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be reached .*as its checkpoint"):
        load_model("test_vit")


def test_pretrained_weights_that_do_not_exist(no_hub: Path) -> None:
    with pytest.raises(ModelError, match="no pretrained weights for test_vit4"):
        load_model("test_vit4")


def test_pretrained_weights_from_the_local_cache(no_hub: Path) -> None:
    original = timm.create_model("test_vit")
    cache = no_hub / "models--timm--test_vit.r160_in1k"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    (cache / "snapshots" / ("a" * 40)).mkdir(parents=True)
    safetensors.torch.save_file(original.state_dict(), cache / "snapshots" / ("a" * 40) / "model.safetensors")
    model = load_model("test_vit")
    assert torch.equal(model.module.head.weight, original.head.weight)
    assert (model.input_size, model.mean) == ((3, 160, 160), (0.5, 0.5, 0.5))
    assert len(model.class_names) == 1000
    assert model.class_names[0] == "tench, Tinca tinca"
    assert model.images is None
