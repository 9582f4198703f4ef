"""`export` on the command line: files of every format, what is printed, refusals."""

import json

import pytest

from mixqvit.commands import main
from mixqvit.files.allocation_document import parse_allocation
from mixqvit.files.export.formats import FORMATS

BUDGET = ("--model", "digits_vit", "--average-bits", 4, "--strategy", "sensitivity")


@pytest.fixture
def run(capfd):
    """Run the command; returns its exit code, standard output and standard error."""

    def run(*arguments):
        capfd.readouterr()
        try:
            code = main(["export", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def document(run):
    def document(*arguments):
        code, out, err = run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return document


@pytest.mark.slow
def test_an_onnx_model_is_written_and_checked(run, document, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    import onnx

    path = tmp_path / "model.onnx"
    found = document(*BUDGET, "--format", "onnx", "--output", path, "--check")
    assert onnx.load(path).graph.node
    assert found["files"] == [{"file": str(path), "bytes": path.stat().st_size}]
    assert found["opset"] >= 21
    for name, width in found["stored_bits"].items():
        assert width >= found["bits"][name][0]
    checked = found["check"]
    assert checked["images"] == 100
    assert checked["agreement"] >= 0.99
    assert checked["correlation"] >= 0.999
    assert checked["speed_ratio"] == checked["full_precision_seconds_per_image"] / checked["seconds_per_image"]
    code, out, _ = run("--model", "digits_vit", "--bits", 4, "--format", "onnx", "--output", path, "--check")
    assert code == 0
    assert f"opset {found['opset']}" in out
    assert "same top-1" in out and "times as fast" in out


@pytest.mark.parametrize("name", ["torchao", "modelopt"])
def test_a_configuration_is_written_with_its_notes(run, document, tmp_path, name):
    path = tmp_path / "config.json"
    found = document(*BUDGET, "--format", name, "--output", path)
    written = json.loads(path.read_text())
    for layer, pair in found["bits"].items():
        if "matmul" not in layer and "patch_embed" not in layer:
            assert _weight_bits(written, layer) == pair[0]
    assert any("attention" in note.lower() for note in found["notes"])
    assert "opset" not in found and "check" not in found
    code, out, _ = run(*BUDGET, "--format", name, "--output", path)
    assert code == 0
    assert f"{path.stat().st_size:,}" in out
    for note in found["notes"]:
        assert note in out


def _weight_bits(written, layer: str) -> int:
    if "quant_cfg" not in written:
        return int(written["_data"]["fqn_to_config"][layer]["_data"]["weight_dtype"]["_data"].removeprefix("int"))
    (entry,) = (entry for entry in written["quant_cfg"] if entry["quantizer_name"] == f"{layer}.weight_quantizer")
    return entry["cfg"]["num_bits"]


def test_overlays_are_files_beside_each_other(document, tmp_path):
    found = document(*BUDGET, "--format", "model-explorer", "--output", tmp_path / "digits.json")
    names = ["weight_bits", "activation_bits", "importance", "sensitivity"]
    assert [part["file"] for part in found["files"]] == [str(tmp_path / f"digits.{name}.json") for name in names]
    assert {path.name for path in tmp_path.iterdir()} == {f"digits.{name}.json" for name in names}
    shown = json.loads((tmp_path / "digits.weight_bits.json").read_text())
    for layer, pair in found["bits"].items():
        assert shown["results"][layer]["value"] == pair[0]
    importance = json.loads((tmp_path / "digits.importance.json").read_text())["results"]
    assert sum(importance[layer]["value"] for layer in found["bits"]) == pytest.approx(1)


def test_an_allocation_file_is_one_that_other_commands_read(document, tmp_path):
    first, second, third = (tmp_path / f"{name}.json" for name in ("budget", "uniform", "again"))
    found = document(*BUDGET, "--format", "allocation", "--output", first)
    solved = parse_allocation(first.read_text())
    assert solved["bits"] == found["bits"]
    assert (solved["request"]["average_bits"], solved["request"]["strategy"]) == (4.0, "sensitivity")
    assert solved["predicted_harm"] > 0
    document("--model", "digits_vit", "--bits", 5, "--format", "allocation", "--output", second)
    uniform = parse_allocation(second.read_text())
    assert uniform["bits"]["head"] == [5, 5]
    assert uniform["predicted_harm"] is None
    assert document("--allocation", second, "--format", "allocation", "--output", third)["bits"] == uniform["bits"]
    assert third.read_text() == second.read_text()
    assert document("--allocation", second, "--format", "recipe", "--output", third)["format"] == "allocation"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "digits_vit", "--format", "torchao"], "one of the three"),
        (["--model", "digits_vit", "--bits", 4, "--average-bits", 4, "--format", "torchao"], "one of the three"),
        (["--model", "digits_vit", "--bits", 4, "--format", "torchao", "--check"], "--format onnx"),
        (["--model", "digits_vit", "--bits", 4, "--format", "tflite"], "invalid choice: 'tflite'"),
        (["--model", "digits_vit", "--bits", 4], "--format"),
        (["--model", "digits_vit", "--bits", 9, "--format", "modelopt"], "9 bits are not possible"),
        (
            ["--allocation", "/no/such/allocation.json", "--format", "modelopt"],
            "/no/such/allocation.json cannot be read",
        ),
    ],
)
def test_bad_input_exits_2_with_one_clear_line(run, tmp_path, arguments, message):
    code, out, err = run(*arguments, "--output", tmp_path / "file.json")
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(run, tmp_path):
    path = tmp_path / "none" / "config.json"
    code, out, err = run("--model", "digits_vit", "--bits", 4, "--format", "torchao", "--output", path)
    assert (code, out) == (2, "")
    assert f"cannot be written to {path}" in err


def test_help_names_every_format(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(one.name in out for one in FORMATS.values())
