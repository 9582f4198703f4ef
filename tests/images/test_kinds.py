import re
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mixqvit.errors import ImageError
from mixqvit.images import kinds
from mixqvit.images.decoding import upright
from mixqvit.images.listing import UnreadableImage
from mixqvit.images.loading import load_image_sets
from tests.images.archive_files import write_archive
from tests.images.files import ANIMALS, class_files, class_folders, numbers, picture, png, tiny_model

HEIF_START = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture(autouse=True)
def asked_again() -> Iterator[None]:
    kinds.heif_is_read.cache_clear()
    yield
    kinds.heif_is_read.cache_clear()


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


@pytest.fixture
def with_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package pillow-heif whose photographs are PNG files behind the first bytes of a HEIC one."""

    def opened(file: BytesIO, name: str) -> Image.Image:
        file.seek(len(HEIF_START))
        return PngImagePlugin.PngImageFile(BytesIO(file.read()))

    def register() -> None:
        Image.init()
        monkeypatch.setitem(Image.OPEN, "HEIF", (opened, lambda start: kinds.is_heif(start)))

    monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a.HEIC", "HEIC photograph.*pillow-heif"),
        ("a.jp2", "JPEG 2000 image.*JPEG or PNG"),
        ("a.jxl", "JPEG XL"),
        ("a.dng", "raw photograph"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_images_of_other_kinds_are_named_with_what_helps(tmp_path: Path, name: str, what: str, kind: str) -> None:
    files = {**class_files(), f"ant/{name}": b"x"}
    source = class_folders(tmp_path)
    (source / "ant" / name).write_bytes(b"x")
    if kind != "folder":
        source = write_archive(tmp_path, files, kind)
    sample = load_image_sets(source, tiny_model(ANIMALS)).sample
    assert sample.found == 33
    ((skipped, reason),) = sample.skipped
    assert skipped == f"ant/{name}"
    assert re.search(what, reason)
    assert f"1 left out (ant/{name}): {reason}" in sample.notes


@pytest.mark.usefixtures("without_heif")
def test_a_folder_of_photographs_of_another_kind_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(HEIF_START)
    with pytest.raises(ImageError, match=r"holds no images; a\.heic: it is a HEIC photograph.*pillow-heif"):
        load_image_sets(tmp_path, tiny_model(3))


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize(
    ("start", "what"),
    [
        (HEIF_START, "HEIC"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\xff\x0a", "JPEG XL"),
        (b"words", "damaged, or no image"),
    ],
)
def test_content_tells_the_kind_whatever_the_name(start: bytes, what: str) -> None:
    with pytest.raises(UnreadableImage, match=what):
        upright(start + b"\0" * 40, "RGB")


@pytest.mark.usefixtures("with_heif")
def test_heic_photographs_are_read_where_the_package_is(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "bee" / "99.heic").write_bytes(HEIF_START + png(700))
    sets = load_image_sets(tmp_path, tiny_model(ANIMALS))
    assert sets.sample.found == 34
    assert 700 in numbers(sets.calibration.pixels) + numbers(sets.evaluation.pixels)
    assert sets.sample.skipped == ()


def test_the_package_itself() -> None:
    heif = pytest.importorskip("pillow_heif")
    file = BytesIO()
    heif.from_pillow(picture(700, (64, 64))).save(file, quality=-1)
    found = np.asarray(upright(file.getvalue(), "RGB")).astype(int)
    assert np.abs(found - np.asarray(picture(700))[0, 0].astype(int)).max() <= 3


def test_classes_of_which_nothing_is_left_are_named(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for number in range(3):
        (tmp_path / "dog").mkdir(exist_ok=True)
        (tmp_path / "dog" / f"{number}.jp2").write_bytes(b"x")
    (tmp_path / "cover.jp2").write_bytes(b"x")
    notes = load_image_sets(tmp_path, tiny_model(ANIMALS)).sample.notes
    outside = write_archive(tmp_path / "dog", {**class_files(), "../cat/a.png": png(1), "/fox/b.png": png(2)}, "zip")
    assert "sub-folders" not in " ".join(load_image_sets(outside, tiny_model(ANIMALS)).sample.notes)
    assert "1 of 4 sub-folders have no image that is read and are left out: dog" in notes
