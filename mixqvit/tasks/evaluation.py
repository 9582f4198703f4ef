"""Measuring a model: top-1 accuracy with its interval, agreement with full precision, KL divergence."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, nan, sqrt

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from mixqvit.errors import ImageError
from mixqvit.network.devices import in_parts
from mixqvit.notes import Note

__all__ = [
    "Evaluation",
    "ReferenceAnswers",
    "evaluate",
    "evaluate_steps",
    "extended",
    "kl_divergence",
    "reference_answers",
    "top1",
    "wilson_interval",
]

BATCH_SIZE = 64
"""Images at once, where memory allows."""

_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class ReferenceAnswers:
    """What the full-precision model answers on the evaluation images: it says what measuring beside it can tell.

    Attributes:
        images: Number of evaluation images.
        classes: Outputs of the model.
        choices: Classes that the top-1 class is looked for among.
        labels: Classes that occur among the labels; 0 without labels.
        correct: Images whose top-1 class is the label; None without labels.
        confidence: Probability of the top-1 class among the choices, mean over the images.
    """

    images: int
    classes: int
    choices: int
    labels: int
    correct: int | None
    confidence: float

    @property
    def labels_look_shifted(self) -> bool:
        """Whether top-1 is at chance while the model is sure of itself.

        At chance: the 95 % interval reaches down to guessing among the classes that occur (among all choices where one
        occurs). Sure: confidence is nearer to 1 than to 1 / choices, by ratio, and at least twice the upper end of the
        interval, so that neither an untrained model nor a poor but honest one is meant.
        """
        if self.correct is None or self.choices < 2:
            return False
        low, high = wilson_interval(self.correct, self.images)
        guessing = 1 / (self.labels if self.labels > 1 else self.choices)
        return low <= guessing and self.confidence >= max(self.choices**-0.5, 2 * high)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What to know of every measurement on these images."""
        if not self.labels_look_shifted:
            return ()
        low, high = wilson_interval(self.correct, self.images)
        return (
            Note(
                f"Top-1 in full precision is no better than guessing ({100 * self.correct / self.images:.1f} %, 95 % "
                f"interval {100 * low:.1f} to {100 * high:.1f}) while the model is sure of itself (its top-1 class has "
                f"a probability of {100 * self.confidence:.0f} % on average): the labels look shifted. Check that they "
                "are numbered in the order of the model's classes, from 0.",
                is_warning=True,
            ),
        )


@dataclass(frozen=True)
class Evaluation:
    """What was measured on the first `images` evaluation images.

    Attributes:
        images: Number of images so far.
        total: Number of images when finished.
        correct: Images whose top-1 class is the label; None without labels.
        agreeing: Images whose top-1 class is the full-precision model's.
        kl: KL(full precision ‖ this model) of the class probabilities, mean per image, in nats; always over all
            classes, also where the top-1 class is looked for among some of them. NaN where the model has one class.
        predicted: Top-1 class of every image.
        image_kl: KL of every image.
        reference: What full precision answers on all evaluation images; None where it is not known.
    """

    images: int
    total: int
    correct: int | None
    agreeing: int
    kl: float
    predicted: tuple[int, ...] = field(default=(), repr=False)
    image_kl: tuple[float, ...] = field(default=(), repr=False)
    reference: ReferenceAnswers | None = field(default=None, repr=False)

    @property
    def has_choice(self) -> bool:
        """Whether there is more than one class for the top-1 class, without which any model is always right."""
        return self.reference is None or self.reference.choices > 1

    @property
    def top1(self) -> float | None:
        """Fraction of images classified as labelled; None without labels, NaN without a choice of classes."""
        return None if self.correct is None else self._fraction(self.correct)

    @property
    def agreement(self) -> float:
        """Fraction of images with the same top-1 class as in full precision; NaN without a choice of classes."""
        return self._fraction(self.agreeing)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `top1` (Wilson)."""
        return None if self.correct is None else self._interval(self.correct)

    @property
    def agreement_interval(self) -> tuple[float, float]:
        """95 % interval of `agreement` (Wilson)."""
        return self._interval(self.agreeing)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What to know of this measurement."""
        return () if self.reference is None else self.reference.notes

    def _fraction(self, count: int) -> float:
        return count / self.images if self.has_choice else nan

    def _interval(self, count: int) -> tuple[float, float]:
        return wilson_interval(count, self.images) if self.has_choice else (nan, nan)


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
    # On the CPU: not every device has double precision, and the numbers end there.
    expected, actual = (log_softmax(values.cpu().double(), dim=1) for values in (reference, logits))
    return (expected.exp() * (expected - actual)).sum(dim=1).clamp(min=0)


def top1(logits: Tensor, among: Sequence[int] | None = None) -> list[int]:
    """Return the most probable class of every row of logits `[B, classes]`.

    Args:
        logits: Of all classes.
        among: Classes to choose from; None for all.
    """
    if among is None:
        return logits.argmax(dim=1).tolist()
    classes = torch.tensor(among, device=logits.device)
    return classes[logits[:, classes].argmax(dim=1)].tolist()


def reference_answers(logits: Tensor, labels: Tensor | None, among: Sequence[int] | None = None) -> ReferenceAnswers:
    """Return what full-precision logits `[N, classes]` say of the images.

    Args:
        logits: Of all evaluation images.
        labels: Class per image `[N]`, or None.
        among: Classes that the top-1 class is looked for among; None for all.
    """
    chosen = logits if among is None else logits[:, list(among)]
    truth = None if labels is None else labels.tolist()
    return ReferenceAnswers(
        images=len(logits),
        classes=logits.shape[1],
        choices=chosen.shape[1],
        labels=len(set(truth or ())),
        correct=None if truth is None else _equal(top1(logits, among), truth),
        confidence=float(chosen.cpu().double().softmax(dim=1).amax(dim=1).mean()),
    )


def _equal(first: Sequence[int], second: Sequence[int]) -> int:
    return sum(one == other for one, other in zip(first, second, strict=True))


def evaluate_steps(
    predict: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor | None,
    reference: Tensor,
    batch_size: int = BATCH_SIZE,
    finished: Evaluation | None = None,
    among: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> Iterator[Evaluation]:
    """Run a model over evaluation images batch by batch; where memory runs out, in smaller ones.

    Args:
        predict: From images `[B, C, H, W]` to logits `[B, classes]`.
        pixels: Evaluation images `[N, C, H, W]`.
        labels: Class per image `[N]`, or None.
        reference: Full-precision logits `[N, classes]`.
        batch_size: Images per batch.
        finished: What is known from an earlier run; its images are not run again.
        among: Classes that the top-1 class is looked for among, here and in full precision; None for all. KL stays that
            of all classes.
        device: Where the model runs, for the message when not even one image fits; the CPU by default.

    Yields:
        What is known after each batch; the last one covers all images.

    Raises:
        ImageError: There are no images.
        MixQViTError: Memory does not suffice for a single image.
    """
    if not len(pixels):
        raise ImageError("There are no evaluation images.")
    answers = reference_answers(reference, labels, among)
    so_far = finished or Evaluation(0, len(pixels), None if labels is None else 0, 0, 0.0, reference=answers)
    first = so_far.images

    def run(part: slice) -> tuple[slice, Tensor]:
        batch = slice(first + part.start, first + part.stop)
        with torch.no_grad():
            return batch, predict(pixels[batch])

    place = device or torch.device("cpu")
    for batch, logits in in_parts(run, len(pixels) - first, batch_size, place, "evaluation"):
        so_far = extended(
            so_far,
            top1(logits, among),
            kl_divergence(reference[batch], logits).tolist(),
            top1(reference[batch], among),
            None if labels is None else labels[batch].tolist(),
        )
        yield so_far


def extended(
    so_far: Evaluation,
    predicted: Sequence[int],
    image_kl: Sequence[float],
    expected: Sequence[int],
    labels: Sequence[int] | None,
) -> Evaluation:
    """Return an evaluation with more images.

    Args:
        so_far: What is known.
        predicted: Top-1 class of each further image.
        image_kl: KL of each, in nats.
        expected: Top-1 class of each in full precision.
        labels: Class of each, or None.
    """
    all_kl = (*so_far.image_kl, *image_kl)
    hits = None if labels is None else _equal(predicted, labels)
    has_divergence = so_far.reference is None or so_far.reference.classes > 1
    return replace(
        so_far,
        images=so_far.images + len(predicted),
        correct=None if so_far.correct is None or hits is None else so_far.correct + hits,
        agreeing=so_far.agreeing + _equal(predicted, expected),
        kl=fsum(all_kl) / len(all_kl) if has_divergence else nan,
        predicted=(*so_far.predicted, *predicted),
        image_kl=all_kl,
    )


def evaluate(
    predict: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor | None,
    reference: Tensor,
    among: Sequence[int] | None = None,
) -> Evaluation:
    """Return the finished evaluation; arguments and errors as in `evaluate_steps`."""
    *_, finished = evaluate_steps(predict, pixels, labels, reference, among=among)
    return finished
