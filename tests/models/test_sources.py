"""Every source of models knows its own names, files and words; nobody else does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixqvit.errors import ModelError
from mixqvit.models.cards import ASSETS
from mixqvit.models.sources.checkpoint_file import CheckpointFile
from mixqvit.models.sources.embedded import EmbeddedModel
from mixqvit.models.sources.factory import build, find_source, forms
from mixqvit.models.sources.local_folder import LocalFolder
from mixqvit.models.sources.source import SOURCES, ModelSource, registered
from mixqvit.models.sources.timm_model import TimmModel

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("model", "checkpoint", "source", "files"),
    [
        ("digits_vit", None, EmbeddedModel, (ASSETS / "digits_vit.json", ASSETS / "digits_vit.safetensors")),
        ("test_vit", None, TimmModel, ()),
        ("no such model", None, TimmModel, ()),
        ("local-dir:~/models", None, LocalFolder, (Path.home() / "models",)),
        (None, "own.pth", CheckpointFile, (Path("own.pth"),)),
        ("digits_vit", "~/own.pth", CheckpointFile, (Path.home() / "own.pth",)),
    ],
)
def test_what_a_person_names_is_one_source(model, checkpoint, source, files):
    found = find_source(model, checkpoint)
    assert type(found) is source
    assert (found.model, found.checkpoint, found.files) == (model, checkpoint, files)


def test_paths_are_replaced_wherever_a_source_has_some():
    def path(text: str) -> Path:
        return Path("/data", text)

    for given, expected in {
        ("digits_vit", None): ("digits_vit", None),
        ("test_vit", None): ("test_vit", None),
        ("local-dir:models", None): ("local-dir:/data/models", None),
        ("test_vit", "own.pth"): ("test_vit", "/data/own.pth"),
        (None, "own.pth"): (None, "/data/own.pth"),
        ("local-dir:models", "own.pth"): ("local-dir:/data/models", "/data/own.pth"),
    }.items():
        located = find_source(*given).located(path)
        assert (located.model, located.checkpoint) == expected


def test_other_weights_of_the_same_model(tmp_path):
    for name, folder in (("own", "own"), ("kept", "kept")):
        (tmp_path / folder).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    file = tmp_path / "kept" / "model.safetensors"
    assert find_source("digits_vit").with_weights(file, "digits_vit") == ("digits_vit", str(file))
    assert find_source(None, "own.pth").with_weights(file, "test_vit") == ("test_vit", str(file))
    folder = find_source(f"local-dir:{tmp_path / 'own'}").with_weights(file, "test_vit")
    assert folder == (f"local-dir:{file.parent}", None)
    assert (file.parent / "config.json").read_text() == "own"


def test_nothing_named():
    with pytest.raises(ModelError, match="name a model, or give a file of weights"):
        find_source(None)


def test_an_architecture_is_built_by_the_source_that_wrote_it():
    state = torch.get_rng_state()
    assert type(build({"timm": "test_vit", "arguments": {"num_classes": 3}})).__name__ == "VisionTransformer"
    assert torch.equal(torch.get_rng_state(), state)
    assert build({"timm": 3}) is None
    assert build({"another library": "vit"}) is None


def test_two_sources_of_one_kind_are_a_mistake():
    class Again(ModelSource):
        kind = "timm"

    with pytest.raises(ValueError, match="two sources of models 'timm'"):
        registered(Again)
    assert SOURCES["timm"] is TimmModel


def test_sources_are_found_without_torch_and_timm():
    code = (
        "import sys; from mixqvit.models.sources.factory import find_source, forms; forms(); "
        "find_source('test_vit', 'own.pth').files; print({'torch', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_forms_name_every_source_that_has_a_name():
    assert all(word in forms() for word in ("digits_vit", "local-dir:FOLDER", "timm"))
