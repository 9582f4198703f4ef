"""The stages of quantization-aware training: a training, saved epoch by epoch, and what its model measures."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from mixqvit.engines.progress import Progress
from mixqvit.errors import TrainingError
from mixqvit.images.training_images import TrainingImages
from mixqvit.images.training_sources import load_training_images_steps
from mixqvit.network.bits import BitsPerLayer
from mixqvit.quantization.evaluation_stage import FullPrecision, evaluation_of, measured
from mixqvit.stages.context import Context
from mixqvit.stages.forms import STATE, State
from mixqvit.stages.items import ImageRanges
from mixqvit.stages.stage import Stage, Step, registered
from mixqvit.tasks.evaluation import Evaluation
from mixqvit.tasks.task import Answers
from mixqvit.training.machine import launched, open_machine
from mixqvit.training.quantization_aware import SavedEpoch, TrainingData, restored, train_steps
from mixqvit.training.quantization_aware import Step as TrainingStep
from mixqvit.training.settings import TrainingEpoch, TrainingRun, TrainingSettings
from mixqvit.training.trainable import TrainableModel

__all__ = ["Epochs", "TrainedEvaluation", "TrainedQuantized", "training_images_steps"]


@dataclass(frozen=True)
class Epochs:
    """The epochs of a training, of which the last may come early."""

    total: int

    def name(self, item: tuple[int, bool]) -> str:
        """Return what an epoch is saved under, from its number and whether it is the last."""
        number, is_last = item
        return f"last epoch {number}" if is_last else f"epoch {number}"

    def counted(self, saved: Collection[str]) -> tuple[int, int]:
        """Return how many epochs are finished, and how many there will be."""
        done = len(saved)
        return done, done if any(name.startswith("last") for name in saved) else self.total

    def missing(self, saved: Collection[str]) -> list[int]:
        """Return the numbers of the epochs that are left."""
        done, total = self.counted(saved)
        return list(range(done + 1, total + 1))

    def words(self, name: str, done: int) -> str:
        """Return what was finished, in words."""
        return f"epoch {done} of {self.total} is saved"


@dataclass(frozen=True, eq=False)
class FinishedEpoch:
    """An epoch, and what the next one goes on from.

    Attributes:
        epoch: What it reports.
        images: Number of training images.
        fingerprint: Of the training images.
        stopped_early: Whether it is the last one although more were planned.
        tensors: State of the training; after the last epoch the weights that are kept. Empty where it was read.
    """

    epoch: TrainingEpoch
    images: int
    fingerprint: str
    stopped_early: bool
    tensors: Mapping[str, Tensor]


@registered
@dataclass(frozen=True)
class TrainedQuantized(Stage[FinishedEpoch, TrainingRun]):
    """A quantized model that is trained.

    Attributes:
        layers: Name, weight bits and activation bits of every layer.
        settings: How it trains.
        source: Where its images are from; None for the study's own.
    """

    name = "training"
    version = 1
    form = STATE
    shows_all = True

    layers: tuple[tuple[str, int, int], ...]
    settings: TrainingSettings
    source: str | None = None

    @classmethod
    def at(cls, bits: BitsPerLayer, settings: TrainingSettings, source: str | None) -> "TrainedQuantized":
        """Return the training at some bits."""
        return cls(tuple((name, *pair) for name, pair in bits.items()), settings, source)

    @property
    def bits(self) -> BitsPerLayer:
        """(weight bits, activation bits) by layer name."""
        return {name: (weights, activations) for name, weights, activations in self.layers}

    def needs(self, study: Context) -> tuple[FullPrecision]:
        """Return full precision, which the epochs are shown beside."""
        return (FullPrecision(),)

    def depends_on(self, study: Context) -> Sequence[Any]:
        """Return how many images fit the quantizers, and which ones show how far it is."""
        return [len(study.calibration_pixels), study.evaluation_images.fingerprint, study.task.scope]

    def items(self, study: Context) -> Epochs:
        """Return the epochs."""
        return Epochs(self.settings.epochs)

    def compute(
        self, study: Context, missing: Sequence[int]
    ) -> Iterator[Step | tuple[tuple[int, bool], FinishedEpoch]]:
        """Yield the epochs that are left, and every step of theirs.

        Raises:
            TrainingError: The loss is no longer a number, or the training images are not those it began with.
            UnsupportedOperationError: The method cannot serve this model.
            ImageError: There are no images to train on.
        """
        for step in training_images_steps(study, self.source):
            yield Step(0.0, f"training images: {step.doing}")
        images: TrainingImages = step.result
        saved_epoch = self._saved_epoch(study)
        if saved_epoch is not None and _images_of(study.saved(self)) != images.fingerprint:
            raise TrainingError(
                f"The training images in {images.source} are not those that this training began with. Train again from "
                "the start."
            )
        data = TrainingData(
            images,
            study.calibration_images.pixels,
            len(study.calibration_pixels),
            study.evaluation_images,
            study.result(FullPrecision()),
            study.task,
        )
        epochs = self.settings.epochs
        with open_machine(study.device) as machine:
            for piece in train_steps(study.graph, self.bits, data, self.settings, machine, saved_epoch):
                if isinstance(piece, TrainingStep):
                    part = piece.done * epochs / piece.total - (piece.epoch - 1)
                    yield Step(part, f"epoch {piece.epoch} of {epochs}, loss {piece.loss:.3f}")
                    continue
                run = piece.run
                tensors = piece.kept if run.finished else piece.tensors
                found = FinishedEpoch(run.epochs[-1], run.images, images.fingerprint, run.stopped_early, tensors)
                yield (len(run.epochs), run.finished), found

    def written(self, piece: FinishedEpoch) -> State:
        """Return what an epoch reports, and the tensors."""
        row = {"epoch": asdict(piece.epoch), "images": piece.images, "fingerprint": piece.fingerprint}
        return State(row | {"stopped_early": piece.stopped_early}, piece.tensors)

    def read(self, name: str, written: Mapping[str, Any]) -> FinishedEpoch:
        """Return what an epoch reports."""
        return FinishedEpoch(**{**written, "epoch": TrainingEpoch(**written["epoch"])}, tensors={})

    def join(self, study: Context, pieces: Mapping[str, FinishedEpoch]) -> TrainingRun:
        """Return the finished epochs."""
        *_, last = pieces.values()
        epochs = tuple(piece.epoch for piece in pieces.values())
        return TrainingRun(self.settings, epochs, last.images, last.stopped_early)

    def is_remembered(self, study: Context) -> bool:
        """Return that it is not: it can be forgotten and begun again."""
        return False

    def companions(self) -> tuple[int, int]:
        """Return the number of this process among those that `accelerate launch` started, and how many they are."""
        return launched()

    def model(self, study: Context) -> TrainableModel:
        """Return the trained model, with the weights of the epoch with the least validation loss.

        Raises:
            TrainingError: The training is not finished.
        """
        saved_epoch = self._saved_epoch(study)
        if saved_epoch is None or not saved_epoch.run.finished:
            raise TrainingError("This training is not finished; go on with it first.")
        return restored(study.graph, self.bits, study.calibration_pixels, saved_epoch)

    def _saved_epoch(self, study: Context) -> SavedEpoch | None:
        pieces, tensors = study.saved(self), study.state(self)
        return SavedEpoch(self.join(study, pieces), tensors) if pieces and tensors is not None else None


@registered
@dataclass(frozen=True)
class TrainedEvaluation(Stage[Answers, Evaluation]):
    """What a trained model measures on the evaluation images."""

    name = "evaluation of the trained model"
    version = 1
    shows_all = True

    training: TrainedQuantized

    def needs(self, study: Context) -> tuple[Stage, ...]:
        """Return the training, and full precision."""
        return (FullPrecision(), self.training)

    def items(self, study: Context) -> ImageRanges:
        """Return the evaluation images."""
        return ImageRanges(len(study.evaluation_images))

    def compute(self, study: Context, missing: Sequence[range]) -> Iterator[tuple[range, Answers]]:
        """Yield batches of images."""
        return measured(study, self.training.model(study).quantized().on(study.device), missing)

    def join(self, study: Context, pieces: Mapping[str, Answers]) -> Evaluation | None:
        """Return the evaluation of the images from the first one on; None where that is missing."""
        return evaluation_of(study, pieces)

    def is_remembered(self, study: Context) -> bool:
        """Return that it is not: its training can be forgotten."""
        return False


def training_images_steps(study: Context, source: str | None = None, follow_links: bool = False) -> Iterator[Progress]:
    """Load the images to train on, once; the last result is the `TrainingImages`.

    Args:
        study: Where they are remembered.
        source: As for `load_image_sets`; None for the study's own, without those that calibrate or evaluate.
        follow_links: Whether links that lead out of a folder are followed; the study's own say it themselves.

    Raises:
        ImageError: There are none, or they cannot be read.
    """
    name = ("training images", source)
    if name not in study.memory:
        own = study.image_sets.evaluation.source
        for step in load_training_images_steps(source or own, study.model, study.image_sets, follow_links):
            yield step
        study.memory[name] = step.result
    count = len(study.memory[name])
    yield Progress(count, count, f"{count:,} training images", study.memory[name])


def _images_of(pieces: Mapping[str, FinishedEpoch]) -> str:
    *_, last = pieces.values()
    return last.fingerprint
