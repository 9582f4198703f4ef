"""What accuracy means: top-1 where images have labels, agreement with full precision where they have none."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixqvit.tasks.evaluation import Evaluation

__all__ = ["AGREEMENT", "TOP1", "Accuracy", "accuracy_columns", "accuracy_for", "accuracy_of", "among_words"]


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


def accuracy_for(has_labels: bool) -> Accuracy:
    """Return what stands for accuracy on images with or without labels."""
    return TOP1 if has_labels else AGREEMENT


def accuracy_of(evaluation: "Evaluation") -> Accuracy:
    """Return what stands for accuracy in an evaluation."""
    return accuracy_for(evaluation.top1 is not None)


def accuracy_columns(evaluation: "Evaluation") -> dict[str, float]:
    """Return accuracy for the row of a table, in percent: what stands for it with its interval, then agreement."""
    chosen = accuracy_of(evaluation)
    low, high = chosen.interval(evaluation)
    return {
        f"{chosen.word} (%)": 100 * chosen.value(evaluation),
        "from (%)": 100 * low,
        "to (%)": 100 * high,
        f"{AGREEMENT.word} (%)": 100 * evaluation.agreement,
    }


def among_words(chosen: int, classes: int) -> str:
    """Say what accuracies mean that look at some of the classes only.

    Args:
        chosen: Classes that top-1 is looked for among.
        classes: Classes of the model.
    """
    return (
        f"Top-1 and agreement are **among {chosen:,} of the {classes:,} classes** only, those that occur among the "
        "images: easier than among all, so not to be compared with published accuracies."
    )
