"""What a classifier measures: top-1 accuracy with its interval, agreement with full precision, KL divergence."""

from dataclasses import dataclass, field
from math import nan, sqrt

from mixqvit.notes import Note

__all__ = ["AGREEMENT", "TOP1", "Accuracy", "Evaluation", "ReferenceAnswers", "wilson_interval"]

_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Accuracy:
    """The fraction of images that stands for accuracy.

    Attributes:
        title: Its name where there is room, as the title of an axis.
        short: Its name where there is little room, as a heading.
        help_text: What it is, in one sentence.
        field: Its name in an `Evaluation`; that of its 95 % interval is `interval_field`.
        interval_field: See `field`.
    """

    title: str
    short: str
    help_text: str
    field: str
    interval_field: str

    @property
    def word(self) -> str:
        """Its short name inside a sentence."""
        return _lower(self.short)

    @property
    def in_sentence(self) -> str:
        """Its title inside a sentence."""
        return _lower(self.title)

    def value(self, evaluation: "Evaluation") -> float | None:
        """Return the fraction, 0 to 1; None where the evaluation has no such number."""
        return getattr(evaluation, self.field)

    def interval(self, evaluation: "Evaluation") -> tuple[float, float] | None:
        """Return its 95 % interval (Wilson)."""
        return getattr(evaluation, self.interval_field)


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]


TOP1 = Accuracy(
    "Top-1 accuracy", "Top-1", "Top-1 accuracy: the fraction of images classified as labelled.", "top1", "interval"
)
AGREEMENT = Accuracy(
    "Agreement with full precision",
    "Agreement",
    "The fraction of images that get the same top-1 class as in full precision.",
    "agreement",
    "agreement_interval",
)


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
        predicted: Top-1 class of every image, among the choices.
        truth: Label of every image; None without labels.
    """

    images: int
    classes: int
    choices: int
    labels: int
    correct: int | None
    confidence: float
    predicted: tuple[int, ...] = field(default=(), repr=False)
    truth: tuple[int, ...] | None = field(default=None, repr=False)

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
    def accuracy(self) -> Accuracy:
        """What stands for accuracy: top-1 where images have labels, agreement where they have none."""
        return AGREEMENT if self.correct is None else TOP1

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
