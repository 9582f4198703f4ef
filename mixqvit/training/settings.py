"""How a quantized model is trained and what training reports: plain records that need no torch."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from mixqvit.errors import TrainingError

__all__ = ["TRAINING_METHODS", "StepSizes", "TrainingEpoch", "TrainingMethod", "TrainingRun", "TrainingSettings"]


@dataclass(frozen=True)
class TrainingMethod:
    """A method of quantization-aware training.

    Attributes:
        description: One line for people.
        has_statistical_weights: Whether the scales of weights follow from the weights; else their steps are learned.
        merges_query_key: Whether query and key become one weight.
        anneals: Whether only weights near a rounding threshold are trained at the end.
    """

    description: str
    has_statistical_weights: bool = False
    merges_query_key: bool = False
    anneals: bool = False


TRAINING_METHODS: Mapping[str, TrainingMethod] = {
    "lsq": TrainingMethod("learned step sizes for weights and activations (LSQ, arXiv 1902.08153)"),
    "ofq": TrainingMethod(
        "weights scaled by their statistics, query and key merged into one weight, confident weights frozen at the "
        "end (OFQ, arXiv 2302.02210); activations as in lsq",
        has_statistical_weights=True,
        merges_query_key=True,
        anneals=True,
    ),
}
"""The methods of quantization-aware training by name."""

LARGEST_BATCH = 4096


@dataclass(frozen=True)
class TrainingSettings:
    """How a quantized model is trained.

    Attributes:
        method: One of `TRAINING_METHODS`.
        epochs: Passes over the training images; those of the annealing of `ofq` included.
        seed: Of the order of images and of their augmentation.
        batch: Images in a step, over all processes.
        learning_rate: Its peak; None for 0.1 / channels of the last layer's input, 1e-3 for the embedded models.
        patience: Epochs without a smaller validation loss after which training ends; None to go on.
    """

    method: str = "lsq"
    epochs: int = 6
    seed: int = 0
    batch: int = 32
    learning_rate: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        """Raise TrainingError where a value is not possible."""
        if self.method not in TRAINING_METHODS:
            raise TrainingError(
                f"There is no training method {self.method!r}; choose one of {', '.join(TRAINING_METHODS)}."
            )
        if not 1 <= self.epochs <= 10_000:
            raise TrainingError(f"Training takes 1 to 10,000 epochs, not {self.epochs}.")
        if not 1 <= self.batch <= LARGEST_BATCH:
            raise TrainingError(f"A step has 1 to {LARGEST_BATCH:,} images, not {self.batch}.")
        if self.seed < 0:
            raise TrainingError(f"The seed is a whole number of 0 or more, not {self.seed}.")
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise TrainingError(f"The learning rate is above 0 and at most 1, not {self.learning_rate}.")
        if self.patience is not None and self.patience < 1:
            raise TrainingError(f"The patience is at least 1 epoch, not {self.patience}.")

    @property
    def annealing_epochs(self) -> int:
        """Epochs at the end in which only weights near a rounding threshold are trained; 0 for `lsq`."""
        return -(-self.epochs // 6) if TRAINING_METHODS[self.method].anneals and self.epochs > 1 else 0

    @property
    def recipe(self) -> str:
        """The earlier name of `method`."""
        _say_earlier_name()
        return self.method


def _with_earlier_name(init: Callable[..., None]) -> Callable[..., None]:
    """Let `TrainingSettings` be made with `recipe`, which `method` was called once, in programs and saved results."""

    @wraps(init)
    def accepting(self: TrainingSettings, *arguments: Any, recipe: str | None = None, **named: Any) -> None:
        if recipe is not None:
            _say_earlier_name()
            named["method"] = recipe
        init(self, *arguments, **named)

    return accepting


def _say_earlier_name() -> None:
    warnings.warn("TrainingSettings.recipe is called method now.", DeprecationWarning, stacklevel=3)


TrainingSettings.__init__ = _with_earlier_name(TrainingSettings.__init__)


@dataclass(frozen=True)
class TrainingEpoch:
    """One finished pass over the training images.

    Attributes:
        epoch: Which one, from 1.
        loss: Mean KL(full precision ‖ quantized) over the training images, in nats, with the weights of each step.
        train_agreement: Share of augmented training images with the class that full precision predicts.
        validation_loss: The same KL on the calibration images after the epoch; it decides which weights are kept.
        top1: On the evaluation images after the epoch, 0 to 1; None without labels. For showing only.
        agreement: With full precision on the evaluation images. For showing only.
        learning_rate: At the last step.
        seconds: Computing time of this epoch.
        trained_weights: Share of the quantized weights that the last step could move: below 1 while annealing.
    """

    epoch: int
    loss: float
    train_agreement: float
    validation_loss: float
    top1: float | None
    agreement: float
    learning_rate: float
    seconds: float
    trained_weights: float = 1.0


@dataclass(frozen=True)
class StepSizes:
    """The step sizes of a layer's operand before and after training.

    Attributes:
        layer: Name of the layer.
        operand: `weight`, `input`, or `first` and `second` of an attention product.
        bits: Bit-width.
        before: As fitted to the calibration images: one for an activation, one per output channel for a weight.
        after: As trained.
    """

    layer: str
    operand: str
    bits: int
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class TrainingRun:
    """How far a training is.

    Attributes:
        settings: How it trains.
        epochs: The finished ones.
        images: Training images.
        stopped_early: Whether `patience` ended it.
    """

    settings: TrainingSettings
    epochs: tuple[TrainingEpoch, ...]
    images: int
    stopped_early: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.stopped_early or len(self.epochs) == self.settings.epochs

    @property
    def best(self) -> int:
        """The epoch whose weights are kept: that of the smallest validation loss, 0 before the first."""
        return min(self.epochs, key=lambda epoch: epoch.validation_loss).epoch if self.epochs else 0
