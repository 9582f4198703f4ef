"""Commands that train: a quantized model with its quantizers in the loop, an embedded model from scratch."""

import argparse
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from mixqvit.allocation.costs import cost
from mixqvit.commands.printing import Document, measured_columns, table
from mixqvit.commands.studies import absolute_images, description_of, finish, score, study_of_allocation
from mixqvit.commands.studies import study as open_study
from mixqvit.errors import BitWidthError, TrainingError
from mixqvit.files.documents import measurement
from mixqvit.network.bits import FULL_PRECISION
from mixqvit.study.trained_study import keep_trained
from mixqvit.training.settings import TrainingSettings

if TYPE_CHECKING:
    from mixqvit.network.bits import BitsPerLayer
    from mixqvit.study.study import Study

__all__ = ["train", "train_embedded"]


def train(options: argparse.Namespace) -> tuple[Document, str]:
    """Train a quantized model and measure it beside full precision and post-training quantization."""
    settings = TrainingSettings(
        options.method, options.epochs, options.seed, options.batch, options.learning_rate, options.patience
    )
    study, bits = _study_and_bits(options)
    source = absolute_images(options.training_images)
    _check_saved(study, bits, settings, source, options)
    finish(study.training.images_steps(source, follow_links=True))  # the study keeps what the owner may read
    run = finish(study.training_steps(bits, settings, source))
    found = {
        "full precision": finish(study.evaluate_steps(FULL_PRECISION)),
        "post-training": finish(study.evaluate_steps(bits)),
        f"trained ({options.method})": finish(study.evaluate_trained_steps(bits, settings, source)),
    }
    costs = [
        cost(study.layers, study.resolved(FULL_PRECISION), study.storage),
        cost(study.layers, bits, study.storage),
        study.training.cost(bits, settings),
    ]
    if options.output is not None and os.environ.get("RANK", "0") == "0":
        study.pack_trained(bits, options.output, settings, source)
    kept = None
    if options.keep is not None and os.environ.get("RANK", "0") == "0":
        kept = keep_trained(study, description_of(options), bits, settings, source, options.keep)
    document: Document = {"model": study.model.name, "settings": asdict(study.settings), "training": asdict(settings)}
    document |= {"training_images": run.images, "kept_epoch": run.best, "stopped_early": run.stopped_early}
    document["study"] = kept
    document["bits"] = {name: list(pair) for name, pair in bits.items()}
    document["epochs"] = [asdict(epoch) for epoch in run.epochs]
    document["measured"] = {
        name: measurement(evaluation) | {"size_bytes": own.size_bytes, "bitops": own.bitops}
        for (name, evaluation), own in zip(found.items(), costs, strict=True)
    }
    rows = [
        (name, *measured_columns(row), f"{row['size_bytes'] / 1e6:.3f}", f"{row['bitops'] / 1e9:.4f}")
        for name, row in document["measured"].items()
    ]
    epochs = [
        (epoch.epoch, f"{epoch.loss:.4f}", f"{epoch.validation_loss:.4f}", f"{epoch.seconds:.0f}")
        for epoch in run.epochs
    ]
    curves = table(("epoch", "loss", "validation loss", "s"), epochs)
    results = table(("", "top-1", "agreement", "KL", "size MB", "BitOps G"), rows)
    return document, f"{curves}\nkept: epoch {run.best}\n\n{results}"


def _study_and_bits(options: argparse.Namespace) -> tuple["Study", "BitsPerLayer"]:
    if sum(value is not None for value in (options.bits, options.average_bits, options.allocation)) != 1:
        raise BitWidthError(
            "Give --bits for uniform bits, --average-bits for mixed ones, or --allocation with a file that `allocate` "
            "wrote; one of the three."
        )
    if options.allocation is not None:
        return study_of_allocation(options, options.allocation)
    study = open_study(options)
    if options.bits is not None:
        return study, study.first_last_uniform(options.bits)
    request = study.first_last_request(options.average_bits)
    score(study, request)
    return study, study.allocate(request).bits


def _check_saved(
    study: "Study",
    bits: "BitsPerLayer",
    settings: TrainingSettings,
    source: str | None,
    options: argparse.Namespace,
) -> None:
    """Make sure that saved epochs are neither lost nor gone on from by accident."""
    saved = study.training.progress(bits, settings, source)
    if options.restart:
        study.training.forget(bits, settings, source)
    elif saved.done and not options.resume:
        raise TrainingError(
            f"{saved.done} of {saved.total} epochs of this training are saved. Give --resume to go on from there, or "
            "--restart to forget them and begin again."
        )
    elif options.resume and not saved.done:
        print("No epoch of this training is saved; it begins now.", file=sys.stderr)


def train_embedded(options: argparse.Namespace) -> tuple[Document, str]:
    """Train an embedded model again."""
    from mixqvit.training import embedded

    epochs = []
    for epoch in embedded.train_embedded(options.model, options.folder, options.epochs):
        epochs.append(asdict(epoch))
        print(", ".join(f"{key} {value}" for key, value in epochs[-1].items()), file=sys.stderr)
    return {"model": options.model, "epochs": epochs}, f"{options.model} is trained; its card states the accuracy."
