"""Loading a model from where a person says, with progress."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixqvit.engines.progress import Progress
from mixqvit.models.model import Model
from mixqvit.models.sources.factory import find_source

__all__ = ["load_model", "load_model_steps"]


def load_model(
    name: str | None = None, checkpoint: str | Path | None = None, preprocessing: Mapping[str, Any] | None = None
) -> Model:
    """Load a model with its weights.

    Args:
        name: An embedded model (see `list_models`), any model name of timm, or `local-dir:FOLDER` with a model that
            timm saved. None to take the architecture that the checkpoint names, or to guess it from the tensors.
        checkpoint: Weights in a `.safetensors` file, or one of `torch.save`, which is read with `weights_only=True`.
            What is assumed about them is in the model's notes.
            Without it the embedded weights are used, or timm's pretrained ones are downloaded.
        preprocessing: What to change of timm's data configuration: `mean`, `std`, `interpolation`, `crop_pct`,
            `crop_mode`.

    Raises:
        ModelError: Unknown name, weights that cannot be downloaded, or a file that is missing, damaged or of
            another architecture.
        ImageError: The preprocessing cannot be changed like that.
    """
    *_, last = load_model_steps(name, checkpoint, preprocessing)
    return last.result


def load_model_steps(
    name: str | None = None, checkpoint: str | Path | None = None, preprocessing: Mapping[str, Any] | None = None
) -> Iterator[Progress]:
    """Load a model like `load_model`, yielding what is done; the last result is the `Model`.

    While weights are downloaded, `done` and `total` are bytes.

    Raises:
        ModelError, ImageError: As `load_model`.
    """
    for step in find_source(name, checkpoint).load_steps(preprocessing or {}):
        if isinstance(step.result, Model) and preprocessing:
            changed = step.result.preprocessing.overridden(preprocessing)
            step = replace(step, result=replace(step.result, preprocessing=changed))
        yield step
