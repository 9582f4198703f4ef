from pathlib import Path

import pytest

from mixqvit.errors import ImageError
from mixqvit.images.image_sets import ImageSets
from mixqvit.images.loading import load_image_sets
from tests.images.archive_files import write_archive
from tests.images.files import imagenet_model, numbers, png

CLASSES = ("n01440764", "n01443537", "n01484850")
DATA = "ILSVRC/Data/CLS-LOC"
LIST = "LOC_val_solution.csv"


def kaggle(rows: dict[int, str] | None = None) -> dict[str, bytes]:
    """Kaggle's ImageNet, by path: training images by class, 12 validation images and some test images without."""
    files = {
        f"{DATA}/train/{name}/{name}_{number}.JPEG": png(100 * place + number)
        for place, name in enumerate(CLASSES)
        for number in range(5)
    }
    for number in range(12):
        files[f"{DATA}/val/ILSVRC2012_val_{number:08d}.JPEG"] = png(1000 + number)
        files[f"{DATA}/test/ILSVRC2012_test_{number:08d}.JPEG"] = png(2000 + number)
    files["ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000000.xml"] = b"<annotation/>"
    files["LOC_synset_mapping.txt"] = b"n01440764 tench, Tinca tinca\n"
    if rows is not None:
        boxes = "".join(
            f"ILSVRC2012_val_{number:08d},{name} 1 2 3 4 {name} 5 6 7 8 \n" for number, name in rows.items()
        )
        files[LIST] = b"ImageId,PredictionString\n" + boxes.encode()
    return files


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def classes_of(sets: ImageSets) -> dict[int, int]:
    return dict(zip(numbers(sets.evaluation.pixels), sets.evaluation.labels.tolist(), strict=True))


ROWS = {number: CLASSES[number % 3] for number in range(12)}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_kaggles_validation_images_have_the_classes_of_the_list(tmp_path: Path, kind: str) -> None:
    files = kaggle(ROWS)
    source = written(tmp_path, files) if kind == "folder" else write_archive(tmp_path, files, kind)
    sets = load_image_sets(source, imagenet_model())
    assert classes_of(sets) == {1000 + number: number % 3 for number in range(12)}
    assert sorted(numbers(sets.calibration.pixels)) == sorted(100 * place + n for place in range(3) for n in range(5))
    notes = " ".join(sets.sample.notes)
    assert f"the classes of the validation images are those of {LIST}" in notes
    assert "evaluation images from validation; test is left out" in notes


def test_a_flat_folder_of_validation_images_may_have_the_list_inside(tmp_path: Path) -> None:
    files = {Path(name).name: content for name, content in kaggle(ROWS).items() if "/val/" in name or name == LIST}
    sets = load_image_sets(written(tmp_path, files), imagenet_model())
    assert sets.sample.labelled
    assert {1000 + number: number % 3 for number in range(12)}.items() >= classes_of(sets).items()


def test_images_that_the_list_leaves_out_are_named(tmp_path: Path) -> None:
    sets = load_image_sets(written(tmp_path, kaggle({0: CLASSES[1], 3: CLASSES[2]})), imagenet_model())
    assert classes_of(sets) == {1000: 1, 1003: 2}
    assert len(sets.sample.skipped) == 10
    assert any(note.startswith("10 left out (") and "no label" in note for note in sets.sample.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,label\nx,y\n", "does not begin with the columns ImageId,PredictionString"),
        (b"", "does not begin with the columns"),
        (b"ImageId,PredictionString\nother,n01440764 1 2 3 4\n", "names none of the 12 images"),
        (b"\x89PNG\xff", "no UTF-8 text"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image_sets(written(tmp_path, {**kaggle(), LIST: content}), imagenet_model())


def test_two_lists_and_the_list_alone_are_refused(tmp_path: Path) -> None:
    written(tmp_path, kaggle(ROWS))
    with pytest.raises(ImageError, match="give the folder it is in"):
        load_image_sets(tmp_path / LIST, imagenet_model())
    (tmp_path / "ILSVRC" / LIST).write_bytes((tmp_path / LIST).read_bytes())
    with pytest.raises(ImageError, match="2 files LOC_val_solution"):
        load_image_sets(tmp_path, imagenet_model())


def test_folders_of_classes_count_more_than_the_list(tmp_path: Path) -> None:
    files = {
        name.replace("/val/", "/val/n01443537/"): content
        for name, content in kaggle(ROWS).items()
        if "/test/" not in name
    }
    sets = load_image_sets(written(tmp_path, files), imagenet_model())
    assert set(classes_of(sets).values()) == {1}


def test_without_the_list_training_images_are_not_taken_in_silence(tmp_path: Path) -> None:
    written(tmp_path, kaggle())
    with pytest.raises(
        ImageError, match=r"only those of the split train have classes, those of test and validation"
    ) as e:
        load_image_sets(tmp_path, imagenet_model())
    assert LIST in str(e.value)
    assert "--images" in str(e.value)
    sets = load_image_sets(tmp_path / DATA / "train", imagenet_model())
    assert any("all images are training images" in note for note in sets.sample.notes)
    assert load_image_sets(tmp_path / DATA / "val", imagenet_model()).evaluation.labels is None


def test_a_folder_that_holds_train_alone_says_so(tmp_path: Path) -> None:
    files = {name: content for name, content in kaggle().items() if "/train/" in name}
    sets = load_image_sets(written(tmp_path, files), imagenet_model())
    assert sets.sample.classes == 3
    assert any("all images are training images" in note for note in sets.sample.notes)
