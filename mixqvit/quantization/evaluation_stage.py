"""The stages that measure on evaluation images: in full precision, and at any bits by any recipe."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixqvit.engines.base import Work
from mixqvit.network.bits import FULL_PRECISION, BitsPerLayer
from mixqvit.network.devices import images_at_once, in_parts
from mixqvit.quantization.calibration import Calibration
from mixqvit.quantization.calibration_stage import Calibrated, own_calibration, worker_calibration
from mixqvit.quantization.checkpoints import Checkpoints, run_from_checkpoint
from mixqvit.quantization.model import QuantizedModel, quantize
from mixqvit.quantization.recipes import find_recipe
from mixqvit.stages.context import Context
from mixqvit.stages.forms import TENSORS, Tensors
from mixqvit.stages.items import ImageRanges, Named
from mixqvit.stages.stage import Stage, Step, registered
from mixqvit.tasks.evaluation import (
    BATCH_SIZE,
    Evaluation,
    ReferenceAnswers,
    evaluate_steps,
    extended,
    kl_divergence,
    reference_answers,
    top1,
)

__all__ = [
    "Evaluated",
    "EvaluationPart",
    "FullPrecision",
    "Measured",
    "evaluation_of",
    "evaluator",
    "measured",
    "most_images",
    "own_reference_answers",
    "reference_predictions",
]

Predictor = Callable[[Tensor], Tensor]
"""From images `[B, C, H, W]` to logits `[B, classes]`."""

PART_IMAGES = 512
"""Images that a worker of an engine measures at once, and that are lost with it."""

CHECKPOINT_BYTES = 512 * 2**20
"""Memory for paused runs, so that a setting is measured from the first layer that changed."""


@registered
@dataclass(frozen=True)
class FullPrecision(Stage[Tensor, Tensor]):
    """Logits of the evaluation images in full precision, `[N, classes]`."""

    name = "full precision"
    version = 1
    form = TENSORS

    def depends_on(self, study: Context) -> Sequence[str]:
        """Return which images."""
        return [study.evaluation_images.fingerprint]

    def items(self, study: Context) -> Named:
        """Return the logits, which are one piece."""
        return Named(("logits",), "full precision")

    def compute(self, study: Context, missing: Sequence[str]) -> Iterator[Step | tuple[str, Tensor]]:
        """Yield the logits, after a step for each batch."""
        graph, pixels = study.device_graph, study.evaluation_images.pixels

        def run(part: slice) -> Tensor:
            with torch.no_grad():
                return graph(pixels[part]).cpu()

        found, done = [], 0
        for logits in in_parts(run, len(pixels), most_images(study), study.device, "run in full precision"):
            found.append(logits)
            done += len(logits)
            yield Step(done / len(pixels), f"full precision of {done} of {len(pixels)} images")
        yield "logits", torch.cat(found)

    def written(self, piece: Tensor) -> Tensors:
        """Return the logits."""
        return Tensors({"logits": piece})

    def read(self, name: str, written: Tensors) -> Tensor:
        """Return the logits."""
        return written.tensors["logits"]

    def join(self, study: Context, pieces: Mapping[str, Tensor]) -> Tensor:
        """Return the logits."""
        return pieces["logits"]


@dataclass(frozen=True)
class Measured:
    """What was measured on some images.

    Attributes:
        predicted: Top-1 class of every image.
        image_kl: KL of every image, in nats.
    """

    predicted: Sequence[int]
    image_kl: Sequence[float]


@registered
@dataclass(frozen=True)
class Evaluated(Stage[Measured, Evaluation]):
    """What a quantized model measures on the evaluation images.

    Attributes:
        layers: Name, weight bits and activation bits of every layer.
        recipe: One of `RECIPES`.
    """

    name = "evaluation"
    version = 1
    shows_all = True

    layers: tuple[tuple[str, int, int], ...]
    recipe: str

    @classmethod
    def at(cls, bits: BitsPerLayer, recipe: str) -> "Evaluated":
        """Return the evaluation of bits by a recipe."""
        return cls(tuple((name, *pair) for name, pair in bits.items()), recipe)

    @property
    def bits(self) -> BitsPerLayer:
        """(weight bits, activation bits) by layer name."""
        return {name: (weights, activations) for name, weights, activations in self.layers}

    def needs(self, study: Context) -> tuple[Stage, ...]:
        """Return full precision, and the calibration unless nothing is quantized."""
        return (FullPrecision(), *([] if self._is_full else [self._calibration(study)]))

    def depends_on(self, study: Context) -> Sequence[Any]:
        """Return which images, and which classes top-1 looks at."""
        return _images_and_classes(study)

    def items(self, study: Context) -> ImageRanges:
        """Return the evaluation images."""
        return ImageRanges(len(study.evaluation_images))

    def compute(self, study: Context, missing: Sequence[range]) -> Iterator[tuple[range, Measured]]:
        """Yield batches of images; an engine serves the study's own recipe."""
        if study.engine.is_here or self.recipe != study.recipe:
            return measured(study, self._predictor(study), missing)
        return super().compute(study, missing)

    def work(self, study: Context) -> Work:
        """Return what measures a part of the images."""
        return partial(evaluator, worker_calibration(study))

    def tasks(self, study: Context, missing: Sequence[range]) -> list["EvaluationPart"]:
        """Return the missing images in parts."""
        pixels, reference = study.evaluation_images.pixels, study.result(FullPrecision())
        parts = [gap[start : start + PART_IMAGES] for gap in missing for start in range(0, len(gap), PART_IMAGES)]
        return [
            EvaluationPart(
                self.bits,
                part,
                study.sent(pixels[part.start : part.stop]),
                study.sent(reference[part.start : part.stop]),
                study.class_subset,
            )
            for part in parts
        ]

    def read(self, name: str, written: Mapping[str, Any]) -> Measured:
        """Return what was measured."""
        return Measured(**written)

    def written(self, piece: Measured) -> dict[str, Any]:
        """Return the numbers, image by image."""
        return {"predicted": list(piece.predicted), "image_kl": list(piece.image_kl)}

    def join(self, study: Context, pieces: Mapping[str, Measured]) -> Evaluation | None:
        """Return the evaluation of the images from the first one on; None where that is missing."""
        return evaluation_of(study, pieces)

    def is_remembered(self, study: Context) -> bool:
        """Return that it is not: there are as many as positions of a slider."""
        return False

    @property
    def _is_full(self) -> bool:
        return all(pair == (FULL_PRECISION, FULL_PRECISION) for pair in self.bits.values())

    def _calibration(self, study: Context) -> Calibrated:
        if self.recipe == study.recipe:
            return own_calibration(study)
        bits = self.bits
        setting = bits[study.layers[-1].name] if find_recipe(self.recipe).one_setting else None
        widths = sorted({width for pair in bits.values() for width in pair} - {FULL_PRECISION})
        return Calibrated(self.recipe, setting, tuple(widths))

    def _predictor(self, study: Context) -> Predictor:
        if self._is_full:
            return study.device_graph
        calibration = study.result(self._calibration(study))
        if self.recipe != study.recipe:
            return quantize(calibration, self.bits).on(study.device)
        checkpoints = study.remembered("checkpoints", lambda: Checkpoints(CHECKPOINT_BYTES))
        quantized = quantize(calibration, self.bits, checkpoints=checkpoints).on(study.device)
        return partial(_run_on_evaluation_images, quantized, checkpoints)


def measured(study: Context, predict: Predictor, missing: Sequence[range]) -> Iterator[tuple[range, Measured]]:
    """Measure a model on ranges of the evaluation images, batch by batch."""
    images, reference = study.evaluation_images, study.result(FullPrecision())
    for gap in missing:
        part = slice(gap.start, gap.stop)
        labels = None if images.labels is None else images.labels[part]
        start = 0
        for found in evaluate_steps(
            predict,
            images.pixels[part],
            labels,
            reference[part],
            most_images(study),
            among=study.class_subset,
            device=study.device,
        ):
            yield gap[start : found.images], Measured(found.predicted[start:], found.image_kl[start:])
            start = found.images


def evaluation_of(study: Context, pieces: Mapping[str, Measured]) -> Evaluation | None:
    """Return the evaluation of the images from the first one on; None where that is missing."""
    images, predicted, image_kl = study.evaluation_images, [], []
    for part in ImageRanges(len(images)).covered(pieces):
        if part.start != len(predicted):
            break
        found = pieces[ImageRanges(len(images)).name(part)]
        predicted += found.predicted
        image_kl += found.image_kl
    if not predicted:
        return None
    count = len(predicted)
    labels = None if images.labels is None else images.labels[:count].tolist()
    answers = own_reference_answers(study)
    begun = Evaluation(0, len(images), None if labels is None else 0, 0, 0.0, reference=answers)
    return extended(begun, predicted, image_kl, reference_predictions(study)[:count], labels)


def reference_predictions(study: Context) -> list[int]:
    """Return the top-1 class of every evaluation image in full precision, among the classes that the study looks at."""
    logits = study.result(FullPrecision())
    return study.remembered("reference predictions", lambda: top1(logits, study.class_subset))


def own_reference_answers(study: Context) -> ReferenceAnswers:
    """Return what full precision answers on the evaluation images."""
    logits = study.result(FullPrecision())
    labels, among = study.evaluation_images.labels, study.class_subset
    return study.remembered("reference answers", lambda: reference_answers(logits, labels, among))


def most_images(study: Context) -> int:
    """Return how many evaluation images run at once."""
    return images_at_once(study.device_graph, BATCH_SIZE)


def _images_and_classes(study: Context) -> list[Any]:
    return [study.evaluation_images.fingerprint, study.class_subset and list(study.class_subset)]


def _run_on_evaluation_images(quantized: QuantizedModel, checkpoints: Checkpoints, pixels: Tensor) -> Tensor:
    """Return logits `[B, classes]`; batches are parts of one tensor, so their place in it says which one it is."""
    with torch.no_grad():
        return run_from_checkpoint(
            quantized.graph,
            pixels,
            quantized.operations,
            quantized.bits,
            checkpoints,
            ("evaluation", pixels.storage_offset(), len(pixels)),
        )


@dataclass(frozen=True, eq=False)
class EvaluationPart:
    """Some images to measure one setting on.

    Attributes:
        bits: (weight bits, activation bits) per layer.
        images: Which they are.
        pixels: The images `[n, C, H, W]`.
        reference: Their full-precision logits `[n, classes]`.
        among: Classes that the top-1 class is looked for among; None for all.
    """

    bits: BitsPerLayer
    images: range
    pixels: Tensor
    reference: Tensor
    among: Sequence[int] | None


def evaluator(
    calibration: Callable[[], Calibration],
) -> Callable[[EvaluationPart], Iterator[tuple[range, Measured]]]:
    """Return what measures a part of an evaluation; parts of the same bits in a row quantize the model once."""
    found = calibration()
    graph, device = found.graph, found.graph.device
    bits: BitsPerLayer | None = None
    predict: Predictor = graph

    def measured_part(part: EvaluationPart) -> Iterator[tuple[range, Measured]]:
        nonlocal bits, predict
        if part.bits != bits:
            full = all(pair == (FULL_PRECISION, FULL_PRECISION) for pair in part.bits.values())
            predict = graph if full else quantize(found, part.bits)
            bits = part.bits

        def run(images: slice) -> Tensor:
            with torch.no_grad():
                return predict(part.pixels[images]).cpu()

        most = images_at_once(graph, BATCH_SIZE)
        logits = torch.cat(list(in_parts(run, len(part.pixels), most, device, "evaluation")))
        yield part.images, Measured(top1(logits, part.among), kl_divergence(part.reference, logits).tolist())

    return measured_part
