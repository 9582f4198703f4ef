"""Quantization-aware training in a study: trained at any bits, resumed after a stop, measured and packed."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.costs import Cost, bitops, cost
from mixqvit.allocation.request import Request
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.engines.progress import Progress
from mixqvit.errors import BitWidthError, TrainingError
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, Bits, BitsPerLayer, resolve_bits
from mixqvit.network.query_key import is_merged, merge_query_key, original_layer
from mixqvit.packing.model import Packed, packed, storage
from mixqvit.quantization.model import QuantizedModel
from mixqvit.stages import runner
from mixqvit.stages.store import fingerprint
from mixqvit.study.part import Part
from mixqvit.tasks.evaluation import Evaluation
from mixqvit.training.settings import TRAINING_METHODS, StepSizes, TrainingRun, TrainingSettings
from mixqvit.training.stage import TrainedEvaluation, TrainedQuantized, training_images_steps

__all__ = ["FIRST_AND_LAST_BITS", "Training", "Trainings"]

FIRST_AND_LAST_BITS = 8
"""Bits of patch embedding and head in the settings that are made for training: both operands, outside the average."""

AnyLayerBits = Mapping[str, int | Bits]
"""(weight bits, activation bits) or one number for both, by layer."""


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


class Trainings(Part):
    """Quantized models that are trained with their quantizers in the loop."""

    def first_last_uniform(self, bits: int) -> BitsPerLayer:
        """Return the same bits for every layer but patch embedding and head, which keep `FIRST_AND_LAST_BITS`.

        Raises:
            BitWidthError: The bit-width is not 2 to 8.
        """
        if bits not in BIT_WIDTHS:
            raise BitWidthError(f"{bits!r} bits are not possible: use {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}.")
        kept = (FIRST_AND_LAST_BITS, FIRST_AND_LAST_BITS)
        return {layer.name: kept if _is_first_or_last(layer) else (bits, bits) for layer in self.study.layers}

    def first_last_request(self, average_bits: float) -> Request:
        """Return what `allocate` is asked for an average over all layers but patch embedding and head.

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
        sizes = [cost(self.study.layers, bits, self.study.storage).size_bytes for bits in (below, above)]
        operations = sum(
            bitops(layer, below[layer.name]) if _is_first_or_last(layer) else layer.macs * average_bits**2
            for layer in self.study.layers
        )
        pinned = {layer.name: FIRST_AND_LAST_BITS for layer in self.study.layers if _is_first_or_last(layer)}
        size = math.floor(sizes[0] + part * (sizes[1] - sizes[0]))
        operations += self.study.storage.full_precision_bitops
        return Request(Budget(size_bytes=size, bitops=operations), Restrictions(pinned))

    def inner_average_bits(self, bits: BitsPerLayer) -> float:
        """Return the weight bits, averaged over the weights between patch embedding and head."""
        inner = [layer for layer in self.study.layers if not _is_first_or_last(layer)]
        return sum(layer.parameters * bits[layer.name][0] for layer in inner) / sum(layer.parameters for layer in inner)

    def images_steps(self, source: str | None = None, follow_links: bool = False) -> Iterator[Progress]:
        """Load the images to train on, once; the last result is the `TrainingImages`.

        Args:
            source: As for `load_image_sets`; None for the study's own, without those that calibrate or evaluate.
            follow_links: Whether links that lead out of a folder are followed; the study's own say it themselves.

        Raises:
            ImageError: There are none, or they cannot be read.
        """
        return training_images_steps(self.study, source, follow_links)

    def steps(
        self, bits: AnyLayerBits, settings: TrainingSettings | None = None, source: str | None = None
    ) -> Iterator[Progress]:
        """Train at the given bits, from the last saved epoch on; every piece is a `TrainingRun` so far.

        The epochs are saved one by one. Several processes started together (`accelerate launch`) train together.

        Args:
            bits: (weight bits, activation bits) or one number for both, by layer.
            settings: How to train.
            source: As in `images_steps`.

        Raises:
            BitWidthError: A bit-width or layer name is not possible.
            TrainingError: The loss is no longer a number, or the training images are not those it began with.
            UnsupportedOperationError: The method cannot serve this model.
            ImageError: There are no images to train on.
        """
        stage = self.stage(bits, settings, source)
        key, store = runner.key(self.study, stage), self.study.store
        if stage.companions()[0] == 0 and key not in store.items(self._list):
            row = {"bits": stage.bits, "settings": asdict(stage.settings), "source": source}
            store.put(self._list, key, row)
        yield from runner.steps(self.study, stage)

    def progress(
        self, bits: AnyLayerBits, settings: TrainingSettings | None = None, source: str | None = None
    ) -> Progress:
        """Return how many epochs are trained and saved, without training."""
        return runner.progress(self.study, self.stage(bits, settings, source))

    def run(
        self, bits: AnyLayerBits, settings: TrainingSettings | None = None, source: str | None = None
    ) -> TrainingRun | None:
        """Return the epochs that are trained and saved, without training; None before the first."""
        return runner.so_far(self.study, self.stage(bits, settings, source))

    def all(self) -> tuple[Training, ...]:
        """Return all trainings of this study that are saved, in the order they were begun."""
        found = []
        for row in self.study.store.rows(self._list).values():
            bits = {name: tuple(pair) for name, pair in row["bits"].items()}
            settings, source = TrainingSettings(**row["settings"]), row["source"]
            run = self.run(bits, settings, source)
            if run is not None:
                found.append(Training(bits, settings, source, run, self.inner_average_bits(bits)))
        return tuple(found)

    def forget(self, bits: AnyLayerBits, settings: TrainingSettings | None = None, source: str | None = None) -> None:
        """Forget what is saved of a training, so that it begins again from the start."""
        stage = self.stage(bits, settings, source)
        self.study.store.delete(self._list, runner.key(self.study, stage))
        for one in (TrainedEvaluation(stage), stage):
            runner.forget(self.study, one)
        self.study.memory.pop("trained", None)

    def trained(
        self, bits: AnyLayerBits, settings: TrainingSettings | None = None, source: str | None = None
    ) -> QuantizedModel:
        """Return the trained model, on the CPU, with the weights of the epoch with the least validation loss.

        Raises:
            TrainingError: The training is not finished.
        """
        return self._trained(self.stage(bits, settings, source))[0]

    def weights(
        self, bits: AnyLayerBits, settings: TrainingSettings | None = None, source: str | None = None
    ) -> dict[str, Tensor]:
        """Return the trained parameters under the names of the model's own; quantized weights as their codes say.

        Raises:
            TrainingError: The training is not finished, or the method made another architecture of the model.
        """
        graph = self.trained(bits, settings, source).graph
        if is_merged(graph):
            raise TrainingError(
                "The training method ofq merges query and key, which is another architecture than the model's: its "
                "weights fit no other model. Train with lsq, or keep the packed file."
            )
        trained = graph.module.state_dict()
        found = {name: trained.get(name, tensor) for name, tensor in self.study.model.module.state_dict().items()}
        missing = [name for name, _ in graph.module.named_parameters() if name not in found]
        if missing:
            raise TrainingError(
                f"The graph of {self.study.model.name} has parameters that the model has not "
                f"({', '.join(missing[:3])}): the trained weights cannot be kept as a study. Keep the packed file."
            )
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    def step_sizes(
        self, bits: AnyLayerBits, settings: TrainingSettings | None = None, source: str | None = None
    ) -> tuple[StepSizes, ...]:
        """Return the step sizes of all operands, as they were fitted and as they are trained.

        Raises:
            TrainingError: The training is not finished.
        """
        return self._trained(self.stage(bits, settings, source))[1]

    def evaluate_steps(
        self, bits: AnyLayerBits, settings: TrainingSettings | None = None, source: str | None = None
    ) -> Iterator[Progress]:
        """Measure the trained model on the evaluation images; every piece is an `Evaluation` so far.

        Raises:
            TrainingError: The training is not finished.
        """
        stage = self.stage(bits, settings, source)
        run = runner.so_far(self.study, stage)
        if run is None or not run.finished:
            raise TrainingError("This training is not finished; go on with it first.")
        yield from runner.steps(self.study, TrainedEvaluation(stage))

    def saved_evaluation(
        self, bits: AnyLayerBits, settings: TrainingSettings | None = None, source: str | None = None
    ) -> Evaluation | None:
        """Return what was measured of the trained model on all evaluation images, None if it was not."""
        return runner.whole(self.study, TrainedEvaluation(self.stage(bits, settings, source)))

    def cost(self, bits: AnyLayerBits, settings: TrainingSettings | None = None) -> Cost:
        """Return what the trained model costs: `ofq` merges query and key, which makes other layers.

        Raises:
            UnsupportedOperationError: The method cannot serve this model.
        """
        study, stage = self.study, self.stage(bits, settings)
        graph, method = study.graph, stage.settings.method
        if TRAINING_METHODS[method].merges_query_key:
            graph = study.remembered("merged graph", lambda: merge_query_key(study.graph))
        resolved = stage.bits
        of_layers = {layer.name: resolved[original_layer(layer.name, study.graph.by_name)] for layer in graph.layers}
        return cost(graph.layers, of_layers, storage(graph, method, study.model))

    def packed(self, bits: AnyLayerBits, settings: TrainingSettings | None = None, source: str | None = None) -> Packed:
        """Return the trained model as the content of one file, of the very size that its cost says.

        Raises:
            TrainingError: The training is not finished.
            PackingError: The model cannot be packed.
        """
        return packed(self.trained(bits, settings, source), self.study.model)

    def pack(
        self,
        bits: AnyLayerBits,
        path: str | Path,
        settings: TrainingSettings | None = None,
        source: str | None = None,
    ) -> Packed:
        """Write the trained model as one file, atomically; `load_packed` reads it.

        Raises:
            TrainingError: The training is not finished.
            PackingError: The model cannot be packed or the file cannot be written.
        """
        found = self.packed(bits, settings, source)
        found.write(path)
        return found

    def stage(
        self, bits: AnyLayerBits, settings: TrainingSettings | None = None, source: str | None = None
    ) -> TrainedQuantized:
        """Return the stage that trains.

        Raises:
            BitWidthError: A bit-width or layer name is not possible, or nothing is quantized.
        """
        resolved = resolve_bits(self.study.layers, bits)
        if all(pair == (FULL_PRECISION, FULL_PRECISION) for pair in resolved.values()):
            raise BitWidthError("Nothing is quantized at these bits: give at least one layer fewer than 32.")
        return TrainedQuantized.at(resolved, settings or TrainingSettings(), source)

    def _trained(self, stage: TrainedQuantized) -> tuple[QuantizedModel, tuple[StepSizes, ...]]:
        memory = self.study.memory
        # One is remembered: each is as large as the model.
        if memory.get("trained", (None,))[0] != stage:
            model = stage.model(self.study)
            memory["trained"] = stage, (model.quantized(), tuple(model.step_sizes()))
        return memory["trained"][1]

    @property
    def _list(self) -> str:
        """What the trainings are listed under."""
        return f"{self.study.identity}-{fingerprint('trainings', self.study.evaluation_images.fingerprint)}"


def _is_first_or_last(layer: Any) -> bool:
    return layer.kind in ("patch_embed", "head")
