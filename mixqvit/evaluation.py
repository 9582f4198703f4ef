"""Measuring a model: top-1 accuracy with its interval, agreement with full precision, KL divergence."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from mixqvit.errors import ImageError

__all__ = ["Evaluation", "evaluate", "evaluate_steps", "kl_divergence", "wilson_interval"]

BATCH_SIZE = 64
_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Evaluation:
    """What was measured on the first `images` evaluation images.

    Attributes:
        images: Number of images so far.
        total: Number of images when finished.
        correct: Images whose top-1 class is the label; None without labels.
        agreeing: Images whose top-1 class is the full-precision model's.
        kl: KL(full precision ‖ this model) of the class probabilities, mean per image, in nats.
    """

    images: int
    total: int
    correct: int | None
    agreeing: int
    kl: float

    @property
    def top1(self) -> float | None:
        """Fraction of images classified as labelled; None without labels."""
        return None if self.correct is None else self.correct / self.images

    @property
    def agreement(self) -> float:
        """Fraction of images with the same top-1 class as in full precision."""
        return self.agreeing / self.images

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `top1` (Wilson)."""
        return None if self.correct is None else wilson_interval(self.correct, self.images)

    @property
    def agreement_interval(self) -> tuple[float, float]:
        """95 % interval of `agreement` (Wilson)."""
        return wilson_interval(self.agreeing, self.images)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % score interval of a fraction (Wilson 1927, JASA 22:209)."""
    fraction, z2 = successes / trials, _Z_95**2
    centre = (fraction + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 * sqrt(fraction * (1 - fraction) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Return KL(reference ‖ logits) of the class probabilities per image, in nats.

    Args:
        reference: Full-precision logits `[B, classes]`.
        logits: Logits of the other model `[B, classes]`.
    """
    expected, actual = log_softmax(reference.double(), dim=1), log_softmax(logits.double(), dim=1)
    return (expected.exp() * (expected - actual)).sum(dim=1).clamp(min=0)


def evaluate_steps(
    predict: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor | None,
    reference: Tensor,
    batch_size: int = BATCH_SIZE,
    finished: Evaluation | None = None,
) -> Iterator[Evaluation]:
    """Run a model over evaluation images batch by batch.

    Args:
        predict: From images `[B, C, H, W]` to logits `[B, classes]`.
        pixels: Evaluation images `[N, C, H, W]`.
        labels: Class per image `[N]`, or None.
        reference: Full-precision logits `[N, classes]`.
        batch_size: Images per batch.
        finished: What is known from an earlier run; its images are not run again.

    Yields:
        What is known after each batch; the last one covers all images.

    Raises:
        ImageError: There are no images.
    """
    if not len(pixels):
        raise ImageError("There are no evaluation images.")
    so_far = finished or Evaluation(0, len(pixels), None if labels is None else 0, 0, 0.0)
    images, correct, agreeing = so_far.images, so_far.correct, so_far.agreeing
    total_kl = so_far.kl * images
    for start in range(images, len(pixels), batch_size):
        batch = slice(start, start + batch_size)
        with torch.no_grad():
            logits = predict(pixels[batch])
        predicted = logits.argmax(dim=1)
        images += len(predicted)
        agreeing += int((predicted == reference[batch].argmax(dim=1)).sum())
        total_kl += float(kl_divergence(reference[batch], logits).sum())
        if correct is not None:
            correct += int((predicted == labels[batch]).sum())
        yield Evaluation(images, len(pixels), correct, agreeing, total_kl / images)


def evaluate(
    predict: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor | None, reference: Tensor
) -> Evaluation:
    """Return the finished evaluation; arguments and errors as in `evaluate_steps`."""
    *_, finished = evaluate_steps(predict, pixels, labels, reference)
    return finished
