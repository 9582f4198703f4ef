from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mixqvit.errors import ModelError
from mixqvit.images.augmentation import augment
from mixqvit.images.images import Images
from mixqvit.images.loading import load_images
from mixqvit.models.embedded import load_embedded
from mixqvit.training.embedded import EpochResult, Hyperparameters, build_seeded, top1, train, train_embedded

TINY = {"img_size": 32, "patch_size": 8, "in_chans": 1, "num_classes": 10, "embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def few() -> Images:
    return load_images("digits", "training", limit=96)


def run(module: nn.Module, images: Images, hyperparameters: Hyperparameters, teacher: nn.Module | None = None):
    """Returns what training yielded and what it returned."""
    training, results = train(module, images, hyperparameters, teacher), []
    while True:
        try:
            results.append(next(training))
        except StopIteration as stop:
            return results, stop.value


@pytest.mark.slow
def test_train_embedded_learns_and_writes_a_model_that_loads(tmp_path: Path) -> None:
    results = list(train_embedded("digits_swin", tmp_path, epochs=3))
    assert [result.epoch for result in results] == [1, 2, 3]
    assert all(isinstance(result, EpochResult) and result.epochs == 3 for result in results)
    assert results[2].loss < results[1].loss < results[0].loss
    assert results[2].train_accuracy > results[0].train_accuracy
    assert {path.name for path in tmp_path.iterdir()} == {"digits_swin.json", "digits_swin.safetensors"}
    model = load_embedded("digits_swin", tmp_path)
    assert model.card["training"]["hyperparameters"]["epochs"] == 3
    measured = top1(model.module, load_images("digits", "evaluation"))
    assert model.card["accuracy"]["top1"] == pytest.approx(measured, abs=1e-4)
    assert 0.1 < measured < 0.98, "after three epochs it has begun to learn, no more"


def test_train_embedded_writes_nothing_before_the_end(tmp_path: Path) -> None:
    training = train_embedded("digits_swin", tmp_path, epochs=2)
    next(training)
    training.close()
    assert list(tmp_path.iterdir()) == []


def test_train_embedded_refuses_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'digits_cnn' is no embedded model"):
        next(train_embedded("digits_cnn", tmp_path))
    with pytest.raises(ModelError, match=r"learns from digits_vit.*train-embedded --model digits_vit"):
        next(train_embedded("digits_deit", tmp_path))
    with pytest.raises(ModelError, match="at least 1 epoch"):
        next(train_embedded("digits_vit", tmp_path, epochs=0))


def test_training_is_fixed_by_the_seed_alone(few: Images) -> None:
    architecture = {"class": "VisionTransformer", "arguments": TINY}
    states = []
    for seed, disturbance in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        _, trained = run(build_seeded(architecture, seed), few, Hyperparameters(epochs=1, seed=seed))
        assert torch.equal(torch.get_rng_state(), before), "torch's global generator is not touched"
        states.append(trained.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])


def test_training_keeps_the_averaged_weights(few: Images) -> None:
    module = VisionTransformer(**TINY)
    _, averaged = run(module, few, Hyperparameters(epochs=2, average_decay=0.5))
    assert not averaged.training
    assert not torch.equal(averaged.head.weight, module.head.weight)
    plain = VisionTransformer(**TINY)
    _, last = run(plain, few, Hyperparameters(epochs=2, average_decay=0.0))
    assert torch.equal(last.head.weight, plain.head.weight), "without memory the average is the last step"


class AlwaysThree(nn.Module):
    """A teacher that takes every image for a three."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.eye(10)[3].expand(len(pixels), -1)


def test_the_distillation_head_follows_the_teacher_and_the_other_the_labels(few: Images) -> None:
    module = build_seeded({"class": "VisionTransformerDistilled", "arguments": TINY}, seed=1)
    _, averaged = run(module, few, Hyperparameters(epochs=50, average_decay=0.9, learning_rate=3e-3), AlwaysThree())
    with torch.inference_mode():
        tokens = averaged.forward_features(few.pixels)
        labels, distilled = averaged.head(tokens[:, 0]).argmax(1), averaged.head_dist(tokens[:, 1]).argmax(1)
        outputs = averaged(few.pixels)
    assert (distilled == 3).all()
    assert (labels == few.labels).float().mean() > 0.6, "although the teacher knows nothing"
    assert (labels == 3).float().mean() < 0.5
    assert outputs.shape == (96, 10), "one output, the mean of both heads"


def test_augment_keeps_the_range_and_repeats_with_its_generator(few: Images) -> None:
    shown = few.display().permute(0, 3, 1, 2)
    first, again = (augment(shown, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == shown.shape
    assert first.min() >= 0
    assert first.max() <= 1
    changes = (first - shown).abs().mean(dim=(1, 2, 3))
    assert (changes > 0.02).all(), "every image changes"
    correlations = torch.stack(
        [torch.corrcoef(torch.stack([a.ravel(), b.ravel()]))[0, 1] for a, b in zip(first, shown, strict=True)]
    )
    assert correlations.median() > 0.5, "and stays the digit it is"
