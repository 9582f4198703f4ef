"""What is known beside the numbers is said by every command, once, and is part of what it writes."""

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from mixqvit.commands import main
from mixqvit.commands.parser import BAD_INPUT, parser
from mixqvit.errors import UnsupportedOperationError
from mixqvit.images.loading import load_images
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study
from tests.pages.studies import keep_small_study

SHIFTED = "the labels look shifted"
QUICK = {"recipe": "min-max"}


@pytest.fixture(scope="module", autouse=True)
def small_studies():
    """Fewer images than a user's, and enough not to be noted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixqvit.files.open_studies.Settings", partial(Settings, calibration_images=8, analysis_images=8))
        yield


def write_digits(folder: Path, shift: int) -> Path:
    """Write a hundred digits as pictures into a folder for each label, `shift` further on."""
    images = load_images("digits", limit=100)
    pictures = (images.display().numpy()[..., 0] * 255).round().astype("uint8")
    for number, (picture, label) in enumerate(zip(pictures, images.labels.tolist(), strict=True)):
        path = folder / str((label + shift) % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return folder


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp("right"), 0)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory) -> Path:
    """With two files that are left out."""
    folder = write_digits(tmp_path_factory.mktemp("shifted"), 1)
    (folder / "3" / "broken.png").write_bytes(b"no picture")
    Image.new("L", (32, 32)).save(folder / "beside.png")
    return folder


@pytest.fixture
def run(capfd):
    """Run a command; returns its document and what it said on standard error."""

    def run(*arguments):
        capfd.readouterr()
        assert main([*map(str, arguments), "--json"]) == 0
        found = capfd.readouterr()
        return json.loads(found.out), found.err

    return run


def lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith(("note: ", "warning: "))]


def test_notes_are_said_once_and_are_part_of_the_document(run, shifted):
    document, said = run("layers", "--model", "digits_vit", "--images", shifted)
    assert lines(said) == [f"note: {note}" for note in document["notes"]]
    assert any(note.startswith("1 left out (3/broken.png): it is damaged") for note in document["notes"])
    assert any("beside" in note for note in document["notes"])


def test_a_study_of_which_there_is_nothing_to_say(run):
    document, said = run("layers", "--model", "digits_vit")
    assert document["notes"] == []
    assert not lines(said)


def test_shifted_labels_are_a_warning_beside_what_was_measured(run, shifted, right):
    document, said = run("evaluate", "--model", "digits_vit", "--images", shifted, "--bits", 32)
    assert document["measured"]["top1"] < 0.1
    *_, warning = lines(said)
    assert warning == f"warning: {document['notes'][-1]}"
    assert SHIFTED in warning
    assert said.count(SHIFTED) == 1
    document, said = run("evaluate", "--model", "digits_vit", "--images", right, "--bits", 32)
    assert document["measured"]["top1"] > 0.9
    assert document["notes"] == lines(said) == []


def test_files_that_are_written_contain_the_notes(run, shifted, tmp_path):
    recipe, study = tmp_path / "recipe.json", tmp_path / "study.safetensors"
    options = ["--model", "digits_vit", "--images", shifted]
    document, _ = run("export", *options, "--bits", 4, "--format", "allocation", "--output", recipe)
    assert json.loads(recipe.read_text())["notes"] == document["notes"] != []
    document, _ = run("export", *options, "--bits", 4, "--format", "torchao", "--output", tmp_path / "torchao.json")
    assert any("broken.png" in note for note in document["notes"])
    assert len(document["notes"]) > 2  # what the format cannot express comes after them
    keep_small_study("few", tmp_path, labelled=False)
    written, _ = run("study", "export", "few", study)
    read, _ = run("study", "import", study, "--name", "again")
    assert read["notes"] == written["notes"] != []


def test_few_images_are_noted_with_what_that_means(run, tmp_path):
    keep_small_study("few", tmp_path, labelled=True, evaluation_images=12)
    _, said = run("layers", "--model", "few")
    calibration, evaluation = lines(said)
    assert "only 4 calibration images" in calibration and "95 % intervals" in calibration
    assert "only 12 evaluation images" in evaluation and "interval from 76 % on" in evaluation
    assert not said.count("warning")


def test_one_calibration_image_has_no_intervals(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mixqvit.criteria.sensitivity.stage.BIT_WIDTHS", (2,))
    keep_small_study("one image", tmp_path, labelled=False, **QUICK | {"calibration_images": 1, "analysis_images": 1})
    document, said = run("sensitivity", "--model", "one image")
    assert document["interval_95"] is None
    assert document["harm"]["head"]["2"] > 0
    assert "warning: There is one calibration image" in said


@pytest.fixture
def one_class(tmp_path) -> str:
    return keep_small_study("one class", tmp_path, labelled=False, classes=1, **QUICK)


def test_one_class_leaves_nothing_to_measure(run, one_class, capfd):
    document, said = run("evaluate", "--model", one_class, "--bits", 3)
    measured = dict.fromkeys(("top1", "top1_interval_95", "agreement", "agreement_interval_95", "kl"))
    assert document["measured"] == {"images": 12, **measured}
    assert "warning: The model has one class" in said
    assert main(["evaluate", "--model", one_class, "--bits", "3"]) == 0
    row = capfd.readouterr().out.splitlines()[-1]
    assert row.split() == ["3", "min-max", "unlabelled", "–", "–", "12"]


def test_without_relevance_the_strategy_that_works_is_named(capfd, monkeypatch):
    def refuse(*_, **__):
        raise UnsupportedOperationError("The operation erfinv at blocks.1.act has no rule of relevance.")

    monkeypatch.setattr(Study, "score_steps", refuse)
    options = ["allocate", "--model", "digits_vit", "--average-bits", "4"]
    assert main(options) == BAD_INPUT
    line = capfd.readouterr().err.splitlines()[-1]
    assert "erfinv at blocks.1.act" in line
    assert "Strategy mix-qvit needs importance" in line
    assert "`allocate --strategy sensitivity`" in line
    assert main([*options, "--strategy", "clado"]) == BAD_INPUT  # refused for another reason than relevance
    assert "--strategy" not in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "name", "found"),
    [
        (["evaluate", "--images=~/photos"], "images", "photos"),
        (["evaluate", "--checkpoint=~/weights.pth"], "checkpoint", "weights.pth"),
        (["evaluate", "--packed=~/model.safetensors"], "packed", "model.safetensors"),
        (["evaluate", "--allocation=~/a.json"], "allocation", "a.json"),
        (["report", "--output=~/report.html"], "output", "report.html"),
        (["report", "--output=x", "--recipe=~/a.json"], "allocation", "a.json"),
        (["export", "--format=onnx", "--output=~/model.onnx"], "output", "model.onnx"),
        (["train", "--training-images=~/photos"], "training_images", "photos"),
        (["train", "--allocation=~/recipe.json"], "allocation", "recipe.json"),
        (["study", "import", "~/study.safetensors"], "file", "study.safetensors"),
    ],
)
def test_paths_may_begin_with_the_home_folder(monkeypatch, tmp_path, arguments, name, found):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(getattr(parser().parse_args(arguments), name)) == str(tmp_path / found)


def test_images_in_the_home_folder_are_found(run, right, monkeypatch):
    monkeypatch.setenv("HOME", str(right.parent))
    document, _ = run("layers", "--model", "digits_vit", f"--images=~/{right.name}")
    assert len(document["layers"]) == 38
