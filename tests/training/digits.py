"""Fewer training digits, for tests that need a training, not its accuracy."""

import pytest

from mixqvit.images.sources import digits

FEW = 160


def few_training_digits(monkeypatch: pytest.MonkeyPatch, count: int = FEW) -> None:
    """Make the digits' training split its first few images."""
    original = digits.load_digits

    def load(split, model):
        images = original(split, model)
        return images.subset(count) if split == "training" else images

    monkeypatch.setattr(digits, "load_digits", load)
