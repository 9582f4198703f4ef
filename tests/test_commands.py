"""The command line as a user runs it: its own process, its own standard output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments, cache=None, **environment):

    environment = os.environ | environment | ({"MIXQVIT_CACHE": str(cache)} if cache else {})
    return subprocess.run(
        [sys.executable, "-m", "mixqvit", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def document(*arguments):
    finished = run(*arguments, "--json")
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_models_lists_the_embedded_ones_without_loading_torch():
    code = "import sys, mixqvit.commands as c; c.main(['models']); sys.exit('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0
    for name in ("digits_vit", "digits_deit", "digits_swin"):
        assert name in finished.stdout
    assert {model["name"] for model in document("models")["models"]} == {"digits_vit", "digits_deit", "digits_swin"}


def test_layers_prints_the_table():
    found = document("layers", "--model", "digits_vit")
    assert len(found["layers"]) == 38
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
    assert "blocks.0.attn.matmul1" in run("layers", "--model", "digits_vit").stdout


def test_evaluate_measures_uniform_bits():
    found = document("evaluate", "--model", "digits_vit", "--bits", 4)["measured"]
    low, high = found["top1_interval_95"]
    assert found["images"] == 500
    assert low < found["top1"] < high
    assert "top-1" in run("evaluate", "--model", "digits_vit", "--bits", 4).stdout


@pytest.fixture(scope="module")
def allocated():
    return document("allocate", "--model", "digits_vit", "--average-bits", 4, "--evaluate", "--pin", "head=8")


def test_allocate_prints_one_document_with_bits_costs_and_measurements(allocated):
    mixed, uniform = allocated["allocation"], allocated["uniform"]
    assert mixed["bits"]["head"] == [8, 8]
    assert mixed["predicted_harm"] <= uniform["predicted_harm"]
    assert mixed["cost"]["size_bytes"] <= uniform["cost"]["size_bytes"]
    assert mixed["cost"]["bitops"] <= uniform["cost"]["bitops"]
    assert 0 < mixed["measured"]["top1"] <= 1
    assert uniform["measured"]["images"] == 500


def test_allocate_by_size_and_bitops_and_as_tables(allocated):
    size = allocated["uniform"]["cost"]["size_bytes"] / 1e6
    found = document("allocate", "--model", "digits_vit", "--size-mb", size, "--bitops-g", 0.8)
    assert found["allocation"]["cost"]["size_bytes"] <= size * 1e6
    assert found["allocation"]["cost"]["bitops"] <= 0.8e9
    text = run("allocate", "--model", "digits_vit", "--average-bits", "4.5").stdout
    assert "patch_embed.proj" in text
    assert "uniform 4" in text


def test_relevance_and_sensitivity_cover_every_layer(allocated):
    importance = document("relevance", "--model", "digits_vit")["importance"]
    harm = document("sensitivity", "--model", "digits_vit")["harm"]
    assert list(importance) == list(harm) == list(allocated["allocation"]["bits"])
    assert all(list(row) == [str(bits) for bits in range(2, 9)] for row in harm.values())
    assert "8 bits" in run("sensitivity", "--model", "digits_vit").stdout
    assert "importance" in run("relevance", "--model", "digits_vit").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--model", "digits_vitt", "--bits", 4], "digits_vit"),
        (["evaluate", "--model", "digits_vit", "--bits", 1], "1 bits are not possible"),
        (["evaluate", "--model", "digits_vit", "--bits", 9], "9 bits are not possible"),
        (["evaluate", "--model", "digits_vit", "--bits", "four"], "invalid int value: 'four'"),
        (["evaluate", "--model", "digits_vit"], "--bits"),
        (["evaluate", "--model", "digits_vit", "--bits", 4, "--images", "/no/such/folder"], "/no/such/folder"),
        (["evaluate", "--model", "digits_vit", "--bits", 4, "--outliers", "0"], "outlier factor"),
        (["allocate", "--model", "digits_vit"], "needs a budget"),
        (["allocate", "--model", "digits_vit", "--average-bits", 1], "smallest feasible value is 2"),
        (["allocate", "--model", "digits_vit", "--average-bits", 4, "--pin", "head"], "LAYER=BITS"),
        (["allocate", "--model", "digits_vit", "--average-bits", 4, "--pin", "heads=4"], "no layer 'heads'"),
        (["train-embedded", "--model", "resnet50"], "resnet50"),
        (["dance"], "dance"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_exits_2_with_one_clear_line(allocated, arguments, message):
    finished = run(*arguments)
    assert finished.returncode == 2
    assert finished.stdout == ""
    (line,) = finished.stderr.strip().splitlines()
    assert message in line
    assert "Traceback" not in line


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    finished = run("evaluate", "--model", "digits_vit", "--bits", 4, cache=tmp_path / "file" / "cache")
    assert finished.returncode == 2
    assert "MIXQVIT_CACHE" in finished.stderr


def test_a_truncated_checkpoint_is_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes((ROOT / "assets" / "digits_vit.safetensors").read_bytes()[:100_000])
    finished = run("evaluate", "--model", "digits_vit", "--checkpoint", file, "--bits", 4)
    assert finished.returncode == 2
    assert "weights.safetensors" in finished.stderr


@pytest.mark.parametrize(
    "command", ["", "models", "layers", "relevance", "sensitivity", "allocate", "evaluate", "train-embedded"]
)
def test_every_command_has_help(command):
    finished = run(*filter(None, [command]), "--help")
    assert finished.returncode == 0
    assert "usage: python -m mixqvit" in finished.stdout
