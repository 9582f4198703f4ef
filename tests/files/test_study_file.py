"""A study as one file: what goes in comes out, on a machine that knows nothing of it; damage is noticed."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mixqvit.errors import MixQViTError, StudyFileError
from mixqvit.files.open_studies import open_study
from mixqvit.files.study_file import read_study_file, study_file_content, write_study_file_steps
from mixqvit.files.study_import import import_study_file
from mixqvit.stages.stage import STAGES
from mixqvit.stages.store import Store
from mixqvit.study.library import StudyDescription, known_studies
from mixqvit.study.study import Study
from tests.small import SMALL

SETTINGS = SMALL()
BITS = 4


@pytest.fixture(scope="module")
def study(first_results, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with some results of every kind: rows, tensors, a kept allocation."""
    store = first_results.put("digits_swin", Store(tmp_path_factory.mktemp("here")))
    study = Study("digits_swin", settings=SETTINGS, store=store)
    assert study.saved_evaluation(BITS) is not None
    study.kept.save("mine", {"cost": {"average_bits": 4.0}})
    return study


@pytest.fixture(scope="module")
def file(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "swin.safetensors"
    *_, last = write_study_file_steps(study, "my swin", path)
    assert last.result > 10
    return path


def test_an_imported_study_has_the_same_model_images_and_results(study: Study, file: Path, tmp_path: Path):
    store = Store(tmp_path)
    name, imported, count = import_study_file(store, file)
    assert name == "my swin"
    assert imported.identity == study.identity
    assert imported.settings == study.settings
    assert torch.equal(imported.evaluation_images.pixels, study.evaluation_images.pixels)
    assert imported.image_sets.sample == study.image_sets.sample
    assert imported.model.class_names == study.model.class_names
    assert imported.saved_evaluation(BITS) == study.saved_evaluation(BITS)
    assert imported.relevance() == study.relevance()
    assert imported.kept.all() == study.kept.all()
    assert count == read_study_file(file).results
    assert imported.model.notes == study.model.notes


def test_nothing_is_computed_again(file: Path, tmp_path: Path):
    _, imported, _ = import_study_file(Store(tmp_path), file)
    assert [step.done for step in imported.evaluate_steps(BITS)] == [100]
    assert len(list(imported.relevance_steps())) == 1
    assert all(step.doing == "calibration" for step in imported.calibration_steps())


def test_an_imported_study_is_known_by_name_and_opens_again(file: Path, tmp_path: Path):
    store = Store(tmp_path)
    import_study_file(store, file)
    store.clear()
    (description,) = known_studies(store).values()
    again = open_study(description, store=store)
    assert again.settings == SETTINGS
    assert again.saved_evaluation(BITS) is not None, "the results come back with the file"


def test_a_second_import_is_the_same_study_and_a_name_that_is_taken_gets_a_number(file: Path, tmp_path: Path):
    store = Store(tmp_path)
    assert [import_study_file(store, file)[0] for _ in range(2)] == ["my swin", "my swin"]
    assert import_study_file(store, file, "digits_vit")[0] == "digits_vit (2)"


def test_results_that_are_here_already_stay(study: Study, file: Path, tmp_path: Path):
    store = Store(tmp_path)
    _, imported, _ = import_study_file(store, file)
    key = next(key for key in store.keys(imported.identity) if "relevance" not in key and store.items(key))
    item = store.items(key)[0]
    store.put(key, item, "mine")
    import_study_file(store, file)
    assert store.rows(key)[item] == "mine"


def test_the_content_for_a_browser_is_the_file(study: Study, file: Path, tmp_path: Path):
    (tmp_path / "downloaded").write_bytes(study_file_content(study, "my swin"))
    assert read_study_file(tmp_path / "downloaded").digest == read_study_file(file).digest


def test_another_program_version_is_no_obstacle_but_its_results_are_not_used(
    study: Study, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for stage in STAGES.values():
        monkeypatch.setattr(stage, "version", 1000)
    _, imported, _ = import_study_file(Store(tmp_path), file)
    assert imported.saved_evaluation(BITS) is None
    assert any("other versions" in note for note in imported.model.notes)


def test_what_an_earlier_program_saved_opens_and_is_computed_again(study: Study, file: Path, tmp_path: Path):
    def change(document: dict) -> None:
        key = f"{study.identity}-{'a' * 64}"
        document["made_with"] = {"torch": "2.0", "timm": "1.0", "mixqvit": "b" * 64}
        document["rows"] = {
            key: {"images from 0": 1},
            f"{key} seconds": {"seconds": 1.5},
            f"{key}-state": {"passes": 1},
        }
        document["tensors"] = []

    _, imported, count = import_study_file(Store(tmp_path / "store"), resealed(file, tmp_path / "file", change))
    assert count == 3
    assert any("computed again" in note for note in imported.model.notes)
    assert imported.relevances.progress().done == imported.evaluations.progress(BITS).done == 0
    assert list(imported.kept.all()) == ["mine"]


def test_a_model_that_is_read_differently_here_opens_without_the_results(file: Path, tmp_path: Path):
    def change(document: dict) -> None:
        document["identity"] = "0" * 16

    _, imported, count = import_study_file(Store(tmp_path / "store"), resealed(file, tmp_path / "file", change))
    assert count == 0
    assert imported.saved_evaluation(BITS) is None
    assert any("other versions" in note for note in imported.model.notes)


def test_missing_and_foreign_files(tmp_path: Path):
    with pytest.raises(StudyFileError, match="There is no study file"):
        read_study_file(tmp_path / "missing")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(StudyFileError, match="holds no study"):
        read_study_file(tmp_path / "other")
    with pytest.raises(StudyFileError):
        read_study_file(tmp_path)


def resealed(file: Path, target: Path, change) -> Path:
    """Write the file with a changed document and a fitting SHA-256, as somebody of ill will could."""
    from mixqvit.files import study_file

    with safetensors.safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    document = json.loads(bytes(tensors["document"].numpy()))
    change(document)
    tensors["document"] = torch.frombuffer(bytearray(json.dumps(document).encode()), dtype=torch.uint8)
    study_file._write(tensors, target)
    return target


def with_key(key: str, item: str):
    def change(document: dict) -> None:
        document["rows"] = {key: {item: 1}}

    return change


def in_description(**values: object):
    return lambda document: document["description"].update(values)


def in_model(**values: object):
    return lambda document: document["model"].update(values)


def built_with(**arguments: object):
    return lambda document: document["model"]["architecture"]["arguments"].update(arguments)


def with_item(item: str, value: object):
    return lambda document: next(iter(document["rows"].values())).update({item: value})


@pytest.mark.parametrize(
    "change",
    [
        in_description(model=5),
        in_description(settings={"baseline": "many"}),
        in_description(settings={"outlier_factor": [2]}),
        in_description(settings={"telepathy": True}),
        in_model(class_names=list(range(10))),
        in_model(class_names=["one"]),
        in_model(notes=[{}]),
        built_with(embed_dim=96000),
        built_with(embed_dim=10**9),
        built_with(num_heads=[0, 0]),
        with_item("tensors/../../../elsewhere", 1),
        with_item("tensors/much", 10**15),
    ],
)
def test_what_pages_and_memory_could_not_bear_is_refused(file: Path, tmp_path: Path, change):
    store = Store(tmp_path / "store")
    with pytest.raises(MixQViTError):
        import_study_file(store, resealed(file, tmp_path / "file", change))
    assert known_studies(store) == {}


def test_descriptions_lead_to_no_files(file: Path, tmp_path: Path):
    changed = resealed(file, tmp_path / "file", in_description(checkpoint="/a.pth", images={"a": 1}, study_file="../b"))
    assert read_study_file(changed).description == read_study_file(file).description


@pytest.mark.parametrize("key", ["kept studies", "../../evil", "0" * 16 + "-" + "0" * 64])
def test_results_of_other_studies_are_refused(file: Path, tmp_path: Path, key: str):
    store = Store(tmp_path / "store")
    with pytest.raises(StudyFileError, match="impossible name"):
        import_study_file(store, resealed(file, tmp_path / "file", with_key(key, "item")))
    assert store.keys(key) == []
    assert known_studies(store) == {}


def test_tensors_cannot_be_written_elsewhere(file: Path, tmp_path: Path):
    def change(document: dict) -> None:
        key, _, names, metadata = document["tensors"][0]
        document["tensors"][0] = [key, "../../../evil", names, metadata]

    with pytest.raises(StudyFileError, match="impossible name"):
        import_study_file(Store(tmp_path / "store"), resealed(file, tmp_path / "file", change))
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("part", ["description", "model", "images", "rows", "tensors", "kept", "identity", "name"])
@pytest.mark.parametrize("value", [None, "text", {"a": {"b": 1}}])
def test_a_document_that_makes_no_sense_is_one_sentence(file: Path, tmp_path: Path, part: str, value: object):
    def change(document: dict) -> None:
        document[part] = value

    try:
        import_study_file(Store(tmp_path / "store"), resealed(file, tmp_path / "file", change))
    except MixQViTError as error:
        assert "\n" not in str(error)


def test_damaged_files_are_noticed(file: Path, tmp_path: Path):
    """60 files, cut, flipped and spliced at random places: every one is refused, and nothing is written."""
    content = file.read_bytes()
    draw = random.Random(0)
    store = Store(tmp_path / "store")
    before = sorted(tmp_path.rglob("*"))
    for number in range(60):
        changed = bytearray(content)
        place = draw.randrange(len(content))
        if number % 3 == 0:
            del changed[place:]
        elif number % 3 == 1:
            place = draw.choice([place, draw.randrange(2000)])
            changed[place] ^= 1 << draw.randrange(8)
        else:
            changed[place:place] = draw.randbytes(draw.randrange(1, 100))
        path = tmp_path / "damaged"
        path.write_bytes(changed)
        if bytes(changed) != content:
            with pytest.raises(StudyFileError):
                read_study_file(path)
        path.unlink()
    assert sorted(tmp_path.rglob("*")) == before
    assert known_studies(store) == {}


def test_a_model_that_nothing_describes_cannot_be_exported(study: Study, tmp_path: Path):
    nameless = Study(replace(study.model, name="mine", architecture=None), study.image_sets, SETTINGS)
    with pytest.raises(StudyFileError, match="not a model of timm"):
        list(write_study_file_steps(nameless, "mine", tmp_path / "file"))


def test_descriptions_keep_no_paths(file: Path):
    assert read_study_file(file).description == StudyDescription(
        "digits_swin", settings={"calibration_images": 8, "analysis_images": 8, "evaluation_images": 100}
    )
