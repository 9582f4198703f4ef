"""What all sources of images have in common, and how the one that is meant is found."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import ImageOps

from mixqvit.errors import ImageError
from mixqvit.images.decoding import upright
from mixqvit.images.loading import load_image_sets
from mixqvit.images.sources import tars
from mixqvit.images.sources.factory import details, find_source, forms, is_path, is_same, short_name, uploads
from mixqvit.images.sources.source import SOURCES, ImageSource, registered
from mixqvit.images.training_sources import load_training_images
from tests.images.archive_files import write_archive
from tests.images.files import ANIMALS, class_files, class_folders, png, tiny_model
from tests.images.test_parquet import table, write

ROOT = Path(__file__).resolve().parents[2]


def written_table(folder: Path) -> Path:
    class_folders(folder)
    path = folder / "table.csv"
    path.write_text("file,label\n" + "".join(f"{name},{name[:3]}\n" for name in class_files()))
    return path


WRITTEN: dict[str, Callable[[Path], Path]] = {
    "folder": class_folders,
    "table": written_table,
    "zip": lambda folder: write_archive(folder, class_files(), "zip"),
    "tar": lambda folder: write_archive(folder, class_files(), "tar.gz"),
    "parquet": lambda folder: write(folder / "animals.parquet", table()),
}


def test_every_kind_says_what_it_is() -> None:
    assert set(SOURCES) == {*WRITTEN, "digits", "hub"}
    for kind in SOURCES.values():
        assert kind.words in forms()
        assert kind.details in details()
    assert {"zip", "tar", "gz", "parquet"} <= set(uploads())
    assert not {"csv", "digits"} & set(uploads()), "a table sent alone names files that are not there"


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_path_is_known_by_what_it_is_and_serves_evaluation_and_training(kind: str, tmp_path: Path) -> None:
    path = WRITTEN[kind](tmp_path)
    source = find_source(str(path))
    assert (source.kind, source.where) == (kind, str(path))
    assert is_path(str(path))
    assert short_name(str(path)) == path.name
    model = tiny_model(ANIMALS)
    sets = load_image_sets(path, model)
    assert len(sets.calibration) + len(sets.evaluation) == sets.sample.found == 33
    assert len(load_training_images(path, model)) == 33


def test_names_are_no_paths() -> None:
    assert find_source("digits").kind == "digits"
    hub = find_source("hf:zoo/animals@test")
    assert (hub.kind, hub.name, hub.wanted_split) == ("hub", "zoo/animals", "test")
    for name in ("digits", "hf:zoo/animals@test", "hf:../../etc"):
        assert not is_path(name)
        assert short_name(name) == name
    assert is_path("digits/of/mine")
    assert short_name("photos/digits.zip") == "digits.zip"


def test_the_same_images_by_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_same("photos", str(tmp_path / "a" / ".." / "photos"))
    assert is_same("digits", "digits")
    assert not is_same("digits", str(tmp_path / "digits"))
    assert not is_same("hf:a/b", "hf:a/b@test")


def test_what_is_of_no_kind_is_told_the_kinds(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no images")
    for where in (str(path), str(tmp_path / "nothing"), " "):
        with pytest.raises(ImageError) as error:
            find_source(where)
        assert forms() in str(error.value)


def test_two_kinds_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two sources 'digits'"):
        registered(type("Other", (ImageSource,), {"kind": "digits"}))


def test_finding_a_source_loads_no_torch() -> None:
    code = (
        "import sys; from mixqvit.images.sources import factory; factory.find_source('.'); factory.details(); "
        "print({'torch', 'timm', 'pyarrow', 'datasets', 'huggingface_hub', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def mistaken(*_: object, **__: object) -> None:
    raise AttributeError("a mistake")


@pytest.mark.parametrize(
    ("kind", "target", "name"),
    [
        ("zip", zipfile.ZipFile, "infolist"),
        ("zip", zipfile.ZipFile, "open"),
        ("tar", tars.Members, "add"),
        ("tar", tars._Reader, "seek"),
        ("parquet", pq.ParquetFile, "read"),
        ("parquet", pq.ParquetFile, "iter_batches"),
    ],
)
def test_a_mistake_of_the_program_is_not_called_damage(
    kind: str, target: type, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = WRITTEN[kind](tmp_path)
    monkeypatch.setattr(target, name, mistaken)
    with pytest.raises(AttributeError, match="a mistake"):
        load_image_sets(path, tiny_model(ANIMALS))


def test_nor_is_it_with_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageOps, "exif_transpose", mistaken)
    with pytest.raises(AttributeError, match="a mistake"):
        upright(png(1), "RGB")
