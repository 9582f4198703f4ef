import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch

from mixqvit.errors import ImageError
from mixqvit.images import files, training_choice
from mixqvit.images.augmentation import augment
from mixqvit.images.decoding import upright
from mixqvit.images.loading import load_image_sets, load_images
from mixqvit.images.random_views import CROP_AREA, FLIP_PROBABILITY, JITTER, random_number, random_view
from mixqvit.images.sampling import Sampling
from mixqvit.images.training_images import TrainingImages
from mixqvit.images.training_sources import load_training_images, load_training_images_steps
from mixqvit.models.model import Model
from mixqvit.models.preprocessing import Preprocessing
from tests.images.archive_files import KINDS, write_archive
from tests.images.files import ANIMALS, class_files, class_folders, encoded, tiny_model, write_image
from tests.images.test_hub import Hub, hub  # noqa: F401
from tests.images.test_parquet import table, write
from tests.images.training_files import epoch_of, noise_folder, picture_of, same


def trained_names(images: TrainingImages) -> list[str]:
    return sorted(images.names[position] for batch in epoch_of(images) for position in batch.positions)


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> TrainingImages:
    return load_training_images(noise_folder(tmp_path_factory.mktemp("noise")), tiny_model(ANIMALS))


@pytest.fixture(scope="module")
def digits() -> TrainingImages:
    return load_training_images("digits", tiny_model(10, channels=1, size=32))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("size", [(40, 30), (300, 20), (20, 300), (1, 1), (3, 1)])
def test_a_view_is_timms_own_bit_for_bit(channels: int, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing((channels, 24, 16), (0.5,) * channels, (0.5,) * channels, "bilinear")
    timms = timm.data.create_transform(
        (channels, 24, 16),
        is_training=True,
        scale=CROP_AREA,
        hflip=FLIP_PROBABILITY,
        color_jitter=JITTER,
        interpolation="bilinear",
        normalize=False,
    )
    pixels = np.random.default_rng(1).integers(0, 255, (*size, 3), dtype=np.uint8)
    picture = upright(encoded(picture_of(pixels)), "L" if channels == 1 else "RGB")
    view = random_view(preprocessing)
    views = []
    with torch.random.fork_rng(devices=[]):
        kept = random.getstate()
        for seed in range(20):
            random.seed(seed)
            torch.manual_seed(seed)
            expected = timms(picture)
            views.append(view(picture, seed))
            assert torch.equal(views[-1], expected)
        random.setstate(kept)
    assert views[0].shape == (channels, 24, 16)
    assert len({bytes(one.numpy()) for one in views}) > 10


@pytest.mark.parametrize("kind", ["noises", "digits"])
def test_an_epoch_is_every_image_once_in_an_order_of_its_own(kind: str, request: pytest.FixtureRequest) -> None:
    images = request.getfixturevalue(kind)
    first = epoch_of(images, batch=32)
    order = [position for batch in first for position in batch.positions]
    assert sorted(order) == list(range(len(images)))
    assert [batch.images for batch in first[:-1]] == [32] * (len(first) - 1)
    assert first[-1].images == len(images) % 32 == len(first[-1].pixels)
    assert same(first, epoch_of(images, batch=32))
    others = [epoch_of(images, epoch=1, batch=32), epoch_of(images, seed=1, batch=32)]
    for other in others:
        assert [position for batch in other for position in batch.positions] != order
    views = [
        {p: x for b in batches for p, x in zip(b.positions, b.pixels, strict=True)} for batches in (first, *others)
    ]
    for position in (0, 5, 30):
        assert not torch.equal(views[0][position], views[1][position])
        assert not torch.equal(views[0][position], views[2][position])
    for batch in first:
        assert torch.equal(batch.labels, images.labels[list(batch.positions)])
        assert batch.pixels.dtype == torch.float32


@pytest.mark.parametrize("kind", ["noises", "digits"])
def test_global_generators_are_left_as_they_were(kind: str, request: pytest.FixtureRequest) -> None:
    images = request.getfixturevalue(kind)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    epoch_of(images)
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert random.getstate() == expected[1]
    assert np.random.get_state()[1].tolist() == expected[2]  # noqa: NPY002


@pytest.mark.parametrize("kind", ["noises", "digits"])
@pytest.mark.parametrize(("batch", "world"), [(8, 2), (8, 3), (33, 2), (3, 5)])
def test_shards_are_slices(kind: str, batch: int, world: int, request: pytest.FixtureRequest) -> None:
    images = request.getfixturevalue(kind)
    whole = epoch_of(images, batch=batch)
    shards = [list(images.batches(0, 0, batch, (rank, world))) for rank in range(world)]
    for place, expected in enumerate(whole):
        parts = [shard[place] for shard in shards]
        assert sum((part.positions for part in parts), ()) == expected.positions
        assert torch.equal(torch.cat([part.pixels for part in parts]), expected.pixels)
        assert torch.equal(torch.cat([part.labels for part in parts]), expected.labels)
        assert {part.images for part in parts} == {expected.images}
        counts = [len(part.pixels) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_the_digits_are_their_training_images_augmented(digits: TrainingImages) -> None:
    expected = load_images(split="training")
    assert (digits.names, len(digits), digits.labelled) == (expected.names, 1169, True)
    assert digits.how.startswith("all 1,169 training digits, turned, ")
    batch = next(digits.batches(4, 2, 16))
    shown = expected.display().permute(0, 3, 1, 2)[list(batch.positions)]
    changed = augment(shown, torch.Generator().manual_seed(random_number("digits", 4, 2, 0)))
    assert torch.equal(batch.pixels, (changed - expected.mean[0]) / expected.std[0])
    with pytest.raises(ImageError, match="do not fit"):
        load_training_images("digits", tiny_model(3))


def test_no_image_calibrates_or_evaluates_and_none_is_a_copy(tmp_path: Path) -> None:
    model = tiny_model(ANIMALS)
    class_folders(tmp_path, each=40)
    before = load_image_sets(tmp_path, model, Sampling(evaluation=30))
    for split, name in ((before.calibration, "ant/renamed 1.png"), (before.evaluation, "cow/renamed 2.png")):
        (tmp_path / name).write_bytes((tmp_path / split.names[0]).read_bytes())
    images = load_training_images(tmp_path, model, before)
    used = {*before.calibration.names, *before.evaluation.names}
    assert len(images) == 120 - len(used)
    assert not set(images.names) & used
    assert not {name for name in images.names if "renamed" in name}
    assert images.how.startswith(
        f"{len(images)} of the 122 images of {tmp_path}, without 2 that are copies of images that calibrate or "
        f"evaluate and {len(before.calibration)} that calibrate and 30 that evaluate; each time a random crop of 35 to "
    )
    assert len(load_training_images(tmp_path, model)) == 122
    relative = os.path.relpath(tmp_path)
    assert load_training_images(relative, model, before).names == images.names


def test_copies_are_found_in_another_source(tmp_path: Path) -> None:
    model = tiny_model(ANIMALS)
    study = class_folders(tmp_path / "study")
    sets = load_image_sets(study, model, Sampling(evaluation=10))
    other = class_folders(tmp_path / "other", each=20)  # other names, and those of the study with the same pixels
    for number in range(20):
        (other / "ant" / f"{number:02d}.png").rename(other / "ant" / f"new {number}.png")
    held = {(study / name).read_bytes() for name in (*sets.calibration.names, *sets.evaluation.names)}
    expected = [
        path.relative_to(other).as_posix() for path in sorted(other.rglob("*.png")) if path.read_bytes() not in held
    ]
    images = load_training_images(other, model, sets)
    assert trained_names(images) == sorted(expected)
    assert len(expected) == 60 - len(held)
    digits = load_image_sets("digits", tiny_model(10, channels=1, size=32))
    assert len(load_training_images(other, model, digits)) == 60, "digits have no files to be copies of"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_where_the_study_or_the_call_says_so(tmp_path: Path) -> None:
    model = tiny_model(ANIMALS)
    for name in ("study", "other"):
        class_folders(tmp_path / f"elsewhere {name}")
        (tmp_path / name).mkdir()
        for animal in ANIMALS:
            (tmp_path / name / animal).symlink_to(tmp_path / f"elsewhere {name}" / animal)
    sets = load_image_sets(tmp_path / "study", model, Sampling(evaluation=10, follow_links=True))
    own = load_training_images(tmp_path / "study", model, sets)
    assert len(own) == 33 - 10 - len(sets.calibration)
    assert trained_names(own) == sorted(own.names), "worker processes follow them too"
    with pytest.raises(ImageError, match="link that leads out"):
        load_training_images(tmp_path / "other", model, sets)
    assert len(load_training_images(tmp_path / "other", model, sets, follow_links=True)) == len(own)


def test_the_order_of_labels_is_the_studys(tmp_path: Path) -> None:
    model = tiny_model(3)
    for name in ("study", "other"):
        rows = "".join(f"{name}{file},{1 + ANIMALS.index(file[:3])}\n" for file in class_files())
        (tmp_path / f"{name}.csv").write_text("file,label\n" + rows)
    for file, content in class_files().items():
        write_image(tmp_path / f"study{file}", 0)
        write_image(tmp_path / f"other{file}", 0)
        (tmp_path / f"study{file}").write_bytes(content)
        (tmp_path / f"other{file}").write_bytes(content + b"other")
    sets = load_image_sets(tmp_path / "study.csv", model, Sampling(evaluation=5, label_order="number"))
    images = load_training_images(tmp_path / "other.csv", model, sets)
    assert [ANIMALS[label] for label in images.labels] == [name[5:8] for name in images.names]


def test_of_splits_it_is_train(tmp_path: Path) -> None:
    model = tiny_model(ANIMALS)
    class_folders(tmp_path / "train", each=60)
    class_folders(tmp_path / "val", each=70)  # every image of train is there, and ten more
    sets = load_image_sets(tmp_path, model, Sampling(evaluation=3))
    assert len(load_training_images(tmp_path, model)) == 180
    images = load_training_images(tmp_path, model, sets)
    assert all(name.startswith("train/") for name in images.names)
    assert not set(images.names) & set(sets.calibration.names)
    held = {(tmp_path / name).read_bytes() for name in (*sets.calibration.names, *sets.evaluation.names)}
    assert len(images) == 180 - len([path for path in (tmp_path / "train").rglob("*.png") if path.read_bytes() in held])
    assert f"of the 180 images of the split train of {tmp_path}" in images.how


def test_nothing_left_says_what_to_do(tmp_path: Path) -> None:
    model = tiny_model(ANIMALS)
    sets = load_image_sets(class_folders(tmp_path), model)
    (tmp_path / "ant" / "copy.png").write_bytes((tmp_path / sets.evaluation.names[0]).read_bytes())
    with pytest.raises(
        ImageError,
        match=r"has 34 images, 1 that are copies .* and 4 that calibrate and 29 that evaluate: none is left to train on"
        r"\. Evaluate on fewer \(--evaluation-images\), or train on others \(--training-images SOURCE\)",
    ):
        load_training_images(tmp_path, model, sets)


def test_the_studys_images_must_still_be_there(tmp_path: Path) -> None:
    model = tiny_model(ANIMALS)
    sets = load_image_sets(class_folders(tmp_path), model, Sampling(evaluation=5))
    (tmp_path / sets.evaluation.names[0]).rename(tmp_path / "ant" / "elsewhere.png")
    with pytest.raises(ImageError, match=r"1 of the 9 images .* cannot be read any longer .*; open the study again"):
        load_training_images(tmp_path, model, sets)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [2**31, 0])
def test_archives(kind: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(ANIMALS)
    folder = class_folders(tmp_path / "folder")
    expected = load_training_images(folder, model, load_image_sets(folder, model, Sampling(evaluation=5)))
    path = write_archive(tmp_path, {**class_files(), "dog.png": b""}, kind)
    sets = load_image_sets(path, model, Sampling(evaluation=5))
    monkeypatch.setattr(files, "MAX_KEPT_BYTES", most)
    if most == 0 and kind not in ("zip", "tar"):
        with pytest.raises(ImageError, match="can be read only from front to back"):
            load_training_images(path, model, sets)
        return
    images = load_training_images(path, model, sets)
    assert images.files.kept == (most > 0 and kind != "tar")
    assert same(epoch_of(images), epoch_of(expected))
    assert trained_names(images) == trained_names(expected)


@pytest.mark.parametrize("most", [2**31, 0])
def test_parquet(tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(ANIMALS)
    monkeypatch.setattr(files, "MAX_KEPT_BYTES", most)
    path = write(tmp_path / "animals.parquet", table(80), row_group_size=15)
    sets = load_image_sets(path, model, Sampling(evaluation=20))
    images = load_training_images(path, model, sets)
    assert images.files.kept == (most > 0)
    used = {*sets.calibration.names, *sets.evaluation.names}
    assert trained_names(images) == [name for name in (f"row {row:08d}" for row in range(80)) if name not in used]
    for batch in epoch_of(images):
        rows = [int(images.names[position].split()[1]) for position in batch.positions]
        assert batch.labels.tolist() == [row % 3 for row in rows]
    write(tmp_path / "copies.parquet", table(100))
    assert len(load_training_images(tmp_path / "copies.parquet", model, sets)) == 100 - len(used)


def test_a_data_set_of_the_hub(hub: Hub) -> None:  # noqa: F811
    main = hub.revisions["main"]
    write(main / "data" / "train-00000-of-00001.parquet", table(50))
    write(main / "data" / "validation-00000-of-00001.parquet", table(12, 48))  # two of them are in train as well
    sets = load_image_sets("hf:zoo/animals", tiny_model(ANIMALS))
    images = load_training_images("hf:zoo/animals", tiny_model(ANIMALS), sets)
    expected = {f"train {row:08d}" for row in range(48)} - set(sets.calibration.names)
    assert trained_names(images) == sorted(expected)


def test_a_table(tmp_path: Path) -> None:
    class_folders(tmp_path)
    rows = [f"{name},{name.split('/')[0]}" for name in class_files()]
    path = tmp_path / "images.csv"
    path.write_text("\n".join(["file,label", *rows, "ant/gone.png,ant", "ant/00.png/inside.png,ant"]))
    images = load_training_images(path, tiny_model(ANIMALS))
    assert trained_names(images) == sorted(class_files())
    assert "33 of the 35 images" in images.how
    assert "without 2 that cannot be read (it cannot be read (Not a directory), it does not exist)" in images.how
    for batch in epoch_of(images):
        assert [ANIMALS[label] for label in batch.labels] == [
            images.names[position].split("/")[0] for position in batch.positions
        ]


def test_images_without_labels(tmp_path: Path) -> None:
    for number in range(9):
        write_image(tmp_path / f"{number}.png", number)
    images = load_training_images(tmp_path, tiny_model(3))
    assert (images.labelled, images.labels) == (False, None)
    assert [batch.labels for batch in epoch_of(images)] == [None, None]


def test_pixels_are_normalized_and_channels_are_the_models(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture_of(np.full((20, 20, 3), 255, np.uint8))))
    model = tiny_model(3, channels=1)
    model = dataclasses.replace(model, preprocessing=Preprocessing((1, 16, 16), (0.25,), (0.5,)))
    batch = next(load_training_images(tmp_path, model).batches(0, 0, 64))
    assert batch.pixels.shape == (3, 1, 16, 16)
    assert batch.pixels.max() == 1.5, "white is (1 - mean) / std"
    assert batch.pixels.min() >= (0.7**2 - 0.25) / 0.5 - 0.02, "darkened by brightness and contrast at most"


def damaged(folder: Path, count: int, model: Model) -> TrainingImages:
    images = load_training_images(noise_folder(folder, 60), model)
    for name in images.names[:count]:
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    return images


def test_damaged_images_are_left_out_and_named(tmp_path: Path) -> None:
    images = damaged(tmp_path, 6, tiny_model(ANIMALS))
    batches = epoch_of(images)
    assert sorted(name for batch in batches for name, _ in batch.left_out) == sorted(images.names[:6])
    assert sorted(position for batch in batches for position in batch.positions) == list(range(6, 60))
    assert all("damaged" in reason for batch in batches for _, reason in batch.left_out)
    assert [batch.images for batch in batches] == [8] * 7 + [4]
    assert all(len(batch.positions) == len(batch.pixels) == len(batch.labels) for batch in batches)
    assert same(batches, epoch_of(images))


def test_too_many_damaged_images_are_an_error_that_names_three(tmp_path: Path) -> None:
    images = damaged(tmp_path, 7, tiny_model(ANIMALS))
    with pytest.raises(ImageError, match=r"more than 6 of the 60 training images.*(png: it is damaged.*){3}"):
        epoch_of(images)


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="more than 2 of the 3 training images"):
        epoch_of(load_training_images(tmp_path, tiny_model(3)))


def changed_time(folder: Path, model: Model) -> Model:
    os.utime(folder / "ant" / "00.png", (1, 1))
    return model


def changed_preprocessing(folder: Path, model: Model) -> Model:
    return dataclasses.replace(model, preprocessing=Preprocessing((3, 16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear"))


def changed_name(folder: Path, model: Model) -> Model:
    (folder / "ant" / "00.png").rename(folder / "ant" / "000.png")
    return model


def changed_labels(folder: Path, model: Model) -> Model:
    return dataclasses.replace(model, class_names=("bee", "ant", "cow"), label_names=("bee", "ant", "cow"))


@pytest.mark.parametrize("change", [changed_time, changed_preprocessing, changed_name, changed_labels])
def test_the_fingerprint(change: Callable[[Path, Model], Model], tmp_path: Path) -> None:
    model = tiny_model(ANIMALS)
    class_folders(tmp_path)
    before = load_training_images(tmp_path, model).fingerprint
    assert load_training_images(tmp_path, model).fingerprint == before
    assert load_training_images(tmp_path, change(tmp_path, model)).fingerprint != before


@pytest.mark.parametrize("arguments", [(0, 0, 0), (0, -1, 8), (-1, 0, 8), (0, 0, 8, (2, 2)), (0, 0, 8, (-1, 2))])
def test_batches_that_cannot_be(arguments: tuple[object, ...], digits: TrainingImages) -> None:
    with pytest.raises(ImageError, match="there are no training batches of"):
        digits.batches(*arguments)


def test_progress_ends_with_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_choice, "_REPORT_EVERY", 10)
    model = tiny_model(ANIMALS)
    sets = load_image_sets(class_folders(tmp_path), model, Sampling(evaluation=10))
    steps = list(load_training_images_steps(tmp_path, model, sets))
    said = [step.doing for step in steps]
    assert said[0] == "comparing: 10 of 14 images of the study"
    assert "looking at 30 of 33 images" in said
    assert "comparing 10 of 19 images with the study's" in said
    assert said[-1] == "19 training images"
    assert [step.result is None for step in steps] == [True] * (len(steps) - 1) + [False]
