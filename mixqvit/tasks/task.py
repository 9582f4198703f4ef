"""What the outputs of a model mean: the contract of a task, which whoever reads outputs asks.

Outputs are `[N, …]`, one row per image. All other code moves them about, and leaves to the task what differs between
them, what they are worth, what can be asked of them, and what they are called.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from torch import Tensor

from mixqvit.errors import ImageError, MixQViTError
from mixqvit.notes import Note
from mixqvit.tasks.evaluation import Accuracy, Evaluation, ReferenceAnswers
from mixqvit.tasks.metrics import Effect, Metric

__all__ = ["Answers", "Example", "Pictured", "Task", "joined"]

Answers = Mapping[str, Sequence[Any]]
"""What was measured of some images, in their order: quantities of a task by name, as JSON can write them."""


class Pictured(Protocol):
    """Images that can be shown (`mixqvit.images.images.Images`).

    Attributes:
        names: Of every image.
        labels: What is known of every image `[N]`, or None.
        class_names: What labels are called.
    """

    names: tuple[str, ...]
    labels: Tensor | None
    class_names: tuple[str, ...]

    def display(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return images as a screen shows them, `[N, H, W, C]`, 0 to 1."""
        ...


@dataclass(frozen=True, eq=False)
class Example:
    """An image as a person sees it, with what is known of it.

    Attributes:
        picture: `[H, W, C]` or, of one channel, `[H, W]`, 0 to 1.
        name: Of the image.
        label: In words; None without labels.
    """

    picture: np.ndarray
    name: str
    label: str | None

    @property
    def alt(self) -> str:
        """What is said in place of the picture."""
        return f"Image {self.name}" + ("" if self.label is None else f", labelled {self.label}")


class Task(ABC):
    """What a model's outputs mean. A task is a small frozen value: it is compared, and sent to other processes.

    Attributes:
        metrics: How harm can be measured, by name.
        divergence_metric: Name of the one that is the mean of `divergence`.
    """

    metrics: ClassVar[Mapping[str, Metric]]
    divergence_metric: ClassVar[str]

    # Harm: what a change of the model does to its outputs

    @abstractmethod
    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """Return how far outputs are from those of full precision, `[N]` in double precision on the CPU."""

    @abstractmethod
    def effect(self, reference: Tensor, outputs: Tensor, labels: Tensor | None) -> Effect:
        """Return what separates outputs from those of full precision, for all metrics."""

    def metric(self, name: str, has_labels: bool = True) -> Metric:
        """Return a metric by name.

        Args:
            name: One of `metrics`.
            has_labels: Whether the images that it is wanted for have labels.

        Raises:
            MixQViTError: There is none of this name.
            ImageError: It needs labels and there are none.
        """
        if name not in self.metrics:
            raise MixQViTError(f"There is no metric {name!r} of sensitivity; choose one of {', '.join(self.metrics)}.")
        found = self.metrics[name]
        if found.needs_labels and not has_labels:
            raise ImageError(f"{found.without_labels()}: {', '.join(self.metrics_for(has_labels=False))}.")
        return found

    def metrics_for(self, has_labels: bool) -> dict[str, Metric]:
        """Return the metrics by name that images with or without labels can be measured by."""
        return {name: metric for name, metric in self.metrics.items() if has_labels or not metric.needs_labels}

    # Loss: what gradients are taken of

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        """Return the loss summed over the images; without labels that of the model's own decisions."""

    @abstractmethod
    def distillation_loss(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return the loss of every image, `[N]`, whose labels are the outputs of the full-precision model."""

    @abstractmethod
    def curvature_root(self, outputs: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v ↦ B v for `v` like the outputs, where B Bᵀ is the Hessian of the loss with respect to them."""

    # Quality: what outputs are worth

    @abstractmethod
    def answers(self, outputs: Tensor, reference: Tensor) -> Answers:
        """Return what is measured of each image, beside full precision; it is saved image by image."""

    @abstractmethod
    def reference_answers(self, reference: Tensor, labels: Tensor | None) -> ReferenceAnswers:
        """Return what full precision answers on all images: what answers are compared with, and notes on it."""

    @abstractmethod
    def evaluation(self, answers: Answers, reference: ReferenceAnswers) -> Evaluation:
        """Return the quality with its intervals of the answers on the first images of `reference`."""

    @abstractmethod
    def agreeing(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return on how many images the decision is that of full precision, as a scalar where the outputs are."""

    @abstractmethod
    def accuracy(self, has_labels: bool) -> Accuracy:
        """Return what stands for accuracy on images with or without labels."""

    @abstractmethod
    def within(self, *labels: Tensor) -> Self:
        """Return the same task whose decisions are among what occurs in these labels only."""

    @property
    @abstractmethod
    def scope(self) -> list[int] | None:
        """What decisions are among, as keys of results have it; None for everything."""

    @property
    @abstractmethod
    def scope_words(self) -> str:
        """What accuracy means within `scope`, in Markdown; empty where that is everything."""

    @abstractmethod
    def notes(self, images: int) -> tuple[Note, ...]:
        """Return what to know of measuring on so many images before anything is measured."""

    # The question of relevance: what about an output is explained

    @abstractmethod
    def question(self, targets: Tensor | int | None, images: int) -> Tensor | None:
        """Return one target per image `[N]` from what a caller asks for; None for what the model decides.

        Raises:
            MixQViTError: There are no such targets, or not one per image.
        """

    @abstractmethod
    def explained(self, outputs: Tensor, question: Tensor | None) -> Tensor:
        """Return the explained target of every image `[N]`: of the question, or what the model decides."""

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the output that speaks for the target, `[N]`: gradients of relevance methods are its."""

    @abstractmethod
    def start(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the relevance at the outputs, shaped like them, which sums to 1 for every image."""

    # The picture: what a person sees of an image and of its outputs

    @abstractmethod
    def example(self, images: Pictured, index: int) -> Example:
        """Return an image with its label."""

    @abstractmethod
    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return how sure the model is of every target, `[N, targets]`."""


def joined(parts: Sequence[Answers]) -> Answers:
    """Return the answers on the images of all parts, in order; there is at least one."""
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}
