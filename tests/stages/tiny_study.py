"""A study of a tiny seeded model on seeded noise, every stage of which takes a moment."""

from pathlib import Path

import torch

from mixqvit.images.image_sets import ImageSets, Sample
from mixqvit.images.images import Images
from mixqvit.images.training_images import TrainingDigits
from mixqvit.models.model import Model
from mixqvit.models.preprocessing import Preprocessing
from mixqvit.stages.store import Store
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study
from tests.tiny_models import tiny_model

CLASSES = tuple("abcde")
SETTINGS = Settings(calibration_images=4, analysis_images=6)


def tiny_study(folder: Path, architecture: str = "vit", settings: Settings = SETTINGS) -> Study:
    """Return a study of `tiny_model` on 6 calibration, 10 evaluation and 20 training images of noise."""
    module = tiny_model(architecture, torch.float32).requires_grad_(False)
    preprocessing = Preprocessing((1, 16, 16), (0.5,), (0.5,), "bicubic", 1.0, "center")
    model = Model(f"tiny {architecture}", module, preprocessing, CLASSES)
    sample = Sample(16, (), True, len(CLASSES), "All of them.", 0, ())
    sets = ImageSets(_noise("calibration", 6, 1), _noise("evaluation", 10, 2), sample)
    study = Study(model, sets, settings, Store(folder))
    training = _noise("training", 20, 3)
    study.memory["training images", None] = TrainingDigits(
        "noise", "20 images", training.fingerprint, training.names, training.labels, (), training
    )
    return study


def _noise(split: str, count: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 1, 16, 16, generator=generator)
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
    names = tuple(f"{split} {number}" for number in range(count))
    return Images("noise", split, pixels, labels, CLASSES, names, (0.5,), (0.5,))
