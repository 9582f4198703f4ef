"""A trained model as a study of its own, so that every page can look at it: channels, layers, quantizers."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from mixqvit.errors import StoreError, TrainingError
from mixqvit.network.bits import Bits
from mixqvit.stages.store import fingerprint
from mixqvit.study.library import StudyDescription, free_name, keep_study, trained_folder

if TYPE_CHECKING:
    from mixqvit.study.study import Study
    from mixqvit.training.settings import TrainingSettings

__all__ = ["keep_trained"]


def keep_trained(
    study: "Study",
    description: StudyDescription,
    bits: Mapping[str, int | Bits],
    settings: "TrainingSettings",
    source: str | None = None,
    name: str | None = None,
) -> str:
    """Keep the weights of a trained model as a study; returns its name.

    The weights are what their codes stand for, in float32; activations are not quantized in that study unless bits are
    chosen for them again.

    Args:
        study: Where it was trained.
        description: What that study is made of.
        bits: As it was trained.
        settings: As it was trained.
        source: As it was trained.
        name: What to call it; by default after the model, the training method and the bits.

    Raises:
        TrainingError: The training is not finished, or its weights do not fit the model's architecture.
        StoreError: The cache folder cannot be written.
    """
    from safetensors.torch import save_file

    if description.study_file is not None:
        raise TrainingError(
            "The study is an imported file, which has its own weights. Open the model and the images themselves to "
            "keep trained weights as a study."
        )
    weights = study.training.weights(bits, settings, source)
    listed = {layer: list(pair) for layer, pair in study.resolved(bits).items()}
    key = fingerprint(study.identity, listed, repr(settings), source)[:16]
    folder = trained_folder(study.store) / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"model.{os.getpid()}.tmp"
        save_file({own: tensor.contiguous() for own, tensor in weights.items()}, temporary)
        temporary.replace(folder / "model.safetensors")
        model, checkpoint = description.source.with_weights(folder / "model.safetensors", study.model.name)
        kept = replace(description, model=model, checkpoint=checkpoint)
    except OSError as error:
        raise StoreError(f"The trained weights cannot be written to {folder} ({error.strerror}).") from error
    average = study.training.inner_average_bits(study.resolved(bits))
    wanted = f"{PurePath(study.model.name).name[-40:]} {settings.method} {average:.3g} bits"
    return keep_study(study.store, name or free_name(study.store, wanted, kept), kept)
