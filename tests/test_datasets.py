import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from mixqvit.datasets import load_images
from mixqvit.errors import ImageError
from mixqvit.zoo import Model, load_model

SPLITS = {"calibration": 128, "evaluation": 500, "training": 1169}


def tiny_model(classes: int, channels: int = 3) -> Model:
    """A model whose preprocessing is known: input 16x16, mean and std 0.5."""
    from timm.models.vision_transformer import VisionTransformer

    module = VisionTransformer(
        img_size=16, patch_size=8, in_chans=channels, num_classes=classes, embed_dim=8, depth=1, num_heads=1
    ).eval()
    names = tuple(f"class {index}" for index in range(classes))
    return Model("tiny", module, (channels, 16, 16), (0.5,) * channels, (0.5,) * channels, names)


def write_image(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path)


@pytest.fixture
def three_classes(tmp_path: Path) -> Path:
    """Three sub-folders of eleven grey images, their brightness telling class and number."""
    for label, name in enumerate(("ant", "bee", "cow")):
        for number in range(11):
            write_image(tmp_path / name / f"{number:02d}.png", (80 * label + 5 * number,) * 3)
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.mark.parametrize(("split", "size"), SPLITS.items())
def test_digits_have_the_stated_shape_and_are_balanced(split: str, size: int) -> None:
    images = load_images("digits", split)
    assert images.pixels.shape == (size, 1, 32, 32)
    assert images.pixels.dtype == torch.float32
    assert images.labels.dtype == torch.int64
    assert images.class_names == tuple("0123456789")
    counts = images.labels.bincount(minlength=10).float()
    everything = torch.from_numpy(load_digits().target).bincount().float()
    assert (counts / size - everything / everything.sum()).abs().max() < 0.01
    assert len(set(images.labels[:10].tolist())) >= 8, "the first few images must mix the classes"


def test_digits_splits_never_overlap_and_are_all_there_is() -> None:
    names = [name for split in SPLITS for name in load_images("digits", split).names]
    assert len(names) == len(set(names)) == 1797


def test_digits_splits_are_the_fixed_ones() -> None:
    names = "\n".join(f"{split} {name}" for split in SPLITS for name in load_images("digits", split).names)
    assert (
        hashlib.sha256(names.encode()).hexdigest() == "39fb53415bf21fbabb98d4504917fe961e00295f26575ee8b8951a9bb8ca1623"
    )


def test_digits_labels_and_pixels_belong_to_the_named_digit() -> None:
    digits = load_digits()
    images = load_images("digits", "calibration")
    shown = images.display()
    assert shown.shape == (128, 32, 32, 1)
    assert shown.min() >= 0
    assert shown.max() <= 1
    for position, name in enumerate(images.names):
        index = int(name.removeprefix("digit "))
        assert images.labels[position] == digits.target[index]
        patches = shown[position, :, :, 0].reshape(8, 4, 8, 4).mean(dim=(1, 3)).numpy()
        assert np.corrcoef(patches.ravel(), digits.images[index].ravel())[0, 1] > 0.97, "a patch is one original pixel"


def test_digits_normalization_is_that_of_the_training_images() -> None:
    pixels = load_images("digits", "training").pixels
    assert pixels.mean().abs() < 0.01
    assert (pixels.std() - 1).abs() < 0.01


def test_limit_subset_and_fingerprint() -> None:
    images = load_images("digits", "evaluation")
    few = load_images("digits", "evaluation", limit=7)
    assert few.names == images.names[:7] == images.subset(7).names
    assert torch.equal(few.pixels, images.subset(7).pixels)
    assert few.fingerprint == images.subset(7).fingerprint != images.fingerprint
    assert images.subset(10_000) is images
    relabelled = replace(few, labels=few.labels.flip(0))
    unlabelled = replace(few, labels=None)
    assert len({few.fingerprint, relabelled.fingerprint, unlabelled.fingerprint}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "unknown split 'validation'"),
        ({"source": "letters"}, "unknown images 'letters'"),
        ({"limit": 0}, "at least one image"),
    ],
)
def test_wrong_requests_say_so(arguments: dict, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_images(**arguments)


def test_digits_refuse_a_model_they_do_not_fit() -> None:
    with pytest.raises(ImageError, match="do not fit tiny"):
        load_images("digits", model=tiny_model(3))


def test_folder_splits_and_labels(three_classes: Path) -> None:
    model = tiny_model(3)
    calibration = load_images(three_classes, "calibration", model)
    evaluation = load_images(str(three_classes), "evaluation", model)
    assert calibration.names == ("ant/00.png", "bee/09.png", "cow/08.png", "ant/10.png")
    assert not set(calibration.names) & set(evaluation.names)
    assert len(calibration) + len(evaluation) == 33
    assert evaluation.names[:4] == ("ant/01.png", "bee/00.png", "cow/00.png", "ant/02.png")
    assert evaluation.labels[:4].tolist() == [0, 1, 2, 0]
    assert evaluation.pixels.shape == (29, 3, 16, 16)
    brightness = torch.tensor([80 * "abc".index(name[0]) + 5 * int(name[4:6]) for name in evaluation.names]) / 255
    torch.testing.assert_close(evaluation.pixels[:, 0, 8, 8], (brightness - 0.5) / 0.5, atol=1e-6, rtol=0)
    torch.testing.assert_close(evaluation.display()[:, 8, 8, 2], brightness, atol=1e-6, rtol=0)


def test_folder_calibration_never_reaches_into_evaluation(tmp_path: Path) -> None:
    for number in range(345):
        write_image(tmp_path / "only" / f"{number:03d}.png", (number % 256,) * 3)
    model = tiny_model(1)
    calibration = load_images(tmp_path, "calibration", model, limit=100)
    evaluation = load_images(tmp_path, "evaluation", model)
    assert (len(calibration), len(evaluation)) == (32, 313)
    assert "only/330.png" in evaluation.names, "a tenth file beyond the first 32 is for evaluation"


def test_folder_of_wordnet_ids_gets_imagenet_indices(tmp_path: Path) -> None:
    write_image(tmp_path / "n01491361" / "a.png", (1, 2, 3))
    write_image(tmp_path / "n01440764" / "a.png", (1, 2, 3))
    write_image(tmp_path / "n15075141" / "a.png", (1, 2, 3))
    images = load_images(tmp_path, "evaluation", tiny_model(1000))
    assert images.labels.tolist() == [3, 999]
    write_image(tmp_path / "n99999999" / "a.png", (1, 2, 3))
    with pytest.raises(ImageError, match="n99999999"):
        load_images(tmp_path, "evaluation", tiny_model(1000))


def test_folder_images_are_turned_upright(tmp_path: Path) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned, to be shown turned back by 90 degrees clockwise
    (tmp_path / "only").mkdir()
    upright.save(tmp_path / "only" / "0.png")
    upright.save(tmp_path / "only" / "1.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "only" / "2.png", exif=exif)
    images = load_images(tmp_path, "evaluation", tiny_model(1))
    torch.testing.assert_close(images.pixels[1], images.pixels[0])


def test_folder_for_a_model_of_one_channel(three_classes: Path) -> None:
    assert load_images(three_classes, "evaluation", tiny_model(3, channels=1)).pixels.shape == (29, 1, 16, 16)


def test_folder_mistakes_say_what_to_do(three_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ImageError, match="give the model"):
        load_images(three_classes)
    with pytest.raises(ImageError, match="3 sub-folders with images, tiny has 5 classes"):
        load_images(three_classes, model=tiny_model(5))
    with pytest.raises(ImageError, match="no training split"):
        load_images(three_classes, "training", tiny_model(3))
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ImageError, match="holds no images"):
        load_images(empty, model=tiny_model(3))
    write_image(empty / "only" / "a.png", (0, 0, 0))
    with pytest.raises(ImageError, match="none left for evaluation"):
        load_images(empty, "evaluation", tiny_model(1))
    (three_classes / "bee" / "03.png").write_bytes((three_classes / "bee" / "03.png").read_bytes()[:40])
    with pytest.raises(ImageError, match=r"bee.03\.png cannot be read"):
        load_images(three_classes, model=tiny_model(3))


@pytest.mark.slow
def test_deit_tiny_on_the_photographs() -> None:
    real = Path(__file__).resolve().parents[2] / "shared" / "real"
    if not real.is_dir():
        pytest.skip("the shared photographs and DeiT-Tiny weights are not beside this checkout")
    model = load_model("deit_tiny_patch16_224", real / "deit_tiny_patch16_224.safetensors")
    calibration = load_images(real / "imagenet_sample", "calibration", model)
    evaluation = load_images(real / "imagenet_sample", "evaluation", model)
    assert (len(calibration), len(evaluation)) == (32, 302)
    with torch.inference_mode():
        decisions = torch.cat([model.module(batch).argmax(1) for batch in evaluation.pixels.split(64)])
    assert 0.81 < (decisions == evaluation.labels).float().mean() < 0.84
