import os
from pathlib import Path

import pytest
import torch

from mixqvit.errors import ImageError
from mixqvit.images.loading import load_image_sets, load_images
from tests.images.files import ANIMALS, class_folders, imagenet_model, numbers, png, tiny_model, tree, write_image


def test_splits_and_labels(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    model = tiny_model(3)
    calibration = load_images(tmp_path, "calibration", model)
    evaluation = load_images(str(tmp_path), "evaluation", model)
    assert calibration.names == ("ant/00.png", "bee/09.png", "cow/08.png", "ant/10.png")
    assert numbers(calibration.pixels) == [0, 20, 30, 10]
    assert len(evaluation) == 29
    assert evaluation.names[:4] == ("ant/01.png", "bee/00.png", "cow/00.png", "ant/02.png")
    assert evaluation.labels[:4].tolist() == [0, 1, 2, 0]
    assert evaluation.labels.dtype == torch.int64
    assert evaluation.pixels.shape == (29, 3, 16, 16)
    assert numbers(evaluation.pixels) == [11 * ANIMALS.index(name[:3]) + int(name[4:6]) for name in evaluation.names], (
        "pixels and names belong together"
    )
    torch.testing.assert_close(evaluation.display()[:, 8, 8, 2], torch.full((29,), 7 / 255))


def test_sets_are_the_same_as_the_single_splits(tmp_path: Path) -> None:
    class_folders(tmp_path)
    model = tiny_model(3)
    sets = load_image_sets(tmp_path, model)
    assert sets.calibration.fingerprint == load_images(tmp_path, "calibration", model).fingerprint
    assert sets.evaluation.fingerprint == load_images(tmp_path, "evaluation", model).fingerprint
    assert len(load_images(tmp_path, "calibration", model, limit=2)) == 2
    assert (sets.sample.found, sets.sample.classes, sets.sample.labelled, sets.sample.skipped) == (33, 3, True, ())
    assert sets.sample.how == "all 29 images that are not for calibration"
    assert "their order decides" in " ".join(sets.sample.notes)


def test_tenth_files_beyond_the_calibration_are_for_evaluation(tmp_path: Path) -> None:
    class_folders(tmp_path, ["only"], 345)
    sets = load_image_sets(tmp_path, tiny_model(1))
    assert (len(sets.calibration), len(sets.evaluation)) == (32, 313)
    assert "only/330.png" in sets.evaluation.names


def test_a_subset_of_imagenet(tmp_path: Path) -> None:
    for number, name in enumerate(("n01491361", "goldfish", "Toilet_Tissue")):
        for copy in range(4):
            write_image(tmp_path / name / f"{copy}.png", 10 * number + copy)
    sets = load_image_sets(tmp_path, imagenet_model())
    assert sorted(set(sets.evaluation.labels.tolist())) == [1, 3, 999]
    assert sets.sample.classes == 3
    write_image(tmp_path / "n99999999" / "a.png", 99)
    with pytest.raises(ImageError, match="n99999999"):
        load_image_sets(tmp_path, imagenet_model())


def test_deeper_folders_belong_to_the_first_level(tmp_path: Path) -> None:
    class_folders(tmp_path)
    write_image(tmp_path / "bee" / "2024" / "summer" / "z.png", 500)
    sets = load_image_sets(tmp_path, tiny_model(3))
    position = sets.evaluation.names.index("bee/2024/summer/z.png")
    assert sets.evaluation.labels[position] == 1


def test_a_folder_around_the_class_folders_is_looked_into(tmp_path: Path) -> None:
    class_folders(tmp_path / "photos")
    sets = load_image_sets(tmp_path, tiny_model(ANIMALS))
    assert sets.sample.classes == 3
    assert sets.calibration.names[0] == "photos/ant/00.png"


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for number in range(30):
        write_image(tmp_path / f"{number:02d}.png", number)
    sets = load_image_sets(tmp_path, tiny_model(3))
    assert sets.calibration.labels is None
    assert sets.evaluation.labels is None
    assert numbers(sets.calibration.pixels) == [0, 10, 20]
    assert len(sets.evaluation) == 27
    assert (sets.sample.labelled, sets.sample.classes) == (False, 0)
    assert "no labels" in " ".join(sets.sample.notes)


def test_images_beside_class_folders_are_left_out_and_said(tmp_path: Path) -> None:
    class_folders(tmp_path)
    write_image(tmp_path / "cover.png", 999)
    sets = load_image_sets(tmp_path, tiny_model(3))
    assert sets.sample.found == 33
    assert any("1 image(s) beside the sub-folders" in note for note in sets.sample.notes)


@pytest.mark.parametrize("held_out", ["val", "Validation", "test"])
def test_train_calibrates_and_the_other_split_evaluates(tmp_path: Path, held_out: str) -> None:
    class_folders(tmp_path / "train")
    for name in ANIMALS:
        for number in range(5):
            write_image(tmp_path / held_out / name / f"{number}.png", 1000 + 10 * ANIMALS.index(name) + number)
    sets = load_image_sets(tmp_path, tiny_model(ANIMALS))
    assert len(sets.calibration) == 32
    assert all(name.startswith("train/") for name in sets.calibration.names)
    assert len(sets.evaluation) == 15
    assert all(name.startswith(held_out) for name in sets.evaluation.names)
    assert sets.evaluation.labels[:3].tolist() == [0, 1, 2]
    assert any("calibration images are from the split train" in note for note in sets.sample.notes)


def test_validation_comes_before_test_and_is_divided_without_train(tmp_path: Path) -> None:
    class_folders(tmp_path / "val")
    class_folders(tmp_path / "test")
    sets = load_image_sets(tmp_path, tiny_model(ANIMALS))
    names = (*sets.calibration.names, *sets.evaluation.names)
    assert len(names) == 33
    assert all(name.startswith("val/") for name in names)
    assert any("both from the split validation; test is left out" in note for note in sets.sample.notes)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    class_folders(tmp_path, ["train", "test"])
    sets = load_image_sets(tmp_path, tiny_model(["bus", "test", "train"]))
    assert set(sets.evaluation.labels.tolist()) == {1, 2}


def test_hidden_files_are_not_images(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for name in ("ant/._00.png", ".cache/x.png", "__MACOSX/ant/00.png", "ant/.DS_Store", "bee/Thumbs.db"):
        write_image(tmp_path / name, 5)
    assert load_image_sets(tmp_path, tiny_model(3)).sample.found == 33


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_inside_the_folder_only(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    write_image(outside / "x.png", 1)
    folder = class_folders(tmp_path / "photos")
    (folder / "ant" / "out.png").symlink_to(outside / "x.png")
    (folder / "dog").symlink_to(outside)
    (folder / "ant" / "nowhere.png").symlink_to(folder / "missing.png")
    (folder / "ant" / "loop").symlink_to(folder / "ant")
    (folder / "ant" / "self.png").symlink_to(folder / "ant" / "self.png")
    (folder / "bee" / "in.png").symlink_to(folder / "cow" / "05.png")
    before = tree(tmp_path)
    sets = load_image_sets(folder, tiny_model(3))
    assert sets.sample.found == 34
    reasons = dict(sets.sample.skipped)
    assert "leads out" in reasons["ant/out.png"]
    assert "leads out" in reasons["dog"]
    assert set(reasons) == {"ant/out.png", "dog", "ant/nowhere.png", "ant/self.png"}
    assert "bee/in.png" in (*sets.calibration.names, *sets.evaluation.names)
    assert tree(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    class_folders(tmp_path)
    os.mkfifo(tmp_path / "ant" / "pipe.png")
    assert dict(load_image_sets(tmp_path, tiny_model(3)).sample.skipped) == {
        "ant/pipe.png": "it is no file, or a link that leads nowhere"
    }


def test_strange_names_are_written_plainly(tmp_path: Path) -> None:
    class_folders(tmp_path)
    write_image(tmp_path / "ant" / "käfer 🐞.png", 600)
    write_image(tmp_path / "ant" / "line\nbreak.png", 601)
    path = os.fsencode(tmp_path / "ant") + b"/broken\xff.png"
    with open(path, "wb") as file:  # noqa: PTH123 - no Path takes bytes
        file.write(png(602))
    names = load_image_sets(tmp_path, tiny_model(3)).evaluation.names
    assert {"ant/käfer 🐞.png", "ant/line\\nbreak.png", "ant/broken\\udcff.png"} <= set(names)
    "\n".join(names).encode()


def test_mistakes_say_what_to_do(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos")
    with pytest.raises(ImageError, match="give the model"):
        load_images(folder)
    with pytest.raises(ImageError, match="3 sub-folders with images, tiny has 5 classes"):
        load_images(folder, model=tiny_model(5))
    with pytest.raises(ImageError, match="no training split"):
        load_images(folder, "training", tiny_model(3))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImageError, match="holds no images"):
        load_images(empty, model=tiny_model(3))
    write_image(empty / "only" / "a.png", 0)
    with pytest.raises(ImageError, match="none left for evaluation"):
        load_images(empty, "evaluation", tiny_model(1))
    with pytest.raises(ImageError, match="give the folder it is in"):
        load_images(empty / "only" / "a.png", model=tiny_model(1))
    (tmp_path / "notes.docx").write_bytes(b"words")
    with pytest.raises(ImageError, match="unknown kind"):
        load_images(tmp_path / "notes.docx", model=tiny_model(1))
    for source in ("", "   ", "nul\0", "x" * 5000, "hf"):
        with pytest.raises(ImageError, match="unknown images"):
            load_image_sets(source, tiny_model(1))


def test_another_seed_is_another_choice(tmp_path: Path) -> None:
    from mixqvit.images.sampling import Sampling

    class_folders(tmp_path, each=30)
    model = tiny_model(3)
    sets = {seed: load_image_sets(tmp_path, model, Sampling(evaluation=12, seed=seed)) for seed in (0, 1, 1)}
    again = load_image_sets(tmp_path, model, Sampling(evaluation=12, seed=1))
    assert again.evaluation.fingerprint == sets[1].evaluation.fingerprint
    assert set(sets[0].evaluation.names) != set(sets[1].evaluation.names)
    assert set(sets[0].calibration.names) != set(sets[1].calibration.names)
    for one in sets.values():
        assert one.evaluation.labels.bincount().tolist() == [4, 4, 4]
        assert not set(one.calibration.names) & set(one.evaluation.names)
    assert "stratified (4 of each of 3 classes), seed 1" in sets[1].sample.how


def test_a_model_of_one_channel(tmp_path: Path) -> None:
    class_folders(tmp_path)
    assert load_images(tmp_path, "evaluation", tiny_model(3, channels=1)).pixels.shape == (29, 1, 16, 16)
