"""Measuring a model on images, batch by batch."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mixqvit.errors import ImageError
from mixqvit.network.devices import in_parts
from mixqvit.tasks.classification import Classification
from mixqvit.tasks.evaluation import Evaluation
from mixqvit.tasks.task import Answers, Task, joined

__all__ = ["BATCH_SIZE", "Predictor", "answer_steps", "evaluate", "evaluate_steps"]

Predictor = Callable[[Tensor], Tensor]
"""From images `[B, C, H, W]` to outputs `[B, …]`."""

BATCH_SIZE = 64
"""Images at once, where memory allows."""


def answer_steps(
    task: Task,
    predict: Predictor,
    pixels: Tensor,
    reference: Tensor,
    batch_size: int = BATCH_SIZE,
    device: torch.device | None = None,
) -> Iterator[tuple[slice, Answers]]:
    """Run a model over images batch by batch; where memory runs out, in smaller ones.

    Args:
        task: What its outputs mean.
        predict: The model.
        pixels: Images `[N, C, H, W]`.
        reference: Full-precision outputs `[N, …]`.
        batch_size: Images per batch.
        device: Where the model runs, for the message when not even one image fits; the CPU by default.

    Yields:
        Each batch's place among the images, and the answers on it.

    Raises:
        ImageError: There are no images.
        MixQViTError: Memory does not suffice for a single image.
    """
    if not len(pixels):
        raise ImageError("There are no evaluation images.")

    def run(part: slice) -> tuple[slice, Answers]:
        with torch.no_grad():
            return part, task.answers(predict(pixels[part]), reference[part])

    yield from in_parts(run, len(pixels), batch_size, device or torch.device("cpu"), "evaluation")


def evaluate_steps(
    task: Task,
    predict: Predictor,
    pixels: Tensor,
    labels: Tensor | None,
    reference: Tensor,
    batch_size: int = BATCH_SIZE,
    device: torch.device | None = None,
) -> Iterator[Evaluation]:
    """Measure a model; arguments and errors as in `answer_steps`, with the labels `[N]` of the images or None.

    Yields:
        What is known after each batch; the last one covers all images.
    """
    expected = task.reference_answers(reference, labels)
    parts: list[Answers] = []
    for _, found in answer_steps(task, predict, pixels, reference, batch_size, device):
        parts.append(found)
        yield task.evaluation(joined(parts), expected)


def evaluate(
    predict: Predictor,
    pixels: Tensor,
    labels: Tensor | None,
    reference: Tensor,
    among: Sequence[int] | None = None,
) -> Evaluation:
    """Measure a classifier.

    Args:
        predict: From images `[B, C, H, W]` to logits `[B, classes]`.
        pixels: Images `[N, C, H, W]`.
        labels: Class per image `[N]`, or None.
        reference: Full-precision logits `[N, classes]`.
        among: Classes that the top-1 class is looked for among, here and in full precision; None for all. KL stays that
            of all classes.

    Raises:
        ImageError: There are no images.
        MixQViTError: Memory does not suffice for a single image.
    """
    task = Classification(reference.shape[1], None if among is None else tuple(among))
    *_, finished = evaluate_steps(task, predict, pixels, labels, reference)
    return finished
