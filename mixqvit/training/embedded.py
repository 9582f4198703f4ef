"""Trains the embedded models on the training digits and writes their checkpoints and cards."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mixqvit.errors import ModelError
from mixqvit.images.augmentation import augment
from mixqvit.images.images import Images
from mixqvit.images.loading import load_images
from mixqvit.images.sources.digits import DIGITS_MEAN, DIGITS_SIZE, DIGITS_STD
from mixqvit.models.cards import ASSETS, EMBEDDED, card_path, checkpoint_path
from mixqvit.models.embedded import build_architecture, load_embedded
from mixqvit.quantization.learning import learning_rate_factor

__all__ = ["EpochResult", "Hyperparameters", "build_seeded", "mix", "top1", "train", "train_embedded"]

TEACHER = "digits_vit"
STUDENT = "digits_deit"


@dataclass(frozen=True)
class Hyperparameters:
    """How a model is trained: AdamW, linear warm-up, cosine decay, weights averaged over the steps.

    Attributes:
        epochs: Passes over the training images.
        batch: Images in a step.
        learning_rate: Its peak.
        warmup_epochs: Linear rise to the peak.
        weight_decay: For matrices; biases, norms, tokens and position embeddings have none.
        label_smoothing: Of the cross-entropy.
        average_decay: Of the exponential moving average of the weights, which is what is kept.
        seed: Of the initial weights, the order of images and the augmentation.
    """

    epochs: int
    batch: int = 32
    learning_rate: float = 1e-3
    warmup_epochs: int = 3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    average_decay: float = 0.995
    seed: int = 1


@dataclass(frozen=True)
class EpochResult:
    """One finished pass over the training images.

    Attributes:
        epoch: Which one, from 1.
        epochs: Of how many.
        loss: Mean over the images, of the weights as they were at each step.
        train_accuracy: Top-1 on the augmented and blended training images, 0 to 1.
        learning_rate: At the last step.
        seconds: Since training began.
    """

    epoch: int
    epochs: int
    loss: float
    train_accuracy: float
    learning_rate: float
    seconds: float


_SIZES: Mapping[str, Any] = {"img_size": 32, "patch_size": 4, "in_chans": 1, "num_classes": 10}
_VIT: Mapping[str, Any] = {**_SIZES, "embed_dim": 96, "depth": 6, "num_heads": 3, "mlp_ratio": 4}
_SWIN: Mapping[str, Any] = {
    **_SIZES,
    "embed_dim": 48,
    "depths": [2, 4],
    "num_heads": [3, 6],
    "window_size": 4,
    "mlp_ratio": 4,
    "drop_path_rate": 0.0,
}
_SPECIFICATIONS: Mapping[str, tuple[Mapping[str, Any], Hyperparameters, str]] = {
    "digits_vit": (
        {"class": "VisionTransformer", "arguments": _VIT},
        Hyperparameters(epochs=60),
        "Vision transformer with a class token: 6 blocks, 3 heads, 96 channels.",
    ),
    "digits_deit": (
        {"class": "VisionTransformerDistilled", "arguments": _VIT},
        Hyperparameters(epochs=60),
        "DeiT with a distillation token, taught by digits_vit: 6 blocks, 3 heads, 96 channels.",
    ),
    "digits_swin": (
        {"class": "SwinTransformer", "arguments": _SWIN},
        Hyperparameters(epochs=100),
        "Swin transformer: 2 stages with patch merging between, shifted windows of 4x4 tokens in the first.",
    ),
}


def train_embedded(name: str, folder: Path | None = None, epochs: int | None = None) -> Iterator[EpochResult]:
    """Trains an embedded model from scratch; when the last epoch is taken, writes its checkpoint and card.

    Only the training digits are used; the weights kept are those of the last epoch, and the accuracy on the card
    is measured once, after training, on the evaluation digits. The same seed gives the same weights on the same
    machine with the same number of threads; elsewhere floating-point sums may round differently.

    Args:
        name: Which one. `digits_deit` learns from `digits_vit`, which must be in the same folder.
        folder: Where to write, `assets` by default.
        epochs: Instead of the model's own number.

    Yields:
        One result per epoch.

    Raises:
        ModelError: Unknown name, the teacher is missing, epochs below 1, or the folder cannot be written.
    """
    if name not in EMBEDDED:
        raise ModelError(f"{name!r} is no embedded model; choose one of {', '.join(EMBEDDED)}")
    architecture, hyperparameters, description = _SPECIFICATIONS[name]
    if epochs is not None:
        hyperparameters = replace(hyperparameters, epochs=epochs)
    if hyperparameters.epochs < 1:
        raise ModelError(f"training needs at least 1 epoch, {hyperparameters.epochs} were asked for")
    folder = ASSETS if folder is None else Path(folder)
    teacher = _load_teacher(folder) if name == STUDENT else None
    module = build_seeded(architecture, hyperparameters.seed)
    started = time.perf_counter()
    averaged = yield from train(module, load_images(split="training"), hyperparameters, teacher)
    _write(name, folder, architecture, hyperparameters, description, averaged, time.perf_counter() - started)


def build_seeded(architecture: Mapping[str, Any], seed: int) -> nn.Module:
    """Builds the module with initial weights fixed by the seed; torch's global generator is left as it was.

    timm draws every weight with standard deviation 0.02, right for a thousand channels; with some fifty to a hundred it
    leaves the first epochs without signal, so matrices get Glorot's range and positions a visible size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_architecture(architecture)
        for name, part in module.named_modules():
            if isinstance(part, nn.Linear) and not name.startswith("head"):
                nn.init.xavier_uniform_(part.weight)
        for name, parameter in module.named_parameters():
            if name.endswith(("pos_embed", "relative_position_bias_table")):
                nn.init.normal_(parameter, std=0.3)
    return module


def train(
    module: nn.Module, images: Images, hyperparameters: Hyperparameters, teacher: nn.Module | None = None
) -> Iterator[EpochResult]:
    """Trains `module` in place and returns (as the generator's value) its averaged weights in a module of its own.

    With a teacher the module's second head learns the teacher's decision on the same augmented image by hard
    distillation, equation 3 of DeiT (Touvron et al. 2021, arXiv 2012.12877), the first head the label.
    """
    generator = torch.Generator().manual_seed(hyperparameters.seed)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (images.mean, images.std))
    shown = images.display().permute(0, 3, 1, 2)
    module.train()
    if teacher is not None:
        module.set_distilled_training(True)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(hyperparameters.average_decay))
    optimizer = torch.optim.AdamW(
        _parameter_groups(module, hyperparameters.weight_decay), lr=hyperparameters.learning_rate
    )
    steps_per_epoch = math.ceil(len(images) / hyperparameters.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(hyperparameters, steps_per_epoch))
    started = time.perf_counter()
    for epoch in range(1, hyperparameters.epochs + 1):
        loss_sum = correct = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(hyperparameters.batch):
            labels = images.labels[chosen]
            targets = F.one_hot(labels, len(images.class_names)).float()
            pixels, targets = mix((augment(shown[chosen], generator) - mean) / std, targets, generator)
            outputs = module(pixels)
            if teacher is None:
                loss = F.cross_entropy(outputs, targets, label_smoothing=hyperparameters.label_smoothing)
            else:
                outputs, distilled = outputs
                with torch.no_grad():
                    decisions = teacher(pixels).argmax(1)
                loss = (
                    F.cross_entropy(outputs, targets, label_smoothing=hyperparameters.label_smoothing)
                    + F.cross_entropy(distilled, decisions)
                ) / 2
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            learning_rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            averaged.update_parameters(module)
            loss_sum += loss.item() * len(chosen)
            correct += (outputs.argmax(1) == labels).sum().item()
        yield EpochResult(
            epoch=epoch,
            epochs=hyperparameters.epochs,
            loss=loss_sum / len(images),
            train_accuracy=correct / len(images),
            learning_rate=learning_rate,
            seconds=time.perf_counter() - started,
        )
    return averaged.module.eval()


def mix(pixels: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns every image blended with another one, and the targets `[B, classes]` in the same shares.

    Mixup (Zhang et al. 2018, arXiv 1710.09412); the image's own share is uniform between a half and one, so that its
    own label stays the largest target.
    """
    share = 0.5 + 0.5 * torch.rand(len(pixels), generator=generator)
    partner = torch.randperm(len(pixels), generator=generator)
    share_of_pixel, share_of_target = share.view(-1, 1, 1, 1), share.view(-1, 1)
    return (
        share_of_pixel * pixels + (1 - share_of_pixel) * pixels[partner],
        share_of_target * targets + (1 - share_of_target) * targets[partner],
    )


def _schedule(hyperparameters: Hyperparameters, steps_per_epoch: int) -> Callable[[int], float]:
    total = hyperparameters.epochs * steps_per_epoch
    warmup = min(hyperparameters.warmup_epochs * steps_per_epoch, total // 4)
    return lambda step: learning_rate_factor(step, total, warmup)


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    kept = module.no_weight_decay()
    decayed = {n: p for n, p in module.named_parameters() if p.ndim > 1 and n.rsplit(".", 1)[-1] not in kept}
    others = [parameter for name, parameter in module.named_parameters() if name not in decayed]
    return [{"params": [*decayed.values()], "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _load_teacher(folder: Path) -> nn.Module:
    try:
        return load_embedded(TEACHER, folder).module
    except ModelError as error:
        raise ModelError(
            f"{STUDENT} learns from {TEACHER}, which must be in {folder} first: "
            f"python -m mixqvit train-embedded --model {TEACHER} ({error})"
        ) from error


def top1(module: nn.Module, images: Images) -> float:
    """Returns the share of images whose label has the largest output."""
    with torch.inference_mode():
        decisions = torch.cat([module(batch).argmax(1) for batch in images.pixels.split(128)])
    return (decisions == images.labels).float().mean().item()


def _write(
    name: str,
    folder: Path,
    architecture: Mapping[str, Any],
    hyperparameters: Hyperparameters,
    description: str,
    module: nn.Module,
    seconds: float,
) -> None:
    """Writes checkpoint and card, each whole or not at all."""
    splits = {split: load_images(split=split) for split in ("training", "calibration", "evaluation")}
    content = safetensors.torch.save({key: tensor.contiguous() for key, tensor in module.state_dict().items()})
    command = f"python -m mixqvit train-embedded --model {name}"
    card = {
        "name": name,
        "description": description,
        "architecture": architecture,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "images": "digits",
        "class_names": list(splits["evaluation"].class_names),
        "preprocessing": {
            "input_size": list(DIGITS_SIZE),
            "mean": list(DIGITS_MEAN),
            "std": list(DIGITS_STD),
            "resize": "8x8 to 32x32 pixels, bicubic, clamped to 0..1",
        },
        "splits": {split: len(images) for split, images in splits.items()},
        "accuracy": {
            "top1": round(top1(module, splits["evaluation"]), 4),
            "images": "evaluation",
            "measured": "once, after the last epoch; no evaluation image took part in training or in choosing anything",
        },
        "training": {
            "command": command,
            "teacher": TEACHER if name == STUDENT else None,
            "hyperparameters": asdict(hyperparameters),
            "weights": "exponential moving average after the last epoch",
            "minutes": round(seconds / 60, 1),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "reproducible": "same machine, threads and versions: same weights; elsewhere rounding may differ",
        },
        "checkpoint": {"file": checkpoint_path(name).name, "sha256": hashlib.sha256(content).hexdigest()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(checkpoint_path(name, folder), content)
        _replace(card_path(name, folder), (json.dumps(card, indent=2) + "\n").encode())
    except OSError as error:
        raise ModelError(f"{name} is trained but cannot be written to {folder} ({error.strerror})") from error


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
