"""Quantization-aware training in a study: trained at any bits, resumed after a stop, measured and packed."""

import json
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mixqvit.allocation.costs import Cost, bitops, cost
from mixqvit.errors import BitWidthError, TrainingError
from mixqvit.images.training_images import TrainingImages
from mixqvit.images.training_sources import load_training_images_steps
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, Bits, BitsPerLayer
from mixqvit.network.query_key import is_merged, merge_query_key, original_layer
from mixqvit.packing.model import Packed, packed, storage
from mixqvit.progress import Progress
from mixqvit.quantization.model import QuantizedModel
from mixqvit.study.allocation import AllocationStages
from mixqvit.study.claims import once
from mixqvit.study.evaluation import Predictor
from mixqvit.tasks.evaluation import Evaluation
from mixqvit.training.machine import Machine, open_machine
from mixqvit.training.quantization_aware import Checkpoint, Step, TrainingData, restored, run_of, train_steps
from mixqvit.training.settings import StepSizes, TrainingRun, TrainingSettings

__all__ = ["FIRST_AND_LAST_BITS", "Training", "TrainingStages"]

FIRST_AND_LAST_BITS = 8
"""Bits of patch embedding and head in the settings that are made for training: both operands, outside the average."""

_CHECKPOINT, _RUN = "checkpoint", "run"


@dataclass(frozen=True)
class Training:
    """A training that is saved, finished or not.

    Attributes:
        bits: (weight bits, activation bits) per layer of the model.
        settings: How it trains.
        source: Where its images are from; None for the study's own.
        run: Its finished epochs.
        average_bits: Weight bits, averaged over the weights between patch embedding and head.
    """

    bits: BitsPerLayer
    settings: TrainingSettings
    source: str | None
    run: TrainingRun
    average_bits: float


class TrainingStages(AllocationStages):
    """Quantized models that are trained with their quantizers in the loop."""

    def first_last_uniform(self, bits: int) -> BitsPerLayer:
        """Return the same bits for every layer but patch embedding and head, which keep `FIRST_AND_LAST_BITS`.

        Raises:
            BitWidthError: The bit-width is not 2 to 8.
        """
        if bits not in BIT_WIDTHS:
            raise BitWidthError(f"{bits!r} bits are not possible: use {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}.")
        kept = (FIRST_AND_LAST_BITS, FIRST_AND_LAST_BITS)
        return {layer.name: kept if _is_first_or_last(layer) else (bits, bits) for layer in self.layers}

    def first_last_request(self, average_bits: float) -> dict[str, Any]:
        """Return keywords of `allocate` for an average over all layers but patch embedding and head.

        Those keep `FIRST_AND_LAST_BITS`; model size and BitOps are at most those of uniform bits of that average,
        between two bit-widths in proportion.

        Raises:
            BitWidthError: The average is not 2 to 8.
        """
        if not BIT_WIDTHS[0] <= average_bits <= BIT_WIDTHS[-1]:
            raise BitWidthError(
                f"An average of {average_bits} bits is not possible: use {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}."
            )
        below, above = (self.first_last_uniform(round_to(average_bits)) for round_to in (math.floor, math.ceil))
        part = average_bits - math.floor(average_bits)
        sizes = [cost(self.layers, bits, self.storage).size_bytes for bits in (below, above)]
        operations = sum(
            bitops(layer, below[layer.name]) if _is_first_or_last(layer) else layer.macs * average_bits**2
            for layer in self.layers
        )
        pinned = {layer.name: FIRST_AND_LAST_BITS for layer in self.layers if _is_first_or_last(layer)}
        return {
            "size_bytes": math.floor(sizes[0] + part * (sizes[1] - sizes[0])),
            "bitops": operations + self.storage.full_precision_bitops,
            "pinned": pinned,
        }

    def inner_average_bits(self, bits: BitsPerLayer) -> float:
        """Return the weight bits, averaged over the weights between patch embedding and head."""
        inner = [layer for layer in self.layers if not _is_first_or_last(layer)]
        return sum(layer.parameters * bits[layer.name][0] for layer in inner) / sum(layer.parameters for layer in inner)

    def training_images_steps(self, source: str | None = None) -> Iterator[Progress]:
        """Load the images to train on; the last result is the `TrainingImages`.

        Args:
            source: As for `load_image_sets`; None for the study's own, without those that calibrate or evaluate.

        Raises:
            ImageError: There are none, or they cannot be read.
        """
        name = ("training images", source)
        if name not in self._memory:
            own = self.image_sets.evaluation.source
            for step in load_training_images_steps(source or own, self.model, self.image_sets):
                yield step
            self._memory[name] = step.result
        count = len(self._memory[name])
        yield Progress(count, count, f"{count:,} training images", self._memory[name])

    def training_steps(
        self, bits: Mapping[str, int | Bits], settings: TrainingSettings | None = None, source: str | None = None
    ) -> Iterator[Progress]:
        """Train at the given bits, from the last saved epoch on; every `result` is a `TrainingRun` so far.

        The epochs are saved one by one. Several processes started together (`accelerate launch`) train together.

        Args:
            bits: (weight bits, activation bits) or one number for both, by layer.
            settings: How to train.
            source: As in `training_images_steps`.

        Raises:
            BitWidthError: A bit-width or layer name is not possible.
            TrainingError: The loss is no longer a number, or the training images are not those it began with.
            UnsupportedOperationError: The recipe cannot serve this model.
            ImageError: There are no images to train on.
        """
        settings, resolved = settings or TrainingSettings(), self._trainable(bits)
        key = self._training_key(resolved, settings, source)

        def progress() -> Progress:
            return self.training_progress(resolved, settings, source)

        def run() -> Iterator[Progress]:
            yield from self._trained_steps(key, resolved, settings, source, machine)

        with open_machine(self.device) as machine:
            # Processes that train together work on the same piece at the same time.
            yield from once(self.store, key, progress, run) if machine.processes == 1 else run()
        yield progress()

    def training_progress(
        self, bits: Mapping[str, int | Bits], settings: TrainingSettings | None = None, source: str | None = None
    ) -> Progress:
        """Return how many epochs are trained and saved, without training; the result is the `TrainingRun` or None."""
        settings = settings or TrainingSettings()
        key = self._training_key(self._trainable(bits), settings, source)
        saved = self.store.rows(key).get(_RUN)
        if saved is None:
            return Progress(0, settings.epochs, "training")
        run = run_of(saved)
        total = len(run.epochs) if run.finished else settings.epochs
        return Progress(len(run.epochs), total, "training", run)

    def trainings(self) -> tuple[Training, ...]:
        """Return all trainings of this study that are saved, in the order they were begun."""
        found = []
        for row in self.store.rows(self._trainings_key).values():
            bits = {name: tuple(pair) for name, pair in row["bits"].items()}
            settings, source = TrainingSettings(**row["settings"]), row["source"]
            run = self.training_progress(bits, settings, source).result
            if run is not None:
                found.append(Training(bits, settings, source, run, self.inner_average_bits(bits)))
        return tuple(found)

    def forget_training(
        self, bits: Mapping[str, int | Bits], settings: TrainingSettings | None = None, source: str | None = None
    ) -> None:
        """Forget what is saved of a training, so that it begins again from the start."""
        settings, resolved = settings or TrainingSettings(), self._trainable(bits)
        key = self._training_key(resolved, settings, source)
        for own in (key, self._trained_evaluation_key(key)):
            for item in self.store.items(own):
                self.store.delete(own, item)
        self.store.delete(self._trainings_key, key)
        self._memory.pop("trained", None)

    def trained(
        self, bits: Mapping[str, int | Bits], settings: TrainingSettings | None = None, source: str | None = None
    ) -> QuantizedModel:
        """Return the trained model, on the CPU, with the weights of the epoch with the least validation loss.

        Raises:
            TrainingError: The training is not finished.
        """
        return self._trained(bits, settings or TrainingSettings(), source)[0]

    def trained_weights(
        self, bits: Mapping[str, int | Bits], settings: TrainingSettings | None = None, source: str | None = None
    ) -> dict[str, Tensor]:
        """Return the trained parameters under the names of the model's own; quantized weights as their codes say.

        Raises:
            TrainingError: The training is not finished, or the recipe made another architecture of the model.
        """
        graph = self.trained(bits, settings, source).graph
        if is_merged(graph):
            raise TrainingError(
                "The recipe ofq merges query and key, which is another architecture than the model's: its weights fit "
                "no other model. Train with lsq, or keep the packed file."
            )
        trained = graph.module.state_dict()
        found = {name: trained.get(name, tensor) for name, tensor in self.model.module.state_dict().items()}
        missing = [name for name, _ in graph.module.named_parameters() if name not in found]
        if missing:
            raise TrainingError(
                f"The graph of {self.model.name} has parameters that the model has not ({', '.join(missing[:3])}): the "
                "trained weights cannot be kept as a study. Keep the packed file."
            )
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    def trained_step_sizes(
        self, bits: Mapping[str, int | Bits], settings: TrainingSettings | None = None, source: str | None = None
    ) -> tuple[StepSizes, ...]:
        """Return the step sizes of all operands, as they were fitted and as they are trained.

        Raises:
            TrainingError: The training is not finished.
        """
        return self._trained(bits, settings or TrainingSettings(), source)[1]

    def evaluate_trained_steps(
        self, bits: Mapping[str, int | Bits], settings: TrainingSettings | None = None, source: str | None = None
    ) -> Iterator[Progress]:
        """Measure the trained model on the evaluation images; every `result` is an `Evaluation` so far.

        Raises:
            TrainingError: The training is not finished.
        """
        settings, resolved = settings or TrainingSettings(), self._trainable(bits)

        def predictor() -> Generator[Progress, None, Predictor]:
            yield from ()
            return self.trained(resolved, settings, source).on(self.device)

        key = self._training_key(resolved, settings, source)
        yield from self._measured_steps(self._trained_evaluation_key(key), predictor)

    def saved_trained_evaluation(
        self, bits: Mapping[str, int | Bits], settings: TrainingSettings | None = None, source: str | None = None
    ) -> Evaluation | None:
        """Return what was measured of the trained model on all evaluation images, None if it was not."""
        key = self._training_key(self._trainable(bits), settings or TrainingSettings(), source)
        return self._whole_evaluation(self._trained_evaluation_key(key))

    def trained_cost(self, bits: Mapping[str, int | Bits], settings: TrainingSettings | None = None) -> Cost:
        """Return what the trained model costs: `ofq` merges query and key, which makes other layers.

        Raises:
            UnsupportedOperationError: The recipe cannot serve this model.
        """
        resolved, recipe = self._trainable(bits), (settings or TrainingSettings()).recipe
        graph = self.graph
        if recipe == "ofq":
            graph = self._remembered("merged graph", lambda: merge_query_key(self.graph))
        of_layers = {layer.name: resolved[original_layer(layer.name, self.graph.by_name)] for layer in graph.layers}
        return cost(graph.layers, of_layers, storage(graph, recipe, self.model))

    def packed_trained(
        self, bits: Mapping[str, int | Bits], settings: TrainingSettings | None = None, source: str | None = None
    ) -> Packed:
        """Return the trained model as the content of one file, of the very size that its cost says.

        Raises:
            TrainingError: The training is not finished.
            PackingError: The model cannot be packed.
        """
        return packed(self.trained(bits, settings, source), self.model)

    def pack_trained(
        self,
        bits: Mapping[str, int | Bits],
        path: str | Path,
        settings: TrainingSettings | None = None,
        source: str | None = None,
    ) -> Packed:
        """Write the trained model as one file, atomically; `load_packed` reads it.

        Raises:
            TrainingError: The training is not finished.
            PackingError: The model cannot be packed or the file cannot be written.
        """
        found = self.packed_trained(bits, settings, source)
        found.write(path)
        return found

    def _trained_steps(
        self, key: str, bits: BitsPerLayer, settings: TrainingSettings, source: str | None, machine: Machine
    ) -> Iterator[Progress]:
        """Train and save what is missing."""
        for step in self.training_images_steps(source):
            yield Progress(0, 1, f"training images: {step.doing}")
        images: TrainingImages = step.result
        checkpoint = self._checkpoint(key, images)
        if checkpoint is not None and checkpoint.run.finished:
            self._finish(key, checkpoint, images, machine)
            return
        data = TrainingData(
            images,
            self.calibration_images.pixels,
            self.settings.calibration_images,
            self.evaluation_images,
            self._reference_logits(),
            self.class_subset,
        )
        run = None if checkpoint is None else checkpoint.run
        done = total = 0
        for piece in train_steps(self.graph, bits, data, settings, machine, checkpoint):
            if isinstance(piece, Step):
                done, total = piece.done, piece.total
                doing = f"epoch {piece.epoch} of {settings.epochs}, loss {piece.loss:.3f}"
                yield Progress(done, total, doing, run)
                continue
            run = piece.run
            if machine.is_main:
                row = {"bits": bits, "settings": asdict(settings), "source": source}
                self.store.put(self._trainings_key, key, row)
            if run.finished:
                self._finish(key, piece, images, machine)
            elif machine.is_main:
                self._save(key, piece, images)
            yield Progress(done, total, f"epoch {len(run.epochs)} of {settings.epochs} is saved", run)

    def _finish(self, key: str, checkpoint: Checkpoint, images: TrainingImages, machine: Machine) -> None:
        """Save only the weights that are kept; nothing goes on from there."""
        if machine.is_main:
            self._save(key, Checkpoint(checkpoint.run, checkpoint.kept), images)

    def _save(self, key: str, checkpoint: Checkpoint, images: TrainingImages) -> None:
        metadata = {_RUN: json.dumps(asdict(checkpoint.run)), "images": images.fingerprint}
        self.store.put_tensors(key, _CHECKPOINT, checkpoint.tensors, metadata)
        self.store.put(key, _RUN, asdict(checkpoint.run))

    def _checkpoint(self, key: str, images: TrainingImages | None) -> Checkpoint | None:
        """Return the last saved epoch.

        Raises:
            TrainingError: It was trained on other images than these.
        """
        saved = self.store.tensors(key, _CHECKPOINT) if _RUN in self.store.items(key) else None
        if saved is None:
            return None
        tensors, metadata = saved
        if images is not None and metadata["images"] != images.fingerprint:
            raise TrainingError(
                f"The training images in {images.source} are not those that this training began with. Train again from "
                "the start."
            )
        return Checkpoint(run_of(json.loads(metadata[_RUN])), tensors)

    def _trained(
        self, bits: Mapping[str, int | Bits], settings: TrainingSettings, source: str | None
    ) -> tuple[QuantizedModel, tuple[StepSizes, ...]]:
        resolved = self._trainable(bits)
        key = self._training_key(resolved, settings, source)
        # One is remembered: each is as large as the model.
        if self._memory.get("trained", ("",))[0] != key:
            checkpoint = self._checkpoint(key, None)
            if checkpoint is None or not checkpoint.run.finished:
                raise TrainingError("This training is not finished; go on with it first.")
            model = restored(self.graph, resolved, self._calibration_pixels, checkpoint)
            self._memory["trained"] = key, (model.quantized(), tuple(model.step_sizes()))
        return self._memory["trained"][1]

    def _trainable(self, bits: Mapping[str, int | Bits]) -> BitsPerLayer:
        """Return (weight bits, activation bits) for every layer, some of them quantized."""
        resolved = self.resolved(bits)
        if all(pair == (FULL_PRECISION, FULL_PRECISION) for pair in resolved.values()):
            raise BitWidthError("Nothing is quantized at these bits: give at least one layer fewer than 32.")
        return resolved

    def _training_key(self, bits: BitsPerLayer, settings: TrainingSettings, source: str | None) -> str:
        listed = {name: list(pair) for name, pair in bits.items()}
        images = [self.settings.calibration_images, self.evaluation_images.fingerprint]
        among = None if self.class_subset is None else list(self.class_subset)
        return self._key("training", listed, asdict(settings), source, *images, among)

    def _trained_evaluation_key(self, key: str) -> str:
        return self._key("training", "evaluation", key)

    @property
    def _trainings_key(self) -> str:
        return self._key("training", "list", self.evaluation_images.fingerprint)


def _is_first_or_last(layer: Any) -> bool:
    return layer.kind in ("patch_embed", "head")
