import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import mixqvit
from mixqvit.models.architectures import on_meta
from mixqvit.models.catalogue import CATALOGUE, families

ROOT = Path(__file__).resolve().parents[2]
# Published full-precision accuracies, as METHOD.md lists them.
PUBLISHED = {
    "vit_small": 0.8139,
    "vit_base": 0.8454,
    "deit_tiny": 0.7221,
    "deit_small": 0.7985,
    "deit_base": 0.8180,
    "swin_small": 0.8323,
    "swin_base": 0.8527,
}


def smallest(family: str) -> str:
    entries = [entry for entry in CATALOGUE if entry.family == family]
    return min(entries, key=lambda entry: entry.parameters).name


def test_catalogue_needs_neither_torch_nor_timm():
    code = "import sys; import mixqvit.models.catalogue; print({'torch', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_entry_has_pretrained_weights_in_timm():
    assert {entry.name for entry in CATALOGUE} <= set(timm.list_models(pretrained=True))
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)


def test_entries_say_what_a_person_must_know():
    assert len(families()) == 12
    without = [entry for entry in CATALOGUE if entry.note]
    assert {entry.family for entry in without} == {"DINOv2", "DINOv3"}
    assert all(entry.classes == 0 and "fine-tuned" in entry.note for entry in without)
    published = {entry.name: entry.published_top1 for entry in CATALOGUE if entry.published_top1 is not None}
    assert {"_".join(name.split("_")[:2]): value for name, value in published.items()} == PUBLISHED


@pytest.mark.slow
@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_entry_says_what_timm_builds(entry):
    module = on_meta(entry.name, {})
    assert entry.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert entry.classes == module.num_classes
    assert entry.input_size == timm.data.resolve_model_data_config(module)["input_size"]


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_every_family_is_traced_exactly(family):
    sizes = {"DINOv2": 98, "EVA-02": 112, "Swin": 112, "Swin v2": 128, "PVT v2": None, "DINOv3": None}
    size = sizes.get(family, 96)
    torch.manual_seed(0)
    module = timm.create_model(smallest(family), num_classes=5, **({"img_size": size} if size else {})).double().eval()
    pixels = torch.randn(1, 3, size or 128, size or 128, dtype=torch.float64)
    graph = mixqvit.trace(module, pixels)
    with torch.no_grad():
        torch.testing.assert_close(graph(pixels), module(pixels), rtol=1e-9, atol=1e-12)  # attention fused or not
    assert graph.layers
