"""The command line: documents, tables, exit codes, messages."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mixqvit.commands import main
from mixqvit.commands.parser import parser

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Finished:
    returncode: int
    stdout: str
    stderr: str


def in_its_own_process(*arguments):
    command = [sys.executable, "-m", "mixqvit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture
def run(capfd):
    """Run a command in this process, which has loaded torch already; capture what reaches the file descriptors."""

    def run(*arguments):
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return Finished(code, *capfd.readouterr())

    return run


@pytest.fixture
def document(run):
    def document(*arguments):
        finished = run(*arguments, "--json")
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout)

    return document


def test_models_lists_the_embedded_ones_without_loading_torch(document):
    code = "import sys, mixqvit.commands as c; c.main(['models']); sys.exit('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0
    for name in ("digits_vit", "digits_deit", "digits_swin"):
        assert name in finished.stdout
    assert {model["name"] for model in document("models")["models"]} == {"digits_vit", "digits_deit", "digits_swin"}


def test_layers_prints_the_table(run, document):
    found = document("layers", "--model", "digits_vit")
    assert len(found["layers"]) == 38
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
    assert "blocks.0.attn.matmul1" in run("layers", "--model", "digits_vit").stdout


def test_evaluate_measures_uniform_bits(run, document):
    found = document("evaluate", "--model", "digits_vit", "--bits", 4)["measured"]
    low, high = found["top1_interval_95"]
    assert found["images"] == 100
    assert low < found["top1"] <= high
    assert "top-1" in run("evaluate", "--model", "digits_vit", "--bits", 4).stdout


@pytest.fixture(scope="module")
def allocated():
    """One document: an allocation beside uniform bits, both measured."""
    arguments = ["allocate", "--model", "digits_vit", "--average-bits", "4", "--evaluate", "--pin", "head=8"]
    options = parser().parse_args(arguments)
    document, text = options.run(options)
    assert "uniform 4" in text
    return json.loads(json.dumps(document))


@pytest.mark.slow
def test_a_process_prints_one_document_whatever_the_solver_prints():
    arguments = ("--model", "digits_swin", "--average-bits", 4, "--pin", "head.fc=8", "--json")
    finished = in_its_own_process("allocate", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["allocation"]["bits"]["head.fc"] == [8, 8]


def test_a_process_exits_with_2_on_bad_input():
    assert in_its_own_process("evaluate", "--model", "digits_vit", "--bits", "four").returncode == 2


def test_what_libraries_print_stays_off_standard_output(run, monkeypatch):
    def noisy():
        os.write(1, b"printed by a library")
        return ()

    monkeypatch.setattr("mixqvit.commands.stages.list_models", noisy)
    finished = run("models", "--json")
    assert json.loads(finished.stdout)["models"] == []
    assert "printed by a library" in finished.stderr


def test_allocate_prints_one_document_with_bits_costs_and_measurements(allocated):
    mixed, uniform = allocated["allocation"], allocated["uniform"]
    assert mixed["bits"]["head"] == [8, 8]
    assert mixed["predicted_harm"] <= uniform["predicted_harm"]
    assert mixed["cost"]["size_bytes"] <= uniform["cost"]["size_bytes"]
    assert mixed["cost"]["bitops"] <= uniform["cost"]["bitops"]
    assert 0 < mixed["measured"]["top1"] <= 1
    assert uniform["measured"]["images"] == 100


def test_allocate_by_size_and_bitops_and_as_tables(run, document, allocated):
    size = allocated["uniform"]["cost"]["size_bytes"] / 1e6
    found = document("allocate", "--model", "digits_vit", "--size-mb", size, "--bitops-g", 0.8)
    assert found["allocation"]["cost"]["size_bytes"] <= size * 1e6
    assert found["allocation"]["cost"]["bitops"] <= 0.8e9
    text = run("allocate", "--model", "digits_vit", "--average-bits", "4.5").stdout
    assert "patch_embed.proj" in text
    assert "uniform 4" in text


def test_an_allocation_file_is_evaluated_and_packed_by_other_runs(run, document, tmp_path):
    allocation, packed = tmp_path / "allocation.json", tmp_path / "model.safetensors"
    ceilings = ["--average-bits", 3, "--at-least", "head=5", "--allow", "fc1=2,4,8", "--strategy", "sensitivity"]
    found = document("allocate", "--model", "digits_vit", *ceilings, "--evaluate", "--output", allocation)
    bits = found["allocation"]["bits"]
    assert bits["head"][0] >= 5
    assert {pair[0] for name, pair in bits.items() if name.endswith("fc1")} <= {2, 4, 8}
    written = json.loads(allocation.read_text())
    assert written["bits"] == bits
    assert written["measured"]["top1"] == found["allocation"]["measured"]["top1"]
    assert document("evaluate", "--allocation", allocation)["measured"] == found["allocation"]["measured"]
    assert document("pack", "--allocation", allocation, "--output", packed)["bits"] == bits
    assert packed.stat().st_size == found["allocation"]["cost"]["size_bytes"]
    assert document("evaluate", "--packed", packed)["measured"] == found["allocation"]["measured"]
    finished = run("evaluate", "--recipe", allocation, "--json")  # as it was called once
    assert json.loads(finished.stdout)["measured"] == found["allocation"]["measured"]
    assert "an allocation file is given as --allocation FILE" in finished.stderr
    assert finished.stderr.count("\n") == 1
    finished = run("pack", "--recipe", allocation, "--output", packed, "--json")
    assert json.loads(finished.stdout)["bits"] == bits
    assert finished.stderr == "--recipe FILE is --allocation FILE now.\n"
    allocation.write_text(allocation.read_text().replace('"head": [', '"heads": ['))
    assert "no layer 'heads'" in run("evaluate", "--allocation", allocation).stderr
    allocation.write_text(allocation.read_text()[:100])
    finished = run("evaluate", "--allocation", allocation)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "is not JSON" in finished.stderr


def test_the_frontier_lists_every_budget(run, document):
    points = document("frontier", "--model", "digits_vit", "--pin", "head=8", "--gamma", 0)["points"]
    assert [point["budget"] for point in points] == [round(2 + tenth / 10, 1) for tenth in range(61)]
    assert points[0] == {"budget": 2.0, "feasible": False}
    harms = [point["predicted_harm"] for point in points if point["feasible"]]
    assert harms == sorted(harms, reverse=True)
    assert "nothing fits" in run("frontier", "--model", "digits_vit", "--pin", "head=8", "--gamma", 0).stdout


def test_sensitivity_by_another_metric_with_intervals(document):
    found = document("sensitivity", "--model", "digits_vit", "--metric", "sqnr")
    assert found["metric"] == "sqnr"
    for name, row in found["harm"].items():
        for bits, harm in row.items():
            low, high = found["interval_95"][name][bits]
            assert 0 <= low <= harm <= high


def test_pack_writes_a_file_of_the_size_it_says_which_evaluates_as_its_bits_do(run, document, tmp_path):
    path = tmp_path / "model.safetensors"
    found = document("pack", "--model", "digits_vit", "--bits", 4, "--output", path)
    size = found["size"]
    assert path.stat().st_size == size["size_bytes"]
    assert size["size_bytes"] == sum(value for name, value in size.items() if name != "size_bytes")
    assert found["bits"]["head"] == [4, 4]
    measured = document("evaluate", "--packed", path, "--images", "digits")["measured"]
    assert measured == document("evaluate", "--model", "digits_vit", "--bits", 4)["measured"]
    assert f"{size['size_bytes']:,}" in run("pack", "--model", "digits_vit", "--bits", 4, "--output", path).stdout


def test_pack_under_a_budget_stays_within_it(document, allocated, tmp_path):
    path, limit = tmp_path / "model.safetensors", 420_000
    found = document("pack", "--model", "digits_vit", "--size-mb", limit / 1e6, "--pin", "head=8", "--output", path)
    assert found["bits"]["head"] == [8, 8]
    assert 0.9 * limit < path.stat().st_size <= limit


def test_a_packed_file_of_another_model_is_refused(run, tmp_path):
    path = tmp_path / "model.safetensors"
    assert run("pack", "--model", "digits_vit", "--bits", 3, "--output", path).returncode == 0
    for arguments in (["--model", "digits_deit"], ["--outliers", 8]):
        finished = run("evaluate", "--packed", path, *arguments)
        assert finished.returncode == 2
        assert "was not made from digits_" in finished.stderr
    path.write_bytes(path.read_bytes()[:-1])
    finished = run("evaluate", "--packed", path)
    assert finished.returncode == 2
    assert "truncated" in finished.stderr


def test_relevance_and_sensitivity_cover_every_layer(run, document, allocated):
    relevance = document("relevance", "--model", "digits_vit")
    importance = relevance["importance"]
    assert (relevance["method"], relevance["measure"]) == ("chefer", "share")
    assert relevance["images"] > 1
    other = document("relevance", "--model", "digits_vit", "--method", "gradient x activation")
    assert other["importance"].keys() == importance.keys()
    assert other["importance"] != importance
    harm = document("sensitivity", "--model", "digits_vit")["harm"]
    assert list(importance) == list(harm) == list(allocated["allocation"]["bits"])
    assert all(list(row) == [str(bits) for bits in range(2, 9)] for row in harm.values())
    assert "8 bits" in run("sensitivity", "--model", "digits_vit").stdout
    assert "importance" in run("relevance", "--model", "digits_vit").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--allocation", "/no/such/allocation.json"], "/no/such/allocation.json cannot be read"),
        (["sensitivity", "--model", "digits_vit", "--metric", "psnr"], "no metric 'psnr'"),
        (["sensitivity", "--model", "digits_vit", "--baseline", 9], "baseline of a sweep"),
        (["allocate", "--model", "digits_vit", "--average-bits", 4, "--strategy", "luck"], "invalid choice: 'luck'"),
        (["allocate", "--model", "digits_vit", "--average-bits", 4, "--allow", "fc1"], "KIND=BITS,BITS"),
        (["allocate", "--model", "digits_vit", "--average-bits", 4, "--allow", "fc3=4"], "fc3"),
        (["allocate", "--model", "digits_vit", "--average-bits", 2, "--at-least", "head=8"], "head"),
        (["evaluate", "--model", "digits_vitt", "--bits", 4], "digits_vit"),
        (["evaluate", "--model", "digits_vit", "--bits", 1], "1 bits are not possible"),
        (["allocate", "--model", "digits_vit", "--average-bits", 4, "--method", "lime"], "no importance method 'lime'"),
        (["evaluate", "--model", "digits_vit", "--bits", 9], "9 bits are not possible"),
        (["evaluate", "--model", "digits_vit", "--bits", "four"], "invalid int value: 'four'"),
        (["evaluate", "--model", "digits_vit"], "--bits"),
        (["evaluate", "--bits", 4], "--model"),
        (["evaluate", "--bits", 4, "--packed", "model.safetensors"], "one of the three"),
        (["evaluate", "--packed", "/no/such/file"], "/no/such/file"),
        (["pack", "--model", "digits_vit", "--output", "unwritten"], "one of the three"),
        (
            ["pack", "--model", "digits_vit", "--bits", 4, "--pin", "head=8", "--output", "unwritten"],
            "one of the three",
        ),
        (["pack", "--model", "digits_vit", "--bits", 4, "--output", "/no/such/folder/file"], "/no/such/folder"),
        (["evaluate", "--model", "digits_vit", "--bits", 4, "--images", "/no/such/folder"], "/no/such/folder"),
        (["evaluate", "--model", "digits_vit", "--bits", 4, "--outliers", "0"], "outlier factor"),
        (["allocate", "--model", "digits_vit"], "needs a budget"),
        (["allocate", "--model", "digits_vit", "--average-bits", 1], "smallest feasible value is 2"),
        (["allocate", "--model", "digits_vit", "--average-bits", 4, "--pin", "head"], "LAYER=BITS"),
        (["allocate", "--model", "digits_vit", "--average-bits", 4, "--pin", "heads=4"], "no layer 'heads'"),
        (["allocate", "--model", "digits_vit", "--average-bits", 4, "--pin", "head=9"], "'9' bits are not possible"),
        (
            ["allocate", "--model", "digits_vit", "--average-bits", 4, "--at-least", "head=4/6"],
            "not possible for layer",
        ),
        (["allocate", "--model", "digits_vit", "--size-mb", -1], "model size must be a positive number, not -1.0"),
        (["evaluate", "--packed", "file", "--recipe", "adalog"], "--recipe goes with --bits"),
        (["train-embedded", "--model", "resnet50"], "resnet50"),
        (["dance"], "dance"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_exits_2_with_one_clear_line(run, allocated, arguments, message):
    finished = run(*arguments)
    assert finished.returncode == 2
    assert finished.stdout == ""
    (line,) = finished.stderr.strip().splitlines()
    assert message in line
    assert "Traceback" not in line


def test_a_cache_that_cannot_be_written_is_named(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIXQVIT_CACHE", str(tmp_path / "file" / "cache"))
    finished = run("evaluate", "--model", "digits_vit", "--bits", 4)
    assert finished.returncode == 2
    assert "MIXQVIT_CACHE" in finished.stderr


def test_a_truncated_checkpoint_is_refused(run, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes((ROOT / "assets" / "digits_vit.safetensors").read_bytes()[:100_000])
    finished = run("evaluate", "--model", "digits_vit", "--checkpoint", file, "--bits", 4)
    assert finished.returncode == 2
    assert "weights.safetensors" in finished.stderr


@pytest.mark.parametrize(
    "command",
    [
        "",
        "models",
        "layers",
        "relevance",
        "sensitivity",
        "allocate",
        "strategies",
        "frontier",
        "pack",
        "evaluate",
        "train-embedded",
    ],
)
def test_every_command_has_help(run, command):
    finished = run(*filter(None, [command]), "--help")
    assert finished.returncode == 0
    assert "usage: python -m mixqvit" in finished.stdout
