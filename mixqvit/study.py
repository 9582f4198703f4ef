"""A study: one model, its images and settings. It ties the stages together and saves every finished piece.

Every long stage is a generator of `Progress`; started again, it goes on from what is saved. Results leave a study as
numbers and NumPy arrays, so that pages and the command line need no torch.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import timm
import torch
from torch import Tensor

from mixqvit import outliers
from mixqvit.allocation import Allocation, Budget, allocate, bitops_ceiling, largest_uniform, predicted_harm
from mixqvit.bits import BIT_WIDTHS, FULL_PRECISION, Bits, BitsPerLayer, resolve_bits
from mixqvit.channel_study import ChannelStudy
from mixqvit.comparison import OperandComparison, compare_quantizers
from mixqvit.costs import Storage, cost
from mixqvit.datasets import load_images
from mixqvit.errors import (
    BitWidthError,
    CalibrationError,
    ImageError,
    MixQViTError,
    PackingError,
    UnsupportedOperationError,
)
from mixqvit.evaluation import BATCH_SIZE, Evaluation, evaluate_steps
from mixqvit.graph import Graph, trace
from mixqvit.layers import Layer
from mixqvit.packing import Packed, load_packed, packed, packed_source, storage
from mixqvit.quantization import Calibration, LayerCalibration, QuantizedModel, calibrate_steps, quantize
from mixqvit.quantization.fisher import fisher_diagonals
from mixqvit.quantization.operands import roles
from mixqvit.quantization.recipes import RECIPES, find_recipe
from mixqvit.quantization.saving import from_tensors, to_tensors
from mixqvit.records import ImageRelevance, Importance, Progress, Settings
from mixqvit.relevance import propagate, propagate_steps, transformer_attribution
from mixqvit.relevance.propagation import in_precision
from mixqvit.sensitivity import SensitivityCell, sensitivity_steps
from mixqvit.store import Store, code_version, fingerprint
from mixqvit.zoo import Model, load_model

__all__ = ["ImageRelevance", "Importance", "Progress", "Settings", "Study"]

Result = TypeVar("Result")

# Comparisons of quantizers that are kept: some hundred kilobytes each.
OPERAND_COMPARISONS = 64

# A stage's results are found again only by the very code that made them.
_SHARED_CODE = ("study.py", "graph.py", "layer_table.py", "layers.py", "bits.py")
_CODE = {
    "relevance": ("relevance",),
    "calibration": ("quantization",),
    "sensitivity": ("quantization", "sensitivity.py", "evaluation.py"),
    "evaluation": ("quantization", "evaluation.py"),
}


class Study:
    """Everything about one model on its images under one set of settings.

    Results are kept in memory after the first use and never changed, so one study can serve several browser sessions.
    """

    def __init__(
        self,
        model: Model | str,
        images: str | None = None,
        settings: Settings | None = None,
        store: Store | None = None,
    ) -> None:
        """Open a study; nothing long is computed yet.

        Args:
            model: A loaded model, or a name for `load_model`.
            images: `digits` or a folder with one sub-folder per class; by default the images that belong to the model.
            settings: What to compute with.
            store: Where to save; the user's cache folder by default.

        Raises:
            ModelError, ImageError, StoreError: What was named cannot be opened.
            CalibrationError: Unknown recipe, or one that serves a single bit setting only.
        """
        self.settings = settings or Settings()
        self.store = store or Store()
        self.model = load_model(model) if isinstance(model, str) else model
        source = images or self.model.images
        if source is None:
            raise ImageError(f"Say which images to use with {self.model.name}: a folder with one sub-folder per class.")
        self.calibration_images = load_images(source, "calibration", self.model)
        self.evaluation_images = load_images(source, "evaluation", self.model, self.settings.evaluation_images)
        recipe = find_recipe(self.settings.recipe)
        if recipe.one_setting:
            raise CalibrationError(
                f"Recipe {recipe.name} is calibrated for one bit setting, so a study cannot compare bits with it. "
                "Use recipe mix-qvit, or mixqvit.calibrate from Python."
            )
        self._lock = threading.RLock()
        self._memory: dict[Any, Any] = {}

    @property
    def graph(self) -> Graph:
        """The traced model, with amplified outliers if the settings ask for them."""

        def compute() -> Graph:
            example = self.calibration_images.pixels[:1]
            module, settings = self.model.module, self.settings
            if settings.outlier_factor != 1:
                module = outliers.amplify_outliers(module, example, settings.outlier_factor, settings.outlier_channels)
            return trace(module, example)

        return self._remembered("graph", compute)

    @property
    def _double_precision_graph(self) -> Graph:
        """Relevance divides by outputs near zero and needs double precision; converted once."""
        return self._remembered("double precision graph", lambda: in_precision(self.graph, torch.float64))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The table of quantized layers, in network order."""
        return self.graph.layers

    @property
    def storage(self) -> Storage:
        """What the size of a packed model depends on beside its layers."""
        return self._remembered("storage", lambda: storage(self.graph, self.settings.recipe, self.model))

    # Relevance

    def relevance_steps(self) -> Iterator[Progress]:
        """Compute layer importance, a batch of images at a time."""
        key = self._key("relevance", self.settings.rules, self.settings.measure, self.settings.analysis_images)
        pixels = self._analysis_pixels
        total = len(pixels)
        saved = self.store.rows(key)
        shares: list[list[float]] = []
        while (batch := saved.get(f"images from {len(shares)}")) is not None:
            shares += batch
        if len(shares) < total:
            rules, measure, graph = self.settings.rules, self.settings.measure, self._double_precision_graph
            batches = propagate_steps(graph, pixels[len(shares) :], rules=rules, measure=measure, keep=())
            for batch in batches:
                rows = torch.stack([batch.shares[layer.name] for layer in self.layers], dim=1).tolist()
                self.store.put(key, f"images from {len(shares)}", rows)
                shares += rows
                yield Progress(len(shares), total, f"relevance of {len(shares)} of {total} images")
        by_layer = np.array(shares)
        names = [layer.name for layer in self.layers]
        importance = Importance(
            dict(zip(names, by_layer.mean(axis=0).tolist(), strict=True)),
            dict(zip(names, by_layer.T.tolist(), strict=True)),
        )
        self._memory["importance"] = importance
        yield Progress(total, total, "relevance", importance)

    def relevance(self) -> Importance:
        """Return layer importance Ω, computing what is missing."""
        return self._finished("importance", self.relevance_steps)

    def image_relevance(self, index: int, target: int | None = None) -> ImageRelevance:
        """Explain one evaluation image.

        Args:
            index: Position among the evaluation images.
            target: Class to explain; the predicted one by default.
        """
        images = self.evaluation_images
        if not 0 <= index < len(images):
            raise ImageError(f"There is no evaluation image {index}; they are numbered 0 to {len(images) - 1}.")
        pixels = images.pixels[index : index + 1]
        with torch.no_grad():
            logits = self.graph(pixels)
        predicted = int(logits.argmax())
        target = predicted if target is None else target
        if not 0 <= target < self.graph.classes:
            raise MixQViTError(f"There is no class {target}; they are numbered 0 to {self.graph.classes - 1}.")
        found = propagate(self._double_precision_graph, pixels, target, rules=self.settings.rules, keep=())
        return ImageRelevance(
            image=images.display(index, index + 1)[0].numpy(),
            name=images.names[index],
            label=None if images.labels is None else int(images.labels[index]),
            predicted=predicted,
            target=target,
            probabilities=logits.softmax(dim=1)[0].numpy(),
            pixels=found.pixels[0].numpy(),
            attribution=self._attribution(pixels, target),
        )

    def _attribution(self, pixels: Tensor, target: int) -> np.ndarray | None:
        try:
            patches = transformer_attribution(self._double_precision_graph, pixels, target)[0]
        except UnsupportedOperationError:  # no class token whose attention could be followed
            return None
        embedding = next(layer for layer in self.layers if layer.kind == "patch_embed")
        return patches.reshape(embedding.output_shape[2:]).numpy()

    # Calibration

    def calibration_steps(self) -> Iterator[Progress]:
        """Fit the quantizers, a layer at a time."""
        settings = self.settings
        key = self._key("calibration", settings.recipe, settings.calibration_images)
        found = {layer.name: self.store.tensors(key, layer.name) for layer in self.layers}
        finished = {name: from_tensors(name, *saved) for name, saved in found.items() if saved}
        pixels = self.calibration_images.subset(settings.calibration_images).pixels
        total = len(self.layers)
        if len(finished) < total:
            for piece in calibrate_steps(self.graph, pixels, settings.recipe, finished=finished):
                self.store.put_tensors(key, piece.layer, *to_tensors(piece))
                finished[piece.layer] = piece
                yield Progress(len(finished), total, f"calibration of {piece.layer}")
        ordered: Mapping[str, LayerCalibration] = {layer.name: finished[layer.name] for layer in self.layers}
        self._memory["calibration"] = Calibration(self.graph, settings.recipe, ordered, pixels)
        yield Progress(total, total, "calibration", self._memory["calibration"])

    def calibration(self) -> Calibration:
        """Return the calibration, computing what is missing."""
        return self._finished("calibration", self.calibration_steps)

    # Sensitivity

    def sensitivity_steps(self, operands: str = "both") -> Iterator[Progress]:
        """Measure the sensitivity of every layer at every bit-width, a cell at a time.

        Args:
            operands: `both`, `weights` or `activations`.
        """
        key = self._sensitivity_key(operands)
        saved = self.store.rows(key)
        cells = {tuple(item.split("@")): harm for item, harm in saved.items()}
        harms = {(name, int(bits)): harm for (name, bits), harm in cells.items()}
        applicable = [layer for layer in self.layers if operands != "weights" or not layer.is_matmul]
        total = len(applicable) * len(BIT_WIDTHS)
        if len(harms) < total:
            if "calibration" not in self._memory:
                yield from (replace(step, result=None) for step in self.calibration_steps())
            calibration = self.calibration()
            for cell in sensitivity_steps(calibration, self._analysis_pixels, operands, finished=set(harms)):
                self.store.put(key, f"{cell.layer}@{cell.bits}", cell.harm)
                harms[cell.layer, cell.bits] = cell.harm
                yield Progress(len(harms), total, f"{cell.layer} at {cell.bits} bits", cell)
        table = {layer.name: {bits: harms[layer.name, bits] for bits in BIT_WIDTHS} for layer in applicable}
        self._memory["sensitivity", operands] = table
        yield Progress(total, total, "sensitivity", table)

    def sensitivity(self, operands: str = "both") -> dict[str, dict[int, float]]:
        """Return Λ by layer name and bit-width, computing what is missing."""
        return self._finished(("sensitivity", operands), lambda: self.sensitivity_steps(operands))

    def saved_sensitivity(self, operands: str = "both") -> list[SensitivityCell]:
        """Return the cells that are saved already, without computing any."""
        cells = []
        for item, harm in self.store.rows(self._sensitivity_key(operands)).items():
            name, bits = item.split("@")
            cells.append(SensitivityCell(name, operands, int(bits), harm))
        return cells

    def _sensitivity_key(self, operands: str) -> str:
        settings = self.settings
        return self._key(
            "sensitivity", settings.recipe, settings.calibration_images, settings.analysis_images, operands
        )

    # Allocation

    def allocate(
        self,
        average_bits: float | None = None,
        size_bytes: int | None = None,
        bitops: float | None = None,
        cap_bitops: bool = True,
        gamma: float = 1.0,
        pinned: Mapping[str, int | Bits] | None = None,
    ) -> Allocation:
        """Return the best allocation within the given ceilings; arguments and errors as in `allocation.allocate`.

        Relevance and sensitivity are computed first where they are missing.
        """
        budget = Budget(average_bits, size_bytes, bitops, cap_bitops)
        return allocate(
            self.layers,
            self.sensitivity(),
            budget,
            self.storage,
            self.relevance().mean,
            gamma,
            pinned,
        )

    def uniform(self, bits: int, gamma: float = 1.0) -> Allocation:
        """Return the uniform allocation at `bits` with its cost and predicted harm."""
        return self.allocation(resolve_bits(self.layers, bits), gamma)

    def allocation(self, bits: Mapping[str, int | Bits], gamma: float = 1.0) -> Allocation:
        """Return any bits per layer as an allocation with its cost and predicted harm."""
        resolved = resolve_bits(self.layers, bits)
        harm = predicted_harm(self.layers, resolved, self.sensitivity(), self.relevance().mean, gamma)
        return Allocation(resolved, harm, cost(self.layers, resolved, self.storage))

    def uniform_beside(self, budget: Budget, gamma: float = 1.0) -> Allocation | None:
        """Return the largest uniform allocation within every ceiling of a budget; None if none fits."""
        width = largest_uniform(self.layers, budget, self.storage, BIT_WIDTHS)
        return None if width is None else self.uniform(width, gamma)

    def bitops_ceiling(self, budget: Budget) -> float | None:
        """Return the BitOps that a budget allows; None for any number."""
        return bitops_ceiling(self.layers, budget)

    # Evaluation

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

    # Channels

    @cached_property
    def channels(self) -> ChannelStudy:
        """The channels of post-LayerNorm inputs: which are outliers, and what quantization makes of them."""
        return ChannelStudy(self.graph, self._calibration_pixels, self.evaluation_images)

    def _layer(self, name: str) -> Layer:
        if name not in self.graph.by_name:
            raise MixQViTError(f"There is no layer {name!r} in this model.")
        return self.graph.by_name[name]

    @property
    def _calibration_pixels(self) -> Tensor:
        return self.calibration_images.subset(self.settings.calibration_images).pixels

    # Shared

    @cached_property
    def _analysis_pixels(self) -> Tensor:
        return self.calibration_images.subset(self.settings.analysis_images).pixels

    @cached_property
    def _evaluation_part(self) -> str:
        return self.evaluation_images.fingerprint

    def _evaluation_key(self, recipe: str) -> str:
        return self._key("evaluation", recipe, self.settings.calibration_images, self._evaluation_part)

    def _key(self, stage: str, *parts: Any) -> str:
        code = (code_version(*_SHARED_CODE, *_CODE[stage]), torch.__version__, timm.__version__)
        return fingerprint(stage, *code, self.graph.fingerprint, self.calibration_images.fingerprint, *parts)

    def _remembered(self, name: Any, compute: Callable[[], Result]) -> Result:
        with self._lock:
            if name not in self._memory:
                self._memory[name] = compute()
            return self._memory[name]

    def _finished(self, name: Any, steps: Callable[[], Iterator[Progress]]) -> Any:
        """Return a remembered result, running its stage to the end if there is none."""
        with self._lock:
            if name not in self._memory:
                for _ in steps():
                    pass
            return self._memory[name]


def _bits_item(resolved: BitsPerLayer) -> str:
    """Return what an evaluation of these bits is saved under."""
    return fingerprint({name: list(pair) for name, pair in resolved.items()})
