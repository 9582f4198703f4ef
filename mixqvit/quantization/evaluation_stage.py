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
from mixqvit.quantization.calibration_stage import Calibrated
from mixqvit.quantization.evaluation import BATCH_SIZE, Predictor, answer_steps
from mixqvit.quantization.fidelity_stage import checked_calibration, trusted_calibration, worker_calibration
from mixqvit.quantization.model import QuantizedModel, quantize
from mixqvit.quantization.paused_runs import PausedRuns, run_from_paused
from mixqvit.quantization.recipes import find_recipe
from mixqvit.stages.context import Context
from mixqvit.stages.forms import TENSORS, Tensors
from mixqvit.stages.items import ImageRanges, Named
from mixqvit.stages.stage import Stage, Step, registered
from mixqvit.tasks.evaluation import Evaluation, ReferenceAnswers
from mixqvit.tasks.task import Answers, Task, joined

__all__ = [
    "Evaluated",
    "EvaluationPart",
    "FullPrecision",
    "evaluation_of",
    "evaluator",
    "measured",
    "most_images",
    "own_reference_answers",
]

PART_IMAGES = 512
"""Images that a worker of an engine measures at once, and that are lost with it."""

PAUSED_RUNS_BYTES = 512 * 2**20
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


@registered
@dataclass(frozen=True)
class Evaluated(Stage[Answers, Evaluation]):
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
        """Return full precision, and the calibration, the study's own with its check, unless nothing is quantized."""
        if self._is_full:
            return (FullPrecision(),)
        own = self.recipe == study.recipe
        return (FullPrecision(), *(checked_calibration(study) if own else [self._calibration(study)]))

    def depends_on(self, study: Context) -> Sequence[Any]:
        """Return which images, and what decisions are among."""
        return [study.evaluation_images.fingerprint, study.task.scope]

    def items(self, study: Context) -> ImageRanges:
        """Return the evaluation images."""
        return ImageRanges(len(study.evaluation_images))

    def compute(self, study: Context, missing: Sequence[range]) -> Iterator[tuple[range, Answers]]:
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
                study.task,
            )
            for part in parts
        ]

    def join(self, study: Context, pieces: Mapping[str, Answers]) -> Evaluation | None:
        """Return the evaluation of the images from the first one on; None where that is missing."""
        return evaluation_of(study, pieces)

    def is_remembered(self, study: Context) -> bool:
        """Return that it is not: there are as many as positions of a slider."""
        return False

    @property
    def _is_full(self) -> bool:
        return all(pair == (FULL_PRECISION, FULL_PRECISION) for pair in self.bits.values())

    def _calibration(self, study: Context) -> Calibrated:
        """Return what fits the quantizers of another recipe than the study's."""
        bits = self.bits
        setting = bits[study.layers[-1].name] if find_recipe(self.recipe).one_setting else None
        widths = sorted({width for pair in bits.values() for width in pair} - {FULL_PRECISION})
        return Calibrated(self.recipe, setting, tuple(widths))

    def _predictor(self, study: Context) -> Predictor:
        if self._is_full:
            return study.device_graph
        if self.recipe != study.recipe:
            return quantize(study.result(self._calibration(study)), self.bits).on(study.device)
        calibration = trusted_calibration(study)
        paused_runs = study.remembered("paused runs", lambda: PausedRuns(PAUSED_RUNS_BYTES))
        quantized = quantize(calibration, self.bits, paused_runs=paused_runs).on(study.device)
        return partial(_run_on_evaluation_images, quantized, paused_runs)


def measured(study: Context, predict: Predictor, missing: Sequence[range]) -> Iterator[tuple[range, Answers]]:
    """Measure a model on ranges of the evaluation images, batch by batch."""
    pixels, reference = study.evaluation_images.pixels, study.result(FullPrecision())
    for gap in missing:
        part = slice(gap.start, gap.stop)
        for batch, found in answer_steps(
            study.task, predict, pixels[part], reference[part], most_images(study), study.device
        ):
            yield gap[batch.start : batch.stop], found


def evaluation_of(study: Context, pieces: Mapping[str, Answers]) -> Evaluation | None:
    """Return the evaluation of the images from the first one on; None where that is missing."""
    items, found, stop = ImageRanges(len(study.evaluation_images)), [], 0
    for part in items.covered(pieces):
        if part.start != stop:
            break
        found.append(pieces[items.name(part)])
        stop = part.stop
    return study.task.evaluation(joined(found), own_reference_answers(study)) if found else None


def own_reference_answers(study: Context) -> ReferenceAnswers:
    """Return what full precision answers on the evaluation images."""
    outputs, labels = study.result(FullPrecision()), study.evaluation_images.labels
    return study.remembered("reference answers", lambda: study.task.reference_answers(outputs, labels))


def most_images(study: Context) -> int:
    """Return how many evaluation images run at once."""
    return images_at_once(study.device_graph, BATCH_SIZE)


def _run_on_evaluation_images(quantized: QuantizedModel, paused_runs: PausedRuns, pixels: Tensor) -> Tensor:
    """Return logits `[B, classes]`; batches are parts of one tensor, so their place in it says which one it is."""
    with torch.no_grad():
        return run_from_paused(
            quantized.graph,
            pixels,
            quantized.operations,
            quantized.bits,
            paused_runs,
            ("evaluation", pixels.storage_offset(), len(pixels)),
        )


@dataclass(frozen=True, eq=False)
class EvaluationPart:
    """Some images to measure one setting on.

    Attributes:
        bits: (weight bits, activation bits) per layer.
        images: Which they are.
        pixels: The images `[n, C, H, W]`.
        reference: Their full-precision outputs `[n, …]`.
        task: What outputs mean.
    """

    bits: BitsPerLayer
    images: range
    pixels: Tensor
    reference: Tensor
    task: Task


def evaluator(
    calibration: Callable[[], Calibration],
) -> Callable[[EvaluationPart], Iterator[tuple[range, Answers]]]:
    """Return what measures a part of an evaluation; parts of the same bits in a row quantize the model once."""
    found = calibration()
    graph, device = found.graph, found.graph.device
    bits: BitsPerLayer | None = None
    predict: Predictor = graph

    def measured_part(part: EvaluationPart) -> Iterator[tuple[range, Answers]]:
        nonlocal bits, predict
        if part.bits != bits:
            full = all(pair == (FULL_PRECISION, FULL_PRECISION) for pair in part.bits.values())
            predict = graph if full else quantize(found, part.bits)
            bits = part.bits
        most = images_at_once(graph, BATCH_SIZE)
        steps = answer_steps(part.task, predict, part.pixels, part.reference, most, device)
        yield part.images, joined([found for _, found in steps])

    return measured_part
