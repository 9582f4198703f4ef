"""The evaluation stage of a study: any bits, every recipe, packed files."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mixqvit.allocation.budget import Allocation
from mixqvit.engines.this_process import ThisProcess
from mixqvit.errors import BitWidthError, CalibrationError, PackingError
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, Bits, BitsPerLayer, resolve_bits
from mixqvit.network.devices import images_at_once, in_parts
from mixqvit.notes import Note
from mixqvit.packing.model import Packed, load_packed, packed, packed_source
from mixqvit.progress import Progress
from mixqvit.quantization.calibration import Calibration, LayerCalibration, calibrate_steps
from mixqvit.quantization.checkpoints import Checkpoints, run_from_checkpoint
from mixqvit.quantization.fisher import fisher_diagonals
from mixqvit.quantization.model import QuantizedModel, quantize
from mixqvit.quantization.quantizer_comparison import OperandComparison, compare_quantizers
from mixqvit.quantization.recipes import RECIPES, find_recipe
from mixqvit.quantization.roles import roles
from mixqvit.stages.store import fingerprint
from mixqvit.study.claims import WORK, once
from mixqvit.study.sensitivity import SensitivityStages
from mixqvit.study.workers import EvaluationPart, evaluator
from mixqvit.tasks.evaluation import (
    BATCH_SIZE,
    Evaluation,
    ReferenceAnswers,
    evaluate_steps,
    extended,
    reference_answers,
    top1,
)

__all__ = ["EvaluationStages"]

Predictor = Callable[[Tensor], Tensor]
"""From images `[B, C, H, W]` to logits `[B, classes]`."""

# Comparisons of quantizers that are kept: some hundred kilobytes each.
OPERAND_COMPARISONS = 64

QUICK_MACS = 10**11
"""Multiply-accumulates of an evaluation that takes seconds on two cores: the digits' 500 images are a quarter of it."""

QUANTIZED_PASS, COMPENSATION_PASSES = 1.3, 10.6
"""Time of a quantized pass, and of error compensation over the calibration images, in full-precision passes (measured
on DeiT-Tiny, tests/benchmarks/RESULTS.md)."""

COMPENSATION_LAYER_SECONDS = 0.005
"""Time of error compensation for each layer beside its passes (one thread; digits_vit and digits_swin)."""

_BATCH = "images"  # how the names of saved batches begin

PART_IMAGES = 512
"""Images that a worker of an engine measures at once, and that are lost with it."""

CHECKPOINT_BYTES = 512 * 2**20
"""Memory for paused runs, so that a setting is measured from the first layer that changed."""


class EvaluationStages(SensitivityStages):
    """Quantized models, measured and written to files."""

    def evaluate_steps(
        self, bits: Allocation | int | Mapping[str, int | Bits], recipe: str | None = None
    ) -> Iterator[Progress]:
        """Measure bits on the evaluation images, a batch at a time; every `result` is an `Evaluation` so far.

        Args:
            bits: An allocation, bits per layer or one bit-width for all.
            recipe: Another recipe than the study's; one that serves a single setting takes one bit-width for all.

        Raises:
            BitWidthError: A bit-width or layer name is not possible.
            CalibrationError: The recipe is unknown, or cannot serve these bits.
        """
        recipe = recipe or self.settings.recipe
        resolved = self.resolved(bits)
        if recipe == self.settings.recipe and not self.engine.is_here and not self.measures_by_itself:
            yield from (replace(step, result=None) for step in self.evaluations_steps([bits]))

        def predictor() -> Generator[Progress, None, Predictor]:
            if all(pair == (FULL_PRECISION, FULL_PRECISION) for pair in resolved.values()):
                return self.device_graph
            return (yield from self._quantized_steps(recipe, bits, resolved))

        yield from self._measured_steps(self._evaluation_key(recipe, resolved), predictor)

    def evaluations_steps(self, many: Sequence[Allocation | int | Mapping[str, int | Bits]]) -> Iterator[Progress]:
        """Measure several settings, on the engine of the study side by side; the last result is their evaluations.

        Args:
            many: Each as in `evaluate_steps`.

        Raises:
            BitWidthError: A bit-width or layer name is not possible.
            EngineError: The engine cannot be used.
        """
        if not self.engine.is_here:
            yield from self._calibrated_steps()
            yield from self._engine_evaluations({self._own_key(bits): self.resolved(bits) for bits in many})
        found, each = [], len(self.evaluation_images)
        for place, bits in enumerate(many):
            for step in self.evaluate_steps(bits) if self.engine.is_here else self._here.evaluate_steps(bits):
                done = step.done if step.result is not None else 0  # a calibration counts its layers
                yield Progress(place * each + done, len(many) * each, f"setting {place + 1}: {step.doing}")
            found.append(step.result)
        yield Progress(len(many) * each, len(many) * each, "evaluation", found)

    @property
    def _here(self) -> Self:
        return self.with_engine(ThisProcess())

    def _own_key(self, bits: Allocation | int | Mapping[str, int | Bits]) -> str:
        return self._evaluation_key(self.settings.recipe, self.resolved(bits))

    def _engine_evaluations(self, settings: Mapping[str, BitsPerLayer]) -> Iterator[Progress]:
        """Measure what is missing of settings by key, leaving out those that another session is at."""
        images, reference, total = self.evaluation_images, self._reference_logits(), len(self.evaluation_images)
        claims: dict[str, str] = {}
        try:
            parts = []
            for key, resolved in settings.items():
                missing = _missing_parts(self.store.items(key), total)
                if missing and (claim := self.store.claim(key, WORK)) is not None:
                    claims[key] = claim
                    parts += [(key, resolved, part) for part in missing]
            done = total * len(settings) - sum(part.stop - part.start for *_, part in parts)
            tasks = [
                EvaluationPart(
                    key,
                    resolved,
                    part.start,
                    self.sent(images.pixels[part]),
                    self.sent(reference[part]),
                    self.class_subset,
                )
                for key, resolved, part in parts
            ]
            for found in self.engine.results(partial(evaluator, self._worker_calibration()), tasks):
                stop = found.start + len(found.predicted)
                row = {"predicted": found.predicted, "image_kl": found.image_kl}
                self.store.put(found.key, f"{_BATCH} {found.start} to {stop}", row)
                for claim in claims.values():
                    self.store.renew(claim)
                done += len(found.predicted)
                yield Progress(done, total * len(settings), f"{done} of {total * len(settings)} images")
        finally:
            for claim in claims.values():
                self.store.release(claim)

    def _measured_steps(
        self, key: str, predictor: Callable[[], Generator[Progress, None, Predictor]]
    ) -> Iterator[Progress]:
        """Measure what `predictor` returns on the evaluation images, going on from what is saved under a key."""
        images, total = self.evaluation_images, len(self.evaluation_images)

        def progress() -> Progress:
            return Progress(_images_in(self.store.items(key)), total, "evaluation")

        def run() -> Iterator[Progress]:
            predict = yield from predictor()
            so_far = self._saved_evaluation(key)
            start = 0 if so_far is None else so_far.images
            batches = evaluate_steps(
                predict,
                images.pixels,
                images.labels,
                self._reference_logits(),
                self._most_images,
                so_far,
                self.class_subset,
                self.device,
            )
            for found in batches:
                row = {"predicted": found.predicted[start:], "image_kl": found.image_kl[start:]}
                self.store.put(key, f"{_BATCH} {start} to {found.images}", row)
                start = found.images
                yield Progress(found.images, total, f"{found.images} of {total} images", found)

        yield from once(self.store, key, progress, run)
        yield Progress(total, total, "evaluation", self._saved_evaluation(key))

    def evaluation_progress(
        self, bits: Allocation | int | Mapping[str, int | Bits], recipe: str | None = None
    ) -> Progress:
        """Return how many evaluation images are measured and saved at these bits."""
        key = self._evaluation_key(recipe or self.settings.recipe, self.resolved(bits))
        return Progress(_images_in(self.store.items(key)), len(self.evaluation_images), "evaluation")

    def _quantized_steps(
        self, recipe: str, bits: Allocation | int | Mapping[str, int | Bits], resolved: BitsPerLayer
    ) -> Generator[Progress, None, Predictor]:
        """Calibrate where needed and return the model at these bits; only the study's own recipe is saved."""
        if recipe == self.settings.recipe:
            yield from self._calibrated_steps()
            calibration = self.calibration()
            checkpoints = self.remembered("checkpoints", lambda: Checkpoints(CHECKPOINT_BYTES))
            quantized = quantize(calibration, resolved, checkpoints=checkpoints).on(self.device)
            return partial(_run_on_evaluation_images, quantized, checkpoints)
        setting = None
        if find_recipe(recipe).one_setting:
            if not isinstance(bits, int):
                raise CalibrationError(
                    f"Recipe {recipe} is calibrated for one bit setting: give one bit-width for all."
                )
            setting = (bits, bits)
        widths = sorted({width for pair in resolved.values() for width in pair} - {FULL_PRECISION})
        pixels, total = self.calibration_pixels, len(self.layers)
        layers: dict[str, LayerCalibration] = {}
        graph = self.precise_graph
        for piece in calibrate_steps(graph, pixels, recipe, setting, widths):
            layers[piece.layer] = piece
            yield Progress(len(layers), total, f"calibration of {piece.layer}")
        return quantize(Calibration(graph, recipe, layers, pixels, setting), resolved).on(self.device)

    @property
    def _most_images(self) -> int:
        """Evaluation images at once."""
        return images_at_once(self.device_graph, BATCH_SIZE)

    @property
    def measures_by_itself(self) -> bool:
        """Whether measuring an allocation takes seconds, so that it need not be asked for."""
        return self.graph.macs * len(self.evaluation_images) <= QUICK_MACS

    def evaluation_estimate(self) -> float:
        """Return about how many seconds measuring one allocation takes here, from a timed run of a few images."""
        seconds = self.seconds_per_image()
        return seconds * (
            QUANTIZED_PASS * len(self.evaluation_images) + COMPENSATION_PASSES * len(self.calibration_pixels)
        ) + COMPENSATION_LAYER_SECONDS * len(self.layers)

    @property
    def reference_predictions(self) -> list[int]:
        """Top-1 class of every evaluation image in full precision, among the classes that the settings say."""
        return top1(self._reference_logits(), self.class_subset)

    def picture(self, index: int) -> np.ndarray:
        """Return an evaluation image as a screen shows it, `[H, W, C]`, 0 to 1."""
        return self.evaluation_images.display(index, index + 1)[0].numpy()

    def evaluate(self, bits: Allocation | int | Mapping[str, int | Bits]) -> Evaluation:
        """Return accuracy, agreement and KL on all evaluation images, measuring what is not saved."""
        *_, last = self.evaluate_steps(bits)
        return last.result

    def resolved(self, bits: Allocation | int | Mapping[str, int | Bits]) -> BitsPerLayer:
        """Return (weight bits, activation bits) for every layer."""
        return resolve_bits(self.layers, bits.bits if isinstance(bits, Allocation) else bits)

    def _reference_logits(self) -> Tensor:
        """Full-precision logits of the evaluation images `[N, classes]`."""
        if "reference" not in self.memory:  # without the lock, which others need meanwhile
            key = self._key("evaluation", "full precision", self._evaluation_part)
            saved = self.store.tensors(key, "logits")
            if saved:
                logits = saved[0]["logits"]
            else:
                logits = self._full_precision_logits()
                self.store.put_tensors(key, "logits", {"logits": logits})
            self.memory["reference"] = logits
        return self.memory["reference"]

    @property
    def _reference_answers(self) -> ReferenceAnswers:
        logits = self._reference_logits()
        labels, among = self.evaluation_images.labels, self.class_subset
        return self.remembered("reference answers", lambda: reference_answers(logits, labels, among))

    @property
    def notes(self) -> tuple[Note, ...]:
        """What to know beside every number of this study: what was assumed, left out or measured on too little.

        What the answers in full precision tell is among them once the evaluation images have been run.
        """
        return (*super().notes, *(self._reference_answers.notes if "reference" in self.memory else ()))

    def _full_precision_logits(self) -> Tensor:
        graph, pixels = self.device_graph, self.evaluation_images.pixels

        def run(part: slice) -> Tensor:
            with torch.no_grad():
                return graph(pixels[part]).cpu()

        return torch.cat(list(in_parts(run, len(pixels), self._most_images, self.device, "run in full precision")))

    @cached_property
    def _evaluation_part(self) -> str:
        return self.evaluation_images.fingerprint

    def _evaluation_key(self, recipe: str, resolved: BitsPerLayer) -> str:
        parts = [self.settings.calibration_images, self._evaluation_part, _bits_item(resolved)]
        if self.class_subset is not None:
            parts.append(list(self.class_subset))
        return self._key("evaluation", recipe, *parts)

    def saved_evaluation(self, bits: Allocation | int | Mapping[str, int | Bits]) -> Evaluation | None:
        """Return what was measured of bits on all evaluation images, None if they were not, without measuring."""
        return self._whole_evaluation(self._evaluation_key(self.settings.recipe, self.resolved(bits)))

    def _whole_evaluation(self, key: str) -> Evaluation | None:
        """Return what is saved of an evaluation of all images; None for a part of them."""
        found = self._saved_evaluation(key)
        return found if found is not None and found.images == found.total else None

    def _saved_evaluation(self, key: str) -> Evaluation | None:
        """Return what is saved of an evaluation, which may be a part of the images; None for nothing."""
        rows = self.store.rows(key)
        batches = _batches(rows)
        if not batches:
            return None
        images, total = self.evaluation_images, len(self.evaluation_images)
        expected = self.reference_predictions
        labels = None if images.labels is None else images.labels.tolist()
        found = Evaluation(0, total, None if labels is None else 0, 0, 0.0, reference=self._reference_answers)
        for item, part in batches.items():
            row = rows[item]
            truth = None if labels is None else labels[part]
            found = extended(found, row["predicted"], row["image_kl"], expected[part], truth)
        return found

    # Quantizers

    def operand_roles(self, layer: str) -> tuple[str, ...]:
        """Return what the activation operands of a layer are: one of a layer with a weight, two of a product."""
        return roles(self.layer(layer))

    def compare_quantizers(self, layer: str, operand: int = 0) -> OperandComparison:
        """Return every quantizer of the menu fitted to one operand, quantized alone, at every bit-width.

        Args:
            layer: Name of the layer.
            operand: Which of `operand_roles`.
        """
        return self._operand_comparison(layer, operand)

    def recipe_steps(self, bits: int) -> Iterator[Progress]:
        """Measure full precision and every recipe at uniform bits on the evaluation images, one after the other.

        Every `result` is what is finished so far: an `Evaluation` by recipe, and by `full precision`.

        Raises:
            BitWidthError: The bit-width is not 2 to 8.
        """
        found = self.saved_recipes(bits)
        images, layers = len(self.evaluation_images), len(self.layers)
        settings = {"full precision": FULL_PRECISION} | dict.fromkeys(reversed(RECIPES), bits)
        each, total = layers + images, len(settings) * (layers + images)
        for place, (name, width) in enumerate(settings.items()):
            if name in found:
                continue
            recipe = name if name in RECIPES else None
            for step in self.evaluate_steps(width, recipe):
                # Without a result it is a step of the calibration, which comes first.
                inside = step.done if step.result is None else layers + step.done
                if inside == each:
                    found[name] = step.result
                yield Progress(place * each + inside, total, f"{name}: {step.doing}", dict(found))
        yield Progress(total, total, "recipes", found)

    def saved_recipes(self, bits: int) -> dict[str, Evaluation]:
        """Return what `recipe_steps` has finished at these bits, without measuring anything."""
        if bits not in BIT_WIDTHS:
            raise BitWidthError(f"{bits!r} bits are not possible: use {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}.")
        found = {}
        for name, recipe, width in (
            ("full precision", self.settings.recipe, FULL_PRECISION),
            *((recipe, recipe, bits) for recipe in reversed(RECIPES)),
        ):
            saved = self._whole_evaluation(self._evaluation_key(recipe, self.resolved(width)))
            if saved is not None:
                found[name] = saved
        return found

    @property
    def recipes(self) -> dict[str, str]:
        """Descriptions of all recipes by name, the plainest first."""
        return {name: RECIPES[name].description for name in reversed(RECIPES)}

    @cached_property
    def _operand_comparison(self) -> Callable[[str, int], OperandComparison]:
        def compare(layer: str, operand: int) -> OperandComparison:
            pixels = self.calibration_pixels
            fisher = self.remembered("fisher", lambda: fisher_diagonals(self.graph, pixels))
            return compare_quantizers(self.graph, self.layer(layer), operand, pixels, fisher[layer])

        return lru_cache(OPERAND_COMPARISONS)(compare)

    # Packing

    def quantized(self, bits: Allocation | int | Mapping[str, int | Bits]) -> QuantizedModel:
        """Return the quantized model, on the CPU."""
        return quantize(self.calibration(), self.resolved(bits)).on(torch.device("cpu"))

    def packed(self, bits: Allocation | int | Mapping[str, int | Bits]) -> Packed:
        """Return the quantized model as the content of one file, of the very size that its cost says.

        Raises:
            PackingError: The model cannot be packed.
        """
        return packed(self.quantized(bits), self.model)

    def pack(self, bits: Allocation | int | Mapping[str, int | Bits], path: str | Path) -> Packed:
        """Write the quantized model as one file, atomically; `load_packed` reads it.

        Raises:
            PackingError: The model cannot be packed or the file cannot be written.
        """
        found = self.packed(bits)
        found.write(path)
        return found

    def evaluate_packed_steps(self, path: str | Path) -> Iterator[Progress]:
        """Measure a packed model on the evaluation images, beside the full-precision model it was made from.

        Raises:
            PackingError: The file cannot be loaded, or was made from another model than this study's.
        """
        if packed_source(path).fingerprint != self.graph.fingerprint:
            raise PackingError(
                f"{path} was not made from {self.model.name} as it is here. Open the model that it was packed from: "
                "the same name, checkpoint and outlier amplification."
            )
        images = self.evaluation_images
        predict = load_packed(path, self.model).on(self.device)
        reference, among = self._reference_logits(), self.class_subset
        steps = evaluate_steps(
            predict, images.pixels, images.labels, reference, self._most_images, None, among, self.device
        )
        for so_far in steps:
            yield Progress(so_far.images, len(images), f"{so_far.images} of {len(images)} images", so_far)


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


def _batches(items: Iterable[str]) -> dict[str, slice]:
    """Return which images the saved batches of an evaluation cover, as far as they do without a gap."""
    parts = {}
    for item in items:
        start, stop = map(int, item.removeprefix(_BATCH).split(" to "))
        parts[start] = (item, stop)
    found, position = {}, 0
    while position in parts:
        item, stop = parts[position]
        found[item] = slice(position, stop)
        position = stop
    return found


def _images_in(items: Iterable[str]) -> int:
    """Return how many images the saved batches of an evaluation cover from the first one on."""
    return max((part.stop for part in _batches(items).values()), default=0)


def _missing_parts(items: Iterable[str], total: int) -> list[slice]:
    """Return the images that no saved batch covers, in parts that a worker measures at once."""
    covered = np.zeros(total, dtype=bool)
    for item in items:
        covered[slice(*map(int, item.removeprefix(_BATCH).split(" to ")))] = True
    parts: list[slice] = []
    for image in np.flatnonzero(~covered).tolist():
        if parts and parts[-1].stop == image and image - parts[-1].start < PART_IMAGES:
            parts[-1] = slice(parts[-1].start, image + 1)
        else:
            parts.append(slice(image, image + 1))
    return parts


def _bits_item(resolved: BitsPerLayer) -> str:
    """Return what an evaluation of these bits is saved under."""
    return fingerprint({name: list(pair) for name, pair in resolved.items()})
