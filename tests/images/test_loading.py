import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image, ImageOps

from mixqvit.errors import ImageError
from mixqvit.images.loading import load_image_sets, load_image_sets_steps, load_images
from mixqvit.images.sampling import Sampling
from mixqvit.models.loading import load_model
from mixqvit.models.model import Model
from mixqvit.models.preprocessing import Preprocessing
from tests.images.files import ANIMALS, class_folders, encoded, imagenet_model, tiny_model, write_image


def test_progress_counts_images(tmp_path: Path) -> None:
    class_folders(tmp_path)
    steps = list(load_image_sets_steps(tmp_path, tiny_model(3)))
    assert steps[-1].result.sample.found == 33
    assert all(step.result is None for step in steps[:-1])
    said = [step.doing for step in steps]
    assert said[-3:] == ["32 of 33 images", "33 of 33 images", "33 images"]
    assert "1 of 33 images" in said
    assert all(0 <= step.done <= step.total for step in steps)


def test_an_unreadable_image_is_named_and_replaced_by_one_of_its_class(tmp_path: Path) -> None:
    class_folders(tmp_path, each=40)
    model = tiny_model(3)
    before = load_image_sets(tmp_path, model, Sampling(evaluation=12))
    calibrating, evaluating = before.calibration.names[1], before.evaluation.names[4]
    (tmp_path / calibrating).write_bytes((tmp_path / calibrating).read_bytes()[:50])
    (tmp_path / evaluating).write_text("no image")
    after = load_image_sets(tmp_path, model, Sampling(evaluation=12))
    assert [name for name, _ in after.sample.skipped] == [calibrating, evaluating]
    assert [reason[:12] for _, reason in after.sample.skipped] == ["it is damage", "it is damage"]
    assert torch.equal(after.calibration.labels, before.calibration.labels)
    assert torch.equal(after.evaluation.labels, before.evaluation.labels)
    assert after.sample.found == 120
    changed = [old for old, new in zip(before.evaluation.names, after.evaluation.names, strict=True) if old != new]
    assert evaluating in changed
    assert not set(after.calibration.names) & set(after.evaluation.names)
    assert not {calibrating, evaluating} & {*after.calibration.names, *after.evaluation.names}


def test_one_that_cannot_be_replaced_is_left_out(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "bee" / "03.png").write_bytes(b"\x89PNG")
    sets = load_image_sets(tmp_path, tiny_model(3))
    assert len(sets.calibration) + len(sets.evaluation) == 32
    assert [name for name, _ in sets.sample.skipped] == ["bee/03.png"]


def test_too_many_unreadable_images_are_an_error_that_names_three(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for number in range(1, 6):
        (tmp_path / "ant" / f"{number:02d}.png").write_bytes(b"")
    assert len(load_image_sets(tmp_path, tiny_model(3)).sample.skipped) == 5
    (tmp_path / "ant" / "06.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"more than 5 of 33 images.*ant/01\.png: .*ant/02\.png: .*ant/03\.png: "):
        load_image_sets(tmp_path, tiny_model(3))


def test_a_class_of_which_nothing_can_be_read_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path, ["ant", "bee"], each=20)
    for number in range(3):
        write_image(tmp_path / "cow" / f"{number}.png", 500)
        (tmp_path / "cow" / f"{number}.png").write_bytes(b"words")
    notes = load_image_sets(tmp_path, tiny_model(ANIMALS)).sample.notes
    assert "1 class(es) are not measured, as their images cannot be read: cow" in notes
    assert any(note.startswith("3 left out (cow/") and "no image of a kind" in note for note in notes)


def test_a_tenth_may_be_unreadable(tmp_path: Path) -> None:
    class_folders(tmp_path, each=40)
    for number in range(1, 10):
        (tmp_path / "ant" / f"{number:02d}.png").write_bytes(b"")
    assert len(load_image_sets(tmp_path, tiny_model(3)).sample.skipped) == 9


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(bytes([number]))
    with pytest.raises(ImageError, match=r"no image for calibration that can be used: 0\.png"):
        load_image_sets(tmp_path, tiny_model(3))


def test_an_image_never_calibrates_and_evaluates_under_two_names(tmp_path: Path) -> None:
    class_folders(tmp_path)
    original = tmp_path / "ant" / "00.png"
    assert "ant/00.png" in load_images(tmp_path, "calibration", tiny_model(3)).names
    (tmp_path / "bee" / "copy.png").write_bytes(original.read_bytes())
    sets = load_image_sets(tmp_path, tiny_model(3))
    assert "bee/copy.png" not in sets.evaluation.names
    assert "1 image(s) that are also among the calibration images are left out" in sets.sample.notes[-1]
    assert "bee/copy.png" in sets.sample.notes[-1]


def test_a_sample_replaces_copies_of_calibration_images(tmp_path: Path) -> None:
    class_folders(tmp_path, each=40)
    model = tiny_model(3)
    sampling = Sampling(evaluation=12)
    before = load_image_sets(tmp_path, model, sampling)
    (tmp_path / before.evaluation.names[0]).write_bytes((tmp_path / before.calibration.names[0]).read_bytes())
    after = load_image_sets(tmp_path, model, sampling)
    assert len(after.evaluation) == 12
    assert before.evaluation.names[0] not in after.evaluation.names


def test_the_models_own_preprocessing_is_used(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for number in range(20):
        image = Image.fromarray(rng.integers(0, 255, (50, 40, 3), dtype=np.uint8))
        (tmp_path / f"{number:02d}.png").write_bytes(encoded(image))
    plain = tiny_model(3)
    squash = Preprocessing((3, 16, 16), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 1.0, "squash")
    model = Model("tiny", plain.module, squash, plain.class_names)
    images = load_images(tmp_path, "evaluation", model)
    transform = timm.data.create_transform(**dataclasses.asdict(squash), is_training=False)
    for name, pixels in zip(images.names, images.pixels, strict=True):
        with Image.open(tmp_path / name) as image:
            assert torch.equal(pixels, transform(image))
    assert (images.mean, images.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_an_evaluation_of_more_than_the_limit_is_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixqvit.images import drawing

    class_folders(tmp_path)
    monkeypatch.setattr(drawing, "EVALUATION_LIMIT", 9)
    assert load_image_sets(tmp_path, tiny_model(3)).evaluation.labels.bincount().tolist() == [3, 3, 3]
    assert len(load_image_sets(tmp_path, tiny_model(3), Sampling(evaluation=20)).evaluation) == 20


@pytest.fixture(scope="module")
def photographs(shared: Path) -> Path:
    return shared / "real" / "imagenet_sample"


@pytest.fixture(scope="module")
def imagenet_224() -> Model:
    small = imagenet_model()
    preprocessing = Preprocessing((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9)
    return dataclasses.replace(small, preprocessing=preprocessing)


def test_the_photographs_keep_their_split_and_pixels(photographs: Path, imagenet_224: Model) -> None:
    """Figures of the README rest on them: of the sorted list every tenth, the first 32; and all others."""
    files = sorted(photographs.glob("*/*.jpg"), key=lambda path: path.relative_to(photographs).as_posix())
    names = [path.relative_to(photographs).as_posix() for path in files]
    sets = load_image_sets(photographs, imagenet_224)
    assert sets.calibration.names == tuple(names[::10][:32])
    assert sets.evaluation.names == tuple(name for name in names if name not in set(names[::10][:32]))
    assert len(sets.evaluation) == 302
    assert (sets.sample.found, sets.sample.classes, sets.sample.skipped) == (334, 334, ())
    assert (
        sets.evaluation.class_names[sets.evaluation.labels[0]]
        == imagenet_224.class_names[imagenet_224.label_names.index(sets.evaluation.names[0].split("/")[0])]
    )
    transform = timm.data.create_transform(**imagenet_224.preprocessing.timm_config(), is_training=False)
    for images in (sets.calibration, sets.evaluation):
        for position in range(0, len(images), 16):
            with Image.open(photographs / images.names[position]) as image:
                expected = transform(ImageOps.exif_transpose(image).convert("RGB"))
            assert torch.equal(images.pixels[position], expected)


def test_a_sample_of_the_photographs_says_that_it_is_random(photographs: Path, imagenet_224: Model) -> None:
    sets = load_image_sets(photographs, imagenet_224, Sampling(evaluation=20, seed=7))
    assert len(set(sets.evaluation.labels.tolist())) == 20
    assert sets.sample.how == "20 of 302 images that are not for calibration, at random (one image a class), seed 7"


@pytest.mark.slow
def test_deit_tiny_on_the_photographs(shared: Path, photographs: Path) -> None:
    model = load_model("deit_tiny_patch16_224", shared / "real" / "deit_tiny_patch16_224.safetensors")
    evaluation = load_image_sets(photographs, model).evaluation
    with torch.inference_mode():
        decisions = torch.cat([model.module(batch).argmax(1) for batch in evaluation.pixels.split(64)])
    assert 0.81 < (decisions == evaluation.labels).float().mean() < 0.84


def test_copies_of_the_calibration_image_alone_say_so(tmp_path: Path) -> None:
    for number in range(5):
        write_image(tmp_path / "ant" / f"{number}.png", 1)
    with pytest.raises(ImageError, match="all others are copies of the calibration images"):
        load_image_sets(tmp_path, tiny_model(ANIMALS))
