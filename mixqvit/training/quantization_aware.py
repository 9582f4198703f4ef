"""Quantization-aware training: the quantized model learns what the full-precision model says of augmented images."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mixqvit.errors import TrainingError
from mixqvit.images.images import Images
from mixqvit.images.training_images import TrainingBatch, TrainingImages
from mixqvit.network.bits import BitsPerLayer
from mixqvit.network.devices import images_at_once, in_parts, named_out_of_memory
from mixqvit.network.graph import Graph
from mixqvit.quantization.learning import learning_rate_factor
from mixqvit.quantization.model import QuantizedModel
from mixqvit.tasks.task import Task
from mixqvit.training.machine import Machine
from mixqvit.training.settings import TrainingEpoch, TrainingRun, TrainingSettings
from mixqvit.training.statistics import near_threshold
from mixqvit.training.trainable import TrainableModel

__all__ = ["SavedEpoch", "Step", "TrainingData", "restored", "train_steps"]

WEIGHT_DECAY = 0.05
STEP_RATE = 10
"""Learning rate of step sizes, relative to their first values, over that of weights: Adam then changes both by about
the same share of their size, as the gradient scale of LSQ means to (section 2.2). With 1 they hardly move."""
WARMUP_PART = 20  # a twentieth of all steps
LARGEST_GRADIENT = 1.0
LEARNING_RATE_TIMES_CHANNELS = 0.1

_MODEL, _BEST, _OPTIMIZER = "model/", "best/", "optimizer/"


@dataclass(frozen=True)
class TrainingData:
    """The images of a training.

    Attributes:
        training: What the weights are trained on.
        calibration: What quantizers are fitted to, and what decides which epoch's weights are kept, `[N, C, H, W]`.
        calibration_images: So many of the calibration images fit the quantizers.
        evaluation: For showing how far it is; nothing is chosen by them.
        reference: Outputs of the full-precision model on the evaluation images, `[N, …]`.
        task: What outputs mean, with what decisions on the evaluation images are among.
    """

    training: TrainingImages
    calibration: Tensor
    calibration_images: int
    evaluation: Images
    reference: Tensor
    task: Task


@dataclass(frozen=True)
class Step:
    """One finished optimization step.

    Attributes:
        done: Steps so far, those of earlier epochs included.
        total: Steps of the whole training.
        epoch: Which epoch it belongs to, from 1.
        loss: Mean over the images of the step.
    """

    done: int
    total: int
    epoch: int
    loss: float


@dataclass(frozen=True)
class SavedEpoch:
    """All that training goes on from, after a finished epoch.

    Attributes:
        run: The finished epochs.
        tensors: Parameters of the last epoch (`model/…`) and, where it is another one, of the best (`best/…`); state of
            the optimizer (`optimizer/…`).
    """

    run: TrainingRun
    tensors: Mapping[str, Tensor]

    @property
    def kept(self) -> dict[str, Tensor]:
        """The parameters of the epoch with the least validation loss, named as those of the last one."""
        prefix = _BEST if any(name.startswith(_BEST) for name in self.tensors) else _MODEL
        return {
            _MODEL + name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def train_steps(
    graph: Graph,
    bits: BitsPerLayer,
    data: TrainingData,
    settings: TrainingSettings,
    machine: Machine,
    saved_epoch: SavedEpoch | None = None,
) -> Iterator[Step | SavedEpoch]:
    """Train a copy of a model at the given bits by distillation from the model itself.

    AdamW with a linear warm-up and a cosine decay; weight decay for matrices only, none for step sizes. Everything
    random follows from the seed, the epoch and the image, so that a run that goes on from a saved epoch gives the same
    weights, bit for bit, as one that was never stopped, on the same machine and number of threads.

    Args:
        graph: The full-precision model.
        bits: (weight bits, activation bits) for every layer; 32 leaves an operand alone.
        data: The images.
        settings: How to train.
        machine: The processes that train together; each gets its share of every batch.
        saved_epoch: Where an earlier run of the same arguments stopped.

    Yields:
        Every step, and after every epoch what the next one goes on from. To save it is up to the caller.

    Raises:
        TrainingError: The loss is no longer a number.
        UnsupportedOperationError: The method cannot serve the model.
        ImageError: Training images cannot be read.
    """
    teacher = graph.on(machine.device)
    model = TrainableModel(teacher, bits, settings.method, data.calibration[: data.calibration_images])
    optimizer = _optimizer(model, _peak(graph, settings))
    run = TrainingRun(settings, (), len(data.training))
    best: dict[str, Tensor] = {}
    if saved_epoch is not None:
        run, best = saved_epoch.run, _restore(model, optimizer, saved_epoch.tensors)
    latest = _as_best(_tensors(model, _MODEL))
    parallel = machine.prepared(model)
    schedule = _Schedule(settings, math.ceil(len(data.training) / settings.batch))
    references = _Reference(_outputs(teacher, data.calibration, teacher), data)
    while not run.finished:
        epoch = len(run.epochs) + 1
        started = time.perf_counter()
        loss, agreement, trained = yield from _epoch(
            parallel, model, teacher, optimizer, schedule, data, settings, machine, epoch
        )
        quantized = model.quantized()
        validation, shown_top1, shown_agreement = references.measured(quantized)
        if not math.isfinite(validation):
            raise TrainingError(_diverged(validation, f"after epoch {epoch}", epoch, optimizer))
        seconds = time.perf_counter() - started
        finished = TrainingEpoch(
            epoch=epoch,
            loss=loss,
            train_agreement=agreement,
            validation_loss=validation,
            top1=shown_top1,
            agreement=shown_agreement,
            learning_rate=optimizer.param_groups[0]["lr"],
            seconds=seconds,
            trained_weights=trained,
        )
        run = _extended(run, finished)
        state = _tensors(model, _MODEL)
        if run.best == epoch:
            best = {}
        elif run.best == epoch - 1:
            best = latest
        latest = _as_best(state)
        yield SavedEpoch(run, state | best | _optimizer_tensors(optimizer))


def restored(graph: Graph, bits: BitsPerLayer, pixels: Tensor, saved_epoch: SavedEpoch) -> TrainableModel:
    """Return the trained model with the weights that are kept: those of the epoch with the least validation loss.

    Args:
        graph: The full-precision model that training began with.
        bits: As in `train_steps`.
        pixels: The calibration images that quantizers were fitted to.
        saved_epoch: The last one.
    """
    model = TrainableModel(graph, bits, saved_epoch.run.settings.method, pixels)
    _load(model, saved_epoch.kept, _MODEL)
    return model


def _epoch(
    parallel: nn.Module,
    model: TrainableModel,
    teacher: Graph,
    optimizer: torch.optim.Optimizer,
    schedule: "_Schedule",
    data: TrainingData,
    settings: TrainingSettings,
    machine: Machine,
    epoch: int,
) -> Generator[Step, None, tuple[float, float, float]]:
    """Train for one epoch; returns mean loss, agreement and the share of weights that the last step trained."""
    annealing = epoch > settings.epochs - settings.annealing_epochs
    done = (epoch - 1) * schedule.steps_per_epoch
    sums, images, trained = torch.zeros(2, dtype=torch.float64), 0, 1.0
    shard = (machine.rank, machine.processes)
    for batch in data.training.batches(settings.seed, epoch, settings.batch, shard):
        schedule.set(optimizer, done)
        stage = f"training step of {len(batch.pixels)} images (a smaller batch takes less)"
        with named_out_of_memory(machine.device, stage):
            loss, found = _step(parallel, model, teacher, optimizer, batch, machine)
        done += 1
        if not math.isfinite(loss):
            raise TrainingError(_diverged(loss, f"in step {done} (epoch {epoch})", epoch, optimizer))
        if annealing:
            trained = _anneal(model, optimizer)
        else:
            optimizer.step()
        sums += found
        images += batch.images
        yield Step(done, schedule.total, epoch, loss)
    return float(sums[0]) / images, float(sums[1]) / images, trained


def _diverged(loss: float, when: str, epoch: int, optimizer: torch.optim.Optimizer) -> str:
    saved = f"Epoch {epoch - 1} is saved" if epoch > 1 else "No epoch is saved yet"
    rate = optimizer.param_groups[0]["lr"]
    return f"The loss is {loss} {when}, with learning rate {rate:.1e}. {saved}; train again with a lower learning rate."


def _step(
    parallel: nn.Module,
    model: TrainableModel,
    teacher: Graph,
    optimizer: torch.optim.Optimizer,
    batch: TrainingBatch,
    machine: Machine,
) -> tuple[float, Tensor]:
    """Compute the gradients of the mean loss of a batch; returns it, and the sums of loss and agreement."""
    pixels = batch.pixels.to(machine.device)
    with machine.mixed_precision():
        with torch.no_grad():
            wanted = teacher.run(pixels)[0]
        outputs = parallel(pixels)
    losses = teacher.task.distillation_loss(outputs, wanted)
    optimizer.zero_grad()
    # Gradients are averaged over processes, so that the mean over all images is a sum times their number.
    (losses.sum() * (machine.processes / batch.images)).backward()
    nn.utils.clip_grad_norm_(model.module.parameters(), LARGEST_GRADIENT)
    agreeing = teacher.task.agreeing(outputs, wanted)
    sums = machine.total(torch.stack([losses.detach().sum().double(), agreeing.double()])).cpu()
    return float(sums[0]) / batch.images, sums


def _anneal(model: TrainableModel, optimizer: torch.optim.Optimizer) -> float:
    """Take a step that moves only the weights near a threshold, and all other parameters; returns their share."""
    before = [(weight, weight.detach().clone(), quantizer.quantizer(weight)) for weight, quantizer in model.weights()]
    optimizer.step()
    free = total = 0
    with torch.no_grad():
        for weight, old, quantizer in before:
            is_free = near_threshold(old, quantizer)
            weight.copy_(torch.where(is_free, weight, old))
            free += int(is_free.sum())
            total += weight.numel()
    return free / max(1, total)


class _Schedule:
    """The learning rate of every step."""

    def __init__(self, settings: TrainingSettings, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.total = settings.epochs * steps_per_epoch
        self._warmup = max(1, self.total // WARMUP_PART)

    def set(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(step, self.total, self._warmup)


class _Reference:
    """What full precision says of the images that are measured after every epoch."""

    def __init__(self, calibration_outputs: Tensor, data: TrainingData) -> None:
        self._calibration_outputs, self._data = calibration_outputs, data
        self._answers = data.task.reference_answers(data.reference, data.evaluation.labels)

    def measured(self, quantized: QuantizedModel) -> tuple[float, float | None, float]:
        """Return the loss on the calibration images, and top-1 and agreement on the evaluation images."""
        data = self._data
        own = _outputs(quantized, data.calibration, quantized.graph)
        validation = float(data.task.distillation_loss(own, self._calibration_outputs).mean())
        outputs = _outputs(quantized, data.evaluation.pixels, quantized.graph)
        found = data.task.evaluation(data.task.answers(outputs, data.reference), self._answers)
        right = None if found.correct is None else found.correct / found.images
        return validation, right, found.agreeing / found.images


def _outputs(predict: Callable[[Tensor], Tensor], pixels: Tensor, graph: Graph) -> Tensor:
    def run(part: slice) -> Tensor:
        with torch.no_grad():
            return predict(pixels[part]).cpu()

    most = images_at_once(graph, 128)
    return torch.cat(list(in_parts(run, len(pixels), most, graph.device, "evaluation of the trained model")))


def _peak(graph: Graph, settings: TrainingSettings) -> float:
    if settings.learning_rate is not None:
        return settings.learning_rate
    return LEARNING_RATE_TIMES_CHANNELS / graph.layers[-1].input_shape[-1]


def _optimizer(model: TrainableModel, peak: float) -> torch.optim.Optimizer:
    steps = {id(parameter) for parameter in model.step_parameters()}
    own = [parameter for parameter in model.parameters() if id(parameter) not in steps]
    groups = [
        {"params": [parameter for parameter in own if parameter.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [parameter for parameter in own if parameter.dim() <= 1], "weight_decay": 0.0},
        {"params": model.step_parameters(), "weight_decay": 0.0, "peak": peak * STEP_RATE},
    ]
    return torch.optim.AdamW([{"peak": peak} | group for group in groups if group["params"]], lr=peak)


def _extended(run: TrainingRun, finished: TrainingEpoch) -> TrainingRun:
    run = replace(run, epochs=(*run.epochs, finished))
    patience = run.settings.patience
    ends = patience is not None and finished.epoch - run.best >= patience and finished.epoch < run.settings.epochs
    return replace(run, stopped_early=ends)


def _tensors(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _as_best(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_BEST + name.removeprefix(_MODEL): tensor for name, tensor in state.items()}


def _load(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    model.load_state_dict({n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)})


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{_OPTIMIZER}{index}/{name}": value.detach().cpu().clone()
        for index, values in state.items()
        for name, value in values.items()
    }


def _restore(
    model: TrainableModel, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Put a saved epoch into model and optimizer; returns the weights of the best epoch, if that is another one."""
    _load(model, tensors, _MODEL)
    document = optimizer.state_dict()
    document["state"] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, field = name.removeprefix(_OPTIMIZER).split("/")
            document["state"].setdefault(int(index), {})[field] = tensor.clone()
    optimizer.load_state_dict(document)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(_BEST)}
