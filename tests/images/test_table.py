import os
from pathlib import Path

import pytest

from mixqvit.errors import ImageError
from mixqvit.images import csv_rows
from mixqvit.images.image_sets import ImageSets
from mixqvit.images.labels import FILE_COLUMNS, LABEL_COLUMNS
from mixqvit.images.loading import load_image_sets
from mixqvit.images.sampling import Sampling
from tests.images.files import (
    ANIMALS,
    class_files,
    class_folders,
    imagenet_model,
    numbers,
    tiny_model,
    tree,
    write_image,
)

FILES = tuple(class_files())


def loaded(folder: Path, text: str | bytes, classes: object = ANIMALS, name: str = "images.csv") -> ImageSets:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    before = tree(folder.parent)
    try:
        return load_image_sets(folder / name, tiny_model(classes) if not hasattr(classes, "module") else classes)
    finally:
        assert tree(folder.parent) == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "data")


def rows(delimiter: str = ",", label: object = lambda name: name[:3]) -> str:
    return "\n".join(f"{name}{delimiter}{label(name)}" for name in FILES)


@pytest.mark.parametrize(
    "header", ["", "file,label\n", "Path,Class\n", "\ufeffimage,target\n", "filename,category\r\n"]
)
def test_a_table_is_as_good_as_its_folder(folder: Path, header: str) -> None:
    sets = loaded(folder, header + rows())
    expected = load_image_sets(folder, tiny_model(ANIMALS))
    assert sets.calibration.fingerprint == expected.calibration.fingerprint
    assert sets.evaluation.fingerprint == expected.evaluation.fingerprint
    assert sets.sample.found == 33


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
def test_delimiters(folder: Path, delimiter: str) -> None:
    assert loaded(folder, rows(delimiter)).sample.classes == 3


def test_quoted_fields_other_columns_and_other_orders(folder: Path) -> None:
    write_image(folder / "a, b" / 'c "d".png', 700)
    text = "width,label,file\n" + "\n".join(f"20,{name[:3]},{name}" for name in reversed(FILES))
    sets = loaded(folder, text + '\n20,cow,"a, b/c ""d"".png"\n\n')
    assert 700 in numbers(sets.calibration.pixels) + numbers(sets.evaluation.pixels)
    assert sets.sample.found == 34


def test_windows_paths_and_utf_16(folder: Path) -> None:
    sets = loaded(folder, ("file,label\r\n" + rows().replace("/", "\\").replace("\n", "\r\n")).encode("utf-16"))
    assert sets.evaluation.names[0] == "ant/01.png"


@pytest.mark.parametrize("classes", [ANIMALS, 3])
def test_labels_may_be_indices(folder: Path, classes: object) -> None:
    sets = loaded(folder, "file,label\n" + rows(label=lambda name: 2 - ANIMALS.index(name[:3])), classes)
    assert sets.evaluation.labels[:3].tolist() == [2, 1, 0]


def test_numbers_that_are_names_are_names(folder: Path) -> None:
    sets = loaded(folder, rows(label=lambda name: 7 + ANIMALS.index(name[:3])), ["9", "8", "7"])
    assert sets.evaluation.labels[:3].tolist() == [2, 1, 0]


def test_labels_may_be_wordnet_ids_and_names(folder: Path) -> None:
    kinds = {"ant": "n01440764", "bee": "Great White-shark", "cow": "999"}
    sets = loaded(folder, rows(label=lambda name: kinds[name[:3]]).replace("999", "toilet_tissue"), imagenet_model())
    assert sets.evaluation.labels[:3].tolist() == [0, 2, 999]


def test_without_labels(folder: Path) -> None:
    for text in ("file\n" + "\n".join(FILES), "\n".join(FILES)):
        sets = loaded(folder, text)
        assert sets.evaluation.labels is None
        assert sets.sample.found == 33


def test_rows_without_a_label_are_left_out(folder: Path) -> None:
    sets = loaded(folder, "file,label\n" + rows() + "\nextra.png,\n,cow\n")
    assert sets.sample.skipped == (("row 35", "it names no label"), ("row 36", "it names no file"))


def test_a_missing_file_is_skipped_and_counted(folder: Path) -> None:
    sets = loaded(folder, rows() + "\nant/missing.png,ant\nant,ant")
    assert dict(sets.sample.skipped) == {"ant/missing.png": "it does not exist", "ant": "it is no file"}
    missing = "\n".join(f"ant/missing{number}.png,ant" for number in range(6))
    with pytest.raises(ImageError, match="more than 5 of 39 images"):
        loaded(folder, rows() + "\n" + missing)


@pytest.mark.parametrize(
    "name", ["../secret.png", "ant/../../secret.png", "/etc/passwd.png", "C:\\x.png", "\\\\server\\x.png", "{outside}"]
)
def test_files_outside_the_folder_are_refused(folder: Path, name: str) -> None:
    write_image(folder.parent / "secret.png", 1)
    name = name.format(outside=folder.parent / "secret.png")
    with pytest.raises(ImageError, match=r"row 34 of the table .*not inside the table's folder"):
        loaded(folder, rows() + f"\n{name},ant")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_out_of_the_folder_are_refused(folder: Path) -> None:
    write_image(folder.parent / "secret.png", 1)
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    with pytest.raises(ImageError, match=r"names link\.png, but it is a link that leads out of the folder"):
        loaded(folder, rows() + "\nlink.png,ant")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_out_of_the_folder_are_followed_for_its_owner(folder: Path) -> None:
    write_image(folder.parent / "other" / "a.png", 700)
    (folder / "link.png").symlink_to(folder.parent / "other" / "a.png")
    (folder / "links").symlink_to(folder.parent / "other")
    (folder / "images.csv").write_text(rows() + "\nlink.png,ant\nlinks/a.png,ant")
    sets = load_image_sets(folder / "images.csv", tiny_model(ANIMALS), Sampling(follow_links=True))
    assert (numbers(sets.calibration.pixels) + numbers(sets.evaluation.pixels)).count(700) == 2
    assert "2 link(s) that lead out of the folder are followed: link.png, links/a.png" in sets.sample.notes
    (folder / "images.csv").write_text(rows() + "\n../other/a.png,ant")
    with pytest.raises(ImageError, match="not inside the table's folder"):
        load_image_sets(folder / "images.csv", tiny_model(ANIMALS), Sampling(follow_links=True))


def test_paths_that_lead_back_inside_are_inside(folder: Path) -> None:
    expected = load_image_sets(folder, tiny_model(ANIMALS))
    for name in (lambda name: f"{folder}/{name}", lambda name: f"bee/../{name}", lambda name: f"../data/{name}"):
        sets = loaded(folder, "\n".join(f"{name(file)},{file[:3]}" for file in FILES))
        assert sets.evaluation.fingerprint == expected.evaluation.fingerprint
        assert sets.evaluation.names == expected.evaluation.names


def test_the_columns_that_are_known_are_listed(folder: Path) -> None:
    for text in ("name,kind\nant/00.png,ant", "file,species\nant/00.png,ant"):
        with pytest.raises(ImageError) as error:
            loaded(folder, text)
        assert all(column in str(error.value) for column in (*FILE_COLUMNS, *LABEL_COLUMNS))


def test_the_same_row_twice_counts_once_and_two_labels_are_refused(folder: Path) -> None:
    assert loaded(folder, rows() + "\nant/00.png,ant").sample.found == 33
    with pytest.raises(ImageError, match=r"gives ant/00\.png two labels, ant and bee \(row 34\)"):
        loaded(folder, rows() + "\nant/00.png,bee")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("file,label\n", "holds no images"),
        ("name,kind\nant/00.png,ant", "neither a header such as file,label"),
        ("file,species\nant/00.png,ant", "none for the labels"),
        (b"\x89PNG\r\n\x1a\n\xff\xff", "no UTF-8 text"),
        (b"file,label\nant/00\0.png,ant", "NUL"),
        ('file,label\n"ant/00.png,ant', "cannot be read as CSV"),
        ("file,label\n" + "x" * 200_000, "cannot be read as CSV"),
        (rows() + "\nant/01.png,dog", "two labels"),
        (rows(label=lambda name: "0" if name[:3] == "ant" else "3"), "label 3 .* is no class of tiny"),
        (rows(label=lambda name: "999999999999"), "different labels"),
        (rows(label=lambda name: name[:3].replace("bee", "beee")), r"beee is closest to class 1 \(bee\)"),
    ],
)
def test_what_cannot_be_used_says_why(folder: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        loaded(folder, text)


def test_a_table_that_is_too_large_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_TABLE_BYTES", 100)
    with pytest.raises(ImageError, match="is larger than"):
        loaded(folder, rows())


def test_rows_are_counted_while_they_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_TABLE_ROWS", 30)
    with pytest.raises(ImageError, match="more than 30 rows"):
        loaded(folder, rows())


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_folder_that_is_a_link_out_is_refused(folder: Path) -> None:
    write_image(folder.parent / "secrets" / "a.png", 1)
    (folder / "link").symlink_to(folder.parent / "secrets")
    with pytest.raises(ImageError, match=r"names link/a\.png, but it is a link that leads out"):
        loaded(folder, rows() + "\nlink/a.png,ant")
