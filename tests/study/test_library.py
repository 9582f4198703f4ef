"""The studies that are known by name."""

from pathlib import Path

import pytest

from mixqvit.errors import ModelError, StoreError
from mixqvit.stages.store import KEPT, Store
from mixqvit.study.library import (
    StudyDescription,
    default_name,
    find_study,
    forget_study,
    free_name,
    keep_study,
    known_studies,
    studies_folder,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


DESCRIPTION = StudyDescription(
    "deit_tiny_patch16_224", "w.safetensors", "photos", {"mean": [0.5, 0.5, 0.5]}, {"sampling_seed": 3}
)


def test_a_description_comes_back_and_outlives_clearing(store: Store):
    assert keep_study(store, "  my\n study ", DESCRIPTION) == "my study"
    store.clear()
    assert known_studies(store) == {"my study": DESCRIPTION}
    assert find_study(Store(store.folder), "my study") == DESCRIPTION


def test_embedded_models_are_studies_of_their_own(store: Store):
    assert find_study(store, "digits_vit") == StudyDescription("digits_vit")
    assert find_study(store, "unknown") is None
    with pytest.raises(ModelError, match="embedded"):
        keep_study(store, "digits_vit", DESCRIPTION)


@pytest.mark.parametrize("name", ["", " \n ", "x" * 81])
def test_impossible_names(store: Store, name: str):
    with pytest.raises(ModelError, match="1 to 80"):
        keep_study(store, name, DESCRIPTION)


def test_forgetting_removes_the_imported_file_when_nobody_else_needs_it(store: Store):
    imported = StudyDescription("m", study_file="a.safetensors")
    studies_folder(store).mkdir()
    (studies_folder(store) / "a.safetensors").touch()
    keep_study(store, "one", imported)
    keep_study(store, "two", imported)
    forget_study(store, "one")
    assert (studies_folder(store) / "a.safetensors").exists()
    forget_study(store, "two")
    assert not (studies_folder(store) / "a.safetensors").exists()
    with pytest.raises(StoreError, match="no saved study 'two'; saved are: none"):
        forget_study(store, "two")


def test_what_a_later_version_added_is_passed_over(store: Store):
    store.put(KEPT + "studies", "later", {"model": "m", "telepathy": True})
    assert known_studies(store) == {"later": StudyDescription("m")}


@pytest.mark.parametrize(
    ("images", "name"),
    [(None, "vit"), ("/data/photos", "vit on photos"), ("hf:owner/name@test", "vit on hf:owner/name@test")],
)
def test_default_names(images: str | None, name: str):
    assert default_name(StudyDescription(None, images=images), "vit") == name


def test_a_name_that_nobody_chose_takes_no_other_studys(store: Store):
    tuples = StudyDescription("m", preprocessing={"mean": (0.5,)})
    assert free_name(store, " m on\nphotos ", tuples) == "m on photos"
    keep_study(store, "m on photos", tuples)
    assert free_name(store, "m on photos", tuples) == "m on photos"
    assert free_name(store, "m on photos", DESCRIPTION) == "m on photos (2)"
    assert free_name(store, "digits_vit", DESCRIPTION) == "digits_vit (2)"
    keep_study(store, "x" * 80, tuples)
    assert len(free_name(store, "x" * 80, DESCRIPTION)) <= 80
