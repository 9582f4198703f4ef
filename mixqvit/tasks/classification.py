"""Classification: outputs are logits `[N, classes]`, and the decision is the class of the largest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import fsum, nan
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from mixqvit.errors import MixQViTError
from mixqvit.notes import Note
from mixqvit.tasks.evaluation import AGREEMENT, TOP1, Accuracy, Evaluation, ReferenceAnswers, wilson_interval
from mixqvit.tasks.metrics import Effect, Metric
from mixqvit.tasks.task import Answers, Example, Pictured, Task

__all__ = ["METRICS", "Classification"]

FEW_EVALUATION_IMAGES = 30
"""With fewer, the 95 % interval of an accuracy is more than a third of the scale wide."""

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "kl",
            "KL divergence",
            "nats",
            "KL(full precision ‖ quantized) of the class probabilities, mean per image; needs no labels (Mix-QViT).",
            "kl",
        ),
        Metric(
            "cross-entropy",
            "cross-entropy increase",
            "nats",
            "How much the cross-entropy with the labels rises, mean per image; below zero where it falls.",
            "cross_entropy",
            needs_labels=True,
        ),
        Metric(
            "top1-drop",
            "top-1 drop",
            "fraction of images",
            "The fraction of images that are not classified as labelled any more, less those that are now: coarse on "
            "few images.",
            "top1_drop",
            needs_labels=True,
            counts_images=True,
        ),
        Metric(
            "mse",
            "logit mean-squared error",
            "squared logits",
            "The squared change of the logits, mean over classes and images, in squared logits.",
            "squared_error",
        ),
        Metric(
            "sqnr",
            "noise to signal, 1 / SQNR",
            "",
            "Power of the change of the logits over the power of the logits; SQNR in decibels is -10 log₁₀ of it.",
            "squared_error",
            relative_to="signal",
        ),
    )
}
"""How the harm to a classifier can be measured, by name."""


@dataclass(frozen=True)
class Classification(Task):
    """One of several classes per image.

    Attributes:
        classes: Number of classes, which is that of the logits.
        among: Classes that the top-1 class is looked for among; None for all. Probabilities, and so KL, stay those of
            all classes.
    """

    metrics: ClassVar[Mapping[str, Metric]] = METRICS
    divergence_metric: ClassVar[str] = "kl"

    classes: int
    among: tuple[int, ...] | None = None

    # Harm

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """Return KL(reference ‖ outputs) of the class probabilities per image, in nats."""
        # On the CPU: not every device has double precision, and the numbers end there.
        expected, actual = (values.cpu().double().log_softmax(dim=1) for values in (reference, outputs))
        return (expected.exp() * (expected - actual)).sum(dim=1).clamp(min=0)

    def effect(self, reference: Tensor, outputs: Tensor, labels: Tensor | None) -> Effect:
        """Return what separates logits from those of full precision.

        Returns:
            `kl`: The divergence, in nats.
            `squared_error`: Mean over the classes of the squared change of the logits.
            `signal`: Mean over the classes of the squared full-precision logits.
            `cross_entropy`: Increase of the cross-entropy with the label, in nats; None without labels.
            `top1_drop`: 1 where an image was classified as labelled and is no more, -1 the other way round, else 0;
                None without labels.
        """
        reference, outputs = reference.cpu().double(), outputs.cpu().double()
        increase = drop = None
        if labels is not None:
            labels = labels.cpu()
            before, after = (
                functional.cross_entropy(values, labels, reduction="none") for values in (reference, outputs)
            )
            right, still_right = (values.argmax(dim=1) == labels for values in (reference, outputs))
            increase, drop = (after - before).numpy(), (right.int() - still_right.int()).double().numpy()
        return {
            "kl": self.divergence(reference, outputs).numpy(),
            "squared_error": (outputs - reference).square().mean(dim=1).numpy(),
            "signal": reference.square().mean(dim=1).numpy(),
            "cross_entropy": increase,
            "top1_drop": drop,
        }

    # Loss

    def loss(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        """Return the cross-entropy with the labels, or with the predicted classes, summed over the images."""
        classes = outputs.detach().argmax(dim=1) if labels is None else labels.to(outputs.device)
        return functional.cross_entropy(outputs, classes, reduction="sum")

    def distillation_loss(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return KL(full precision ‖ quantized) of every image, `[N]`, in nats; zero where the two are equal.

        Soft labels at temperature 1 (Hinton et al. 2015, arXiv 1503.02531), as OFQ trains (arXiv 2302.02210, section
        5.1).
        """
        own, wanted = (
            functional.log_softmax(values, dim=1, dtype=torch.promote_types(values.dtype, torch.float32))
            for values in (outputs, reference)
        )
        return functional.kl_div(own, wanted, log_target=True, reduction="none").sum(dim=1)

    def curvature_root(self, outputs: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v ↦ B v with B = diag √p - p √pᵀ, so that B Bᵀ = diag p - p pᵀ, the Hessian of the cross-entropy."""
        probabilities = outputs.detach().double().softmax(dim=1)
        roots = probabilities.sqrt()

        def product(vectors: Tensor) -> Tensor:
            signed = roots * vectors.to(roots)
            return (signed - probabilities * signed.sum(dim=1, keepdim=True)).to(outputs)

        return product

    # Quality

    def predicted(self, outputs: Tensor) -> list[int]:
        """Return the top-1 class of every image."""
        if self.among is None:
            return outputs.argmax(dim=1).tolist()
        classes = torch.tensor(self.among, device=outputs.device)
        return classes[outputs[:, classes].argmax(dim=1)].tolist()

    def answers(self, outputs: Tensor, reference: Tensor) -> Answers:
        """Return the top-1 class of every image, `predicted`, and its divergence in nats, `image_kl`."""
        return {"predicted": self.predicted(outputs), "image_kl": self.divergence(reference, outputs).tolist()}

    def reference_answers(self, reference: Tensor, labels: Tensor | None) -> ReferenceAnswers:
        """Return what full-precision logits `[N, classes]` say of the images with these labels `[N]`."""
        chosen = reference if self.among is None else reference[:, list(self.among)]
        predicted = tuple(self.predicted(reference))
        truth = None if labels is None else tuple(labels.tolist())
        return ReferenceAnswers(
            images=len(reference),
            classes=self.classes,
            choices=chosen.shape[1],
            labels=len(set(truth or ())),
            correct=None if truth is None else _equal(predicted, truth),
            confidence=float(chosen.cpu().double().softmax(dim=1).amax(dim=1).mean()),
            predicted=predicted,
            truth=truth,
        )

    def evaluation(self, answers: Answers, reference: ReferenceAnswers) -> Evaluation:
        """Return top-1, agreement and KL of the answers."""
        predicted, image_kl = tuple(answers["predicted"]), tuple(answers["image_kl"])
        return Evaluation(
            images=len(predicted),
            total=reference.images,
            correct=None if reference.truth is None else _equal(predicted, reference.truth),
            agreeing=_equal(predicted, reference.predicted),
            kl=fsum(image_kl) / len(image_kl) if self.classes > 1 else nan,
            predicted=predicted,
            image_kl=image_kl,
            reference=reference,
        )

    def agreeing(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return how many images have the same top-1 class, among all classes."""
        return (outputs.argmax(dim=1) == reference.argmax(dim=1)).sum()

    def accuracy(self, has_labels: bool) -> Accuracy:
        """Return top-1 where there are labels, else agreement with full precision."""
        return TOP1 if has_labels else AGREEMENT

    def within(self, *labels: Tensor) -> Self:
        """Return the classification whose top-1 class is looked for among the classes of these labels."""
        return replace(self, among=tuple(sorted({index for values in labels for index in values.tolist()})))

    @property
    def scope(self) -> list[int] | None:
        """The classes that the top-1 class is looked for among; None for all."""
        return None if self.among is None else list(self.among)

    @property
    def scope_words(self) -> str:
        """What top-1 and agreement mean among some of the classes only."""
        if self.among is None:
            return ""
        return (
            f"Top-1 and agreement are **among {len(self.among):,} of the {self.classes:,} classes** only, those that "
            "occur among the images: easier than among all, so not to be compared with published accuracies."
        )

    def notes(self, images: int) -> tuple[Note, ...]:
        """Return whether the images are few for an accuracy, and whether there is but one class to choose."""
        return tuple(note for note in (_few_images(images), self._one_class()) if note is not None)

    def _one_class(self) -> Note | None:
        if self.classes == 1:
            return Note(
                "The model has one class: any bits agree with full precision on every image, at a KL divergence of 0. "
                "That means nothing, so accuracy, agreement and KL are left out. Choose bits by another metric of "
                "sensitivity, mse or sqnr.",
                is_warning=True,
            )
        if self.among is not None and len(self.among) == 1:
            return Note(
                "Top-1 is looked for within one class, the only one among the images: any bits are right on all of "
                "them. That means nothing, so accuracy and agreement are left out. Look among all classes.",
                is_warning=True,
            )
        return None

    # The question of relevance

    def question(self, targets: Tensor | int | None, images: int) -> Tensor | None:
        """Return one class per image `[N]` from what a caller asks for; None for the predicted classes."""
        if targets is None:
            return None
        chosen = torch.as_tensor(targets).detach()
        if chosen.is_floating_point() or chosen.dtype == torch.bool:
            raise MixQViTError(f"Explained classes are whole numbers, not {chosen.dtype}.")
        if chosen.ndim == 0:
            chosen = chosen.expand(images)
        if chosen.shape != (images,):
            raise MixQViTError(f"{images} images need {images} explained classes, not {list(chosen.shape)}.")
        outside = chosen[(chosen < 0) | (chosen >= self.classes)].tolist()
        if outside:
            raise MixQViTError(f"There is no class {outside[0]} to explain; they are numbered 0 to {self.classes - 1}.")
        return chosen.long()

    def explained(self, outputs: Tensor, question: Tensor | None) -> Tensor:
        """Return the asked or, without a question, the predicted class of every image `[N]`, among all classes."""
        return outputs.argmax(dim=1) if question is None else question.clone().to(outputs.device)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the logit of the explained class, `[N]`."""
        return outputs.gather(1, targets.clone().to(outputs.device)[:, None]).squeeze(1)

    def start(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 1 at the explained class and 0 elsewhere, `[N, classes]`."""
        return torch.zeros_like(outputs).scatter_(1, targets[:, None], 1)

    # The picture

    def example(self, images: Pictured, index: int) -> Example:
        """Return an image with the name of its class."""
        picture = images.display(index, index + 1)[0].numpy()
        return Example(
            picture=picture.squeeze(-1) if picture.shape[-1] == 1 else picture,
            name=images.names[index],
            label=None if images.labels is None else images.class_names[int(images.labels[index])],
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the class probabilities, `[N, classes]`."""
        return outputs.softmax(dim=1)


def _equal(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Count the images on which both say the same; the second may know more images."""
    return sum(one == other for one, other in zip(first, second, strict=False))


def _few_images(count: int) -> Note | None:
    if count >= FEW_EVALUATION_IMAGES:
        return None
    low, _ = wilson_interval(count, count)
    images = "is one evaluation image" if count == 1 else f"are only {count} evaluation images"
    return Note(
        f"There {images}: differences are hard to tell from chance. Even an accuracy of 100 % has a 95 % interval "
        f"from {100 * low:.0f} % on.",
        is_warning=count == 1,
    )
