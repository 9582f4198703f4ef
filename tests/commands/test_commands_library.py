"""Commands around saved studies, and the options that say which model and images are meant."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from mixqvit.commands import main
from mixqvit.commands.parser import parser
from mixqvit.commands.studies import description_of
from mixqvit.images.labels import FILE_COLUMNS, LABEL_COLUMNS, LABEL_ORDERS
from mixqvit.models.loading import load_model
from mixqvit.stages.store import Store
from mixqvit.study.library import StudyDescription, forget_study, keep_study, known_studies


@pytest.fixture(autouse=True)
def no_saved_studies():
    for name in known_studies(Store()):
        forget_study(Store(), name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an embedded model, and photographs of its ten classes."""
    folder = tmp_path_factory.mktemp("data")
    torch.save(load_model("digits_swin").module.state_dict(), folder / "weights.pth")
    for number in range(60):
        path = folder / "photos" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), number + 1).save(path)
    return folder


@pytest.fixture
def run(capfd):
    def run(*arguments):
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
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


@pytest.fixture
def own(data: Path) -> list[object]:
    fewer = ["--evaluation-images", 20, "--sampling-seed", 3]
    return [*fewer, "--model", "digits_swin", "--checkpoint", data / "weights.pth", "--images", data / "photos"]


def test_analyze_computes_and_saves_a_study_that_other_commands_open(document, run, own, data):
    found = document("analyze", *own, "--name", "mine")
    assert found["study"] == "mine"
    assert found["images"]["seed"] == 3
    assert {measured["images"] for measured in found["measured"].values()} == {20}
    assert set(found["measured"]) == {"full precision", "mixed", "uniform"}
    assert found["measured"]["full precision"]["agreement"] == 1.0
    assert list(document("study", "list")["studies"]) == ["mine"]
    assert "mine" in document("models")["studies"]
    assert document("evaluate", "--model", "mine", "--bits", 32)["measured"] == found["measured"]["full precision"]
    code, _, message = run("evaluate", "--model", "mine", "--bits", 8, "--images", data / "photos")
    assert (code, "is a saved study" in message) == (2, True)


@pytest.mark.slow
def test_analyze_again_changes_nothing(document, own):
    first = document("analyze", *own)
    assert first["study"] == "digits_swin on photos"
    assert document("analyze", *own) == first
    assert document("analyze", "--model", first["study"]) == first
    assert list(known_studies(Store())) == [first["study"]]


def test_a_study_goes_to_another_machine_with_its_results(document, own, data, monkeypatch, tmp_path):
    measured = document("analyze", *own, "--name", "mine")["measured"]
    document("study", "export", "mine", data / "mine.safetensors")
    monkeypatch.setenv("MIXQVIT_CACHE", str(tmp_path / "elsewhere"))
    found = document("study", "import", data / "mine.safetensors", "--name", "from afar")
    assert found["study"] == "from afar"
    assert found["results"] > 100
    assert document("analyze", "--model", "from afar")["measured"] == measured
    assert document("study", "remove", "from afar") == {"removed": "from afar"}
    assert document("study", "list") == {"studies": {}}


def test_preprocessing_is_changed_on_the_command_line(document, own):
    plain, darker = (
        document("evaluate", *own, "--bits", 4, "--recipe", "min-max", *changed)["measured"]
        for changed in ((), ("--preprocessing", "mean=0.9"))
    )
    assert plain["kl"] != darker["kl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--bits", 4], "Say which model it is"),
        (["evaluate", "--model", "deit_tiny_patch16_244", "--bits", 4], "deit_tiny_patch16_224"),
        (["layers", "--model", "digits_vit", "--images", "no/such/folder"], "no/such/folder"),
        (["layers", "--model", "digits_vit", "--preprocessing", "mean=grey"], "NAME=VALUE"),
        (["layers", "--model", "digits_vit", "--preprocessing", "colour=red"], "colour"),
        (["layers", "--model", "digits_vit", "--evaluation-images", 0], "at least one image"),
        (["layers", "--model", "digits_vit", "--sampling-seed", -1], "seed"),
        (["study", "export", "nothing", "file"], "no saved study 'nothing'"),
        (["study", "import", "no/such/file"], "no study file no/such/file"),
        (["study", "remove", "nothing"], "no saved study 'nothing'"),
        (["analyze", "--model", "digits_swin", "--name", "digits_vit"], "embedded model"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    (line,) = (line for line in err.strip().splitlines() if not line.startswith("note: "))
    assert message in line


def test_another_folder_of_the_same_name_is_another_study(document, own, tmp_path):
    first = document("analyze", *own)["study"]
    shutil.copytree(own[-1], tmp_path / "photos")
    other = document("analyze", *own[:-1], tmp_path / "photos")["study"]
    assert [first, other] == ["digits_swin on photos", "digits_swin on photos (2)"]
    assert list(known_studies(Store())) == [first, other]


def test_the_owner_follows_links_and_a_saved_study_is_as_it_was_described(own):
    assert description_of(parser().parse_args(["layers", *map(str, own)])).follow_links
    for follow_links in (False, True):
        kept = StudyDescription("digits_swin", images="photos", follow_links=follow_links)
        keep_study(Store(), "kept", kept)
        assert description_of(parser().parse_args(["layers", "--model", "kept"])) == kept


def test_help_lists_the_columns_of_a_table_and_the_orders_of_labels(run):
    code, out, _ = run("analyze", "--help")
    assert code == 0
    assert all(word in out for word in (*FILE_COLUMNS, *LABEL_COLUMNS, *LABEL_ORDERS))


def test_the_order_of_labels_is_a_setting_also_of_a_saved_study():
    options = parser().parse_args(["analyze", "--model", "digits_swin", "--label-order", "torchvision"])
    assert description_of(options).settings == {"label_order": "torchvision"}
    keep_study(Store(), "kept", StudyDescription("digits_swin", settings={"sampling_seed": 3}))
    options = parser().parse_args(["evaluate", "--model", "kept", "--label-order", "number"])
    assert description_of(options).settings == {"sampling_seed": 3, "label_order": "number"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [("local-dir:models/mine", "local-dir:{}/models/mine"), ("vit_tiny_patch16_224", "vit_tiny_patch16_224")],
)
def test_a_folder_of_a_model_means_the_same_from_everywhere(model, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = parser().parse_args(["layers", "--model", model])
    assert description_of(options).model == expected.format(Path.cwd())
