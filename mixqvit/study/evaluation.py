"""The evaluation stage of a study: any bits, every recipe, packed files."""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mixqvit.allocation import Allocation
from mixqvit.bits import BIT_WIDTHS, FULL_PRECISION, Bits, BitsPerLayer, resolve_bits
from mixqvit.comparison import OperandComparison, compare_quantizers
from mixqvit.errors import BitWidthError, CalibrationError, PackingError
from mixqvit.evaluation import BATCH_SIZE, Evaluation, evaluate_steps
from mixqvit.packing import Packed, load_packed, packed, packed_source
from mixqvit.quantization import Calibration, LayerCalibration, QuantizedModel, calibrate_steps, quantize
from mixqvit.quantization.fisher import fisher_diagonals
from mixqvit.quantization.operands import roles
from mixqvit.quantization.recipes import RECIPES, find_recipe
from mixqvit.records import Progress
from mixqvit.store import fingerprint
from mixqvit.study.sensitivity import SensitivityStages

__all__ = ["EvaluationStages"]

# Comparisons of quantizers that are kept: some hundred kilobytes each.
OPERAND_COMPARISONS = 64


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
        key, item = self._evaluation_key(recipe), _bits_item(resolved)
        saved = self.store.rows(key).get(item)
        so_far = Evaluation(**saved) if saved else None
        images = self.evaluation_images
        total = len(images)
        if so_far is None or so_far.images < total:
            predict = self.graph
            if any(pair != (FULL_PRECISION, FULL_PRECISION) for pair in resolved.values()):
                predict = yield from self._quantized_steps(recipe, bits, resolved)
            reference = self._reference_logits()
            batches = evaluate_steps(predict, images.pixels, images.labels, reference, finished=so_far)
            for so_far in batches:
                self.store.put(key, item, asdict(so_far))
                yield Progress(so_far.images, total, f"{so_far.images} of {total} images", so_far)
        self._memory["evaluation", recipe, item] = so_far
        yield Progress(total, total, "evaluation", so_far)

    def _quantized_steps(
        self, recipe: str, bits: Allocation | int | Mapping[str, int | Bits], resolved: BitsPerLayer
    ) -> Generator[Progress, None, QuantizedModel]:
        """Calibrate where needed and return the model at these bits; only the study's own recipe is saved."""
        if recipe == self.settings.recipe:
            if "calibration" not in self._memory:
                yield from (replace(step, result=None) for step in self.calibration_steps())
            return quantize(self.calibration(), resolved)
        setting = None
        if find_recipe(recipe).one_setting:
            if not isinstance(bits, int):
                raise CalibrationError(
                    f"Recipe {recipe} is calibrated for one bit setting: give one bit-width for all."
                )
            setting = (bits, bits)
        widths = sorted({width for pair in resolved.values() for width in pair} - {FULL_PRECISION})
        pixels, total = self._calibration_pixels, len(self.layers)
        layers: dict[str, LayerCalibration] = {}
        for piece in calibrate_steps(self.graph, pixels, recipe, setting, widths):
            layers[piece.layer] = piece
            yield Progress(len(layers), total, f"calibration of {piece.layer}")
        return quantize(Calibration(self.graph, recipe, layers, pixels, setting), resolved)

    def evaluate(self, bits: Allocation | int | Mapping[str, int | Bits]) -> Evaluation:
        """Return accuracy, agreement and KL on all evaluation images, measuring what is not saved."""
        name = ("evaluation", self.settings.recipe, _bits_item(self.resolved(bits)))
        return self._finished(name, lambda: self.evaluate_steps(bits))

    def resolved(self, bits: Allocation | int | Mapping[str, int | Bits]) -> BitsPerLayer:
        """Return (weight bits, activation bits) for every layer."""
        return resolve_bits(self.layers, bits.bits if isinstance(bits, Allocation) else bits)

    def _reference_logits(self) -> Tensor:
        """Full-precision logits of the evaluation images `[N, classes]`."""

        def compute() -> Tensor:
            key = self._key("evaluation", "full precision", self._evaluation_part)
            saved = self.store.tensors(key, "logits")
            if saved:
                return saved[0]["logits"]
            with torch.no_grad():
                batches = self.evaluation_images.pixels.split(BATCH_SIZE)
                logits = torch.cat([self.graph(batch) for batch in batches])
            self.store.put_tensors(key, "logits", {"logits": logits})
            return logits

        return self._remembered("reference", compute)

    @cached_property
    def _evaluation_part(self) -> str:
        return self.evaluation_images.fingerprint

    def _evaluation_key(self, recipe: str) -> str:
        return self._key("evaluation", recipe, self.settings.calibration_images, self._evaluation_part)

    # Quantizers

    def operand_roles(self, layer: str) -> tuple[str, ...]:
        """Return what the activation operands of a layer are: one of a layer with a weight, two of a product."""
        return roles(self._layer(layer))

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
            saved = self.store.rows(self._evaluation_key(recipe)).get(_bits_item(self.resolved(width)))
            if saved and saved["images"] == saved["total"]:
                found[name] = Evaluation(**saved)
        return found

    @property
    def recipes(self) -> dict[str, str]:
        """Descriptions of all recipes by name, the plainest first."""
        return {name: RECIPES[name].description for name in reversed(RECIPES)}

    @cached_property
    def _operand_comparison(self) -> Callable[[str, int], OperandComparison]:
        def compare(layer: str, operand: int) -> OperandComparison:
            pixels = self._calibration_pixels
            fisher = self._remembered("fisher", lambda: fisher_diagonals(self.graph, pixels))
            return compare_quantizers(self.graph, self._layer(layer), operand, pixels, fisher[layer])

        return lru_cache(OPERAND_COMPARISONS)(compare)

    # Packing

    def packed(self, bits: Allocation | int | Mapping[str, int | Bits]) -> Packed:
        """Return the quantized model as the content of one file, of the very size that its cost says.

        Raises:
            PackingError: The model cannot be packed.
        """
        resolved = self.resolved(bits)
        return packed(quantize(self.calibration(), resolved), self.model)

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
        predict = load_packed(path, self.model)
        for so_far in evaluate_steps(predict, images.pixels, images.labels, self._reference_logits()):
            yield Progress(so_far.images, len(images), f"{so_far.images} of {len(images)} images", so_far)


def _bits_item(resolved: BitsPerLayer) -> str:
    """Return what an evaluation of these bits is saved under."""
    return fingerprint({name: list(pair) for name, pair in resolved.items()})
