import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mixqvit.errors import ImageError
from mixqvit.images.loading import load_image_sets, load_images
from mixqvit.images.sampling import Sampling
from mixqvit.models.model import Model
from tests.images.files import tiny_model

SPLITS = {"calibration": 128, "evaluation": 500, "training": 1169}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(10, channels=1, size=32)


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


def test_digit_sets_are_the_splits(model: Model) -> None:
    sets = load_image_sets("digits", model)
    assert sets.calibration.fingerprint == load_images("digits", "calibration").fingerprint
    assert sets.evaluation.fingerprint == load_images("digits", "evaluation").fingerprint
    assert sets.sample.how == "all 500 evaluation images of the digits"
    assert (sets.sample.found, sets.sample.classes, sets.sample.labelled) == (628, 10, True)


def test_fewer_digits_are_the_first_or_drawn_by_seed(model: Model) -> None:
    first = load_image_sets("digits", model, Sampling(evaluation=35)).evaluation
    assert first.fingerprint == load_images("digits", "evaluation", limit=35).fingerprint
    drawn = load_image_sets("digits", model, Sampling(evaluation=35, seed=3))
    assert drawn.evaluation.fingerprint != first.fingerprint
    assert sorted(drawn.evaluation.labels.bincount().tolist()) == [3] * 5 + [4] * 5
    assert set(drawn.evaluation.names) <= set(load_images("digits", "evaluation").names)
    assert "stratified (3 to 4 of each of 10 classes), seed 3" in drawn.sample.how
    position = load_images("digits", "evaluation").names.index(drawn.evaluation.names[0])
    assert torch.equal(drawn.evaluation.pixels[0], load_images("digits", "evaluation").pixels[position])
