import random
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixqvit.errors import ImageError
from mixqvit.images import parquet_files
from mixqvit.images.image_sets import ImageSets
from mixqvit.images.loading import load_image_sets
from mixqvit.images.sampling import Sampling
from tests.images.files import ANIMALS, numbers, png, tiny_model, tree, write_image
from tests.images.test_mutated_archives import cut_out, flip, splice, truncate, zero


def table(count: int = 33, start: int = 0, classes: tuple[str, ...] = ANIMALS) -> datasets.Dataset:
    """Rows as the hub stores them: images as bytes, labels as class indices, classes in turns."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))})
    rows = {
        "image": [{"bytes": png(start + row), "path": None} for row in range(count)],
        "label": [row % len(classes) for row in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def write(path: Path, rows: datasets.Dataset, **options: object) -> Path:
    """Write rows with the features in the file's metadata, as the library itself does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows.data.table, path, **options)
    return path


def loaded(path: Path, classes: object = ANIMALS, sampling: Sampling | None = None) -> ImageSets:
    before = tree(path.parent)
    try:
        return load_image_sets(path, tiny_model(classes), sampling)
    finally:
        assert tree(path.parent) == before


@pytest.mark.parametrize("row_group_size", [5, 100])
def test_a_parquet_file(tmp_path: Path, row_group_size: int) -> None:
    sets = loaded(write(tmp_path / "animals.parquet", table(), row_group_size=row_group_size))
    assert sets.calibration.names[0] == "row 00000000"
    assert sorted(numbers(sets.calibration.pixels)) == [0, 10, 20, 30]
    assert sets.evaluation.labels.tolist() == [number % 3 for number in numbers(sets.evaluation.pixels)]
    assert (len(sets.evaluation), sets.sample.found, sets.sample.classes) == (29, 33, 3)


def test_the_librarys_own_writer(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "animals.parquet")
    assert loaded(tmp_path / "animals.parquet").sample.found == 33


def test_class_names_are_matched_and_otherwise_their_order_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "animals.parquet", table(classes=("cow", "ant", "bee")))
    named = loaded(path)
    assert named.evaluation.labels.tolist() == [[2, 0, 1][number % 3] for number in numbers(named.evaluation.pixels)]
    ordered = loaded(path, 3)
    assert ordered.evaluation.labels.tolist() == [number % 3 for number in numbers(ordered.evaluation.pixels)]


def test_a_folder_with_splits(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.parquet", table(20))
    write(tmp_path / "data" / "train-00001-of-00002.parquet", table(20, 100))
    write(tmp_path / "data" / "test-00000-of-00001.parquet", table(10, 1000))
    (tmp_path / "README.md").write_text("a data set")
    sets = loaded(tmp_path)
    assert len(sets.calibration) == 32
    assert max(numbers(sets.calibration.pixels)) < 200
    assert sorted(numbers(sets.evaluation.pixels)) == list(range(1000, 1010))
    assert sets.evaluation.names[0] == "test 00000000"
    assert "train 00000020" in sets.calibration.names


def test_a_test_split_without_labels_is_asked_about(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", table())
    unlabelled = table(10, 1000).to_dict()
    unlabelled["label"] = [-1] * 10
    write(tmp_path / "test.parquet", datasets.Dataset.from_dict(unlabelled, features=table().features))
    with pytest.raises(ImageError, match="only those of the split train have classes, those of test have none"):
        loaded(tmp_path)
    sets = loaded(tmp_path / "train.parquet")
    assert sets.sample.labelled
    assert sorted(numbers(sets.calibration.pixels) + numbers(sets.evaluation.pixels)) == list(range(33))
    assert any("all images are training images" in note for note in sets.sample.notes)


def test_only_the_rows_of_the_sample_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "animals.parquet", table(900), row_group_size=20)
    read = []
    original = parquet_files.ParquetFiles._content

    def content(self: parquet_files.ParquetFiles, value: object, path: Path) -> object:
        read.append(value)
        return original(self, value, path)

    monkeypatch.setattr(parquet_files.ParquetFiles, "_content", content)
    sets = loaded(path, sampling=Sampling(evaluation=12))
    assert sets.evaluation.labels.bincount().tolist() == [4, 4, 4]
    assert len(sets.calibration) == 64
    assert len(read) == 64 + 12


@pytest.mark.parametrize("kind", ["numbers", "words", "none"])
def test_tables_that_other_programs_wrote(tmp_path: Path, kind: str) -> None:
    columns = {"picture": [png(number) for number in range(33)], "comment": ["x"] * 33}
    if kind != "none":
        columns["label"] = [number % 3 if kind == "numbers" else ANIMALS[number % 3] for number in range(33)]
    pq.write_table(pa.table(columns), tmp_path / "animals.parquet")
    sets = loaded(tmp_path / "animals.parquet")
    assert sets.sample.labelled == (kind != "none")
    if kind != "none":
        assert sets.evaluation.labels.tolist() == [number % 3 for number in numbers(sets.evaluation.pixels)]


def rows_of_paths(paths: list[str]) -> pa.Table:
    return pa.table({"image": [{"bytes": None, "path": path} for path in paths], "label": ["ant"] * len(paths)})


def test_rows_that_name_files_read_them_inside_the_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for number in range(30):
        write_image(folder / "images" / f"{number}.png", number)
    write_image(tmp_path / "secret.png", 999)
    inside = [f"images/{number}.png" for number in range(30)]
    outside = ["../secret.png", str(tmp_path / "secret.png")]
    pq.write_table(rows_of_paths([*inside, *outside]), folder / "animals.parquet")
    sets = loaded(folder / "animals.parquet")
    assert 999 not in numbers(sets.calibration.pixels) + numbers(sets.evaluation.pixels)
    reason = "it leads out of the folder"
    assert sets.sample.skipped == (("row 00000030", reason), ("row 00000031", reason))


def test_rows_without_an_image_are_skipped(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "image": [{"bytes": png(number), "path": "x.png"} for number in range(30)]
            + [None, {"bytes": None, "path": None}]
        }
    )
    pq.write_table(rows, tmp_path / "animals.parquet")
    assert [reason for _, reason in loaded(tmp_path / "animals.parquet").sample.skipped] == [
        "the row holds no image"
    ] * 2


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    path = tmp_path / "animals.parquet"
    pq.write_table(pa.table({"text": ["a", "b"]}), path)
    with pytest.raises(ImageError, match="no column of images; its columns are text"):
        loaded(path)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    with pytest.raises(ImageError, match="has no rows"):
        loaded(path)
    write(path, table(classes=("dog", "cat", "owl")))
    with pytest.raises(ImageError, match="3 different labels, tiny has 5 classes"):
        loaded(path, 5)
    numbered = pa.table({"image": [png(number) for number in range(4)], "label": [0, 1, 2, 3]})
    pq.write_table(numbered, path)
    with pytest.raises(ImageError, match=r"label 3 of .* is no class"):
        loaded(path)
    write(path, table())
    for length in (6, 400, path.stat().st_size - 5):
        damaged = tmp_path / "damaged.parquet"
        damaged.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ImageError, match="damaged or no parquet file"):
            loaded(damaged)


def test_files_of_different_kinds_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table())
    pq.write_table(pa.table({"photo": [png(1)], "label": [0]}), tmp_path / "b.parquet")
    with pytest.raises(ImageError, match="different columns"):
        loaded(tmp_path)


def test_rows_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "MAX_ROWS", 30)
    monkeypatch.setattr(parquet_files, "_labels", lambda *_: pytest.fail("a kilobyte may claim a billion rows"))
    with pytest.raises(ImageError, match="more than 30 rows"):
        loaded(write(tmp_path / "animals.parquet", table()))


def test_huge_groups_of_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "MAX_GROUP_BYTES", 500)
    with pytest.raises(ImageError, match="group of rows"):
        loaded(write(tmp_path / "animals.parquet", table()))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("original") / "animals.parquet", table(), row_group_size=7).read_bytes()


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_file_is_an_error_in_words_or_readable(tmp_path: Path, original: bytes, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(original)
    for way in chance.choices((truncate, flip, splice, cut_out, zero), k=chance.choice((1, 1, 2))):
        data = way(data, chance) or bytearray(b"\0")
    (tmp_path / "animals.parquet").write_bytes(data)
    try:
        assert loaded(tmp_path / "animals.parquet").sample.found
    except ImageError as error:
        assert "\n" not in str(error)


def repeated(path: Path, column: str, value: object, other: dict[str, list], kind: pa.DataType) -> Path:
    """Write a column of one large value said many times: a file of some kilobytes."""
    count = len(next(iter(other.values())))
    values = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value], kind))
    rows = pa.table({column: values, **other})
    with pq.ParquetWriter(
        path, rows.schema, compression="zstd", dictionary_pagesize_limit=2**30, store_schema=False
    ) as file:
        file.write_table(rows)
    assert path.stat().st_size < 20_000
    return path


def test_a_long_text_is_no_label_however_often_it_is_said(tmp_path: Path) -> None:
    path = repeated(tmp_path / "a.parquet", "label", "x" * 100_000, {"image": [png(1)] * 300}, pa.string())
    with pytest.raises(ImageError, match="label of more than 1,000 characters"):
        loaded(path)


def test_one_large_cell_is_in_memory_at_a_time(tmp_path: Path) -> None:
    size = 4 * 2**20
    path = repeated(tmp_path / "a.parquet", "image", bytes(size), {"label": [0, 1, 2] * 22}, pa.binary())
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        assert [len(value) for _, value in parquet_files._values(path, "image", [1, 65])] == [size, size]
    finally:
        pa.set_memory_pool(before)
    assert size < pool.max_memory() < 10 * size
