"""Which source of models a person means."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixqvit.errors import ModelError
from mixqvit.models.sources.source import SOURCES, ModelSource

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build", "find_source", "forms"]


def find_source(model: str | None, checkpoint: str | Path | None = None) -> ModelSource:
    """Return where a model comes from; nothing is looked at yet.

    Args:
        model: What a person named, see `forms`; None where the checkpoint says it.
        checkpoint: A file of weights.

    Raises:
        ModelError: Nothing is named.
    """
    file = None if checkpoint is None else str(checkpoint)
    kinds = sorted(SOURCES.values(), key=lambda kind: not kind.prefix)  # other names are timm's, known or not
    found = next((source for kind in kinds if (source := kind.parse(model, file)) is not None), None)
    if found is None:
        raise ModelError("name a model, or give a file of weights as its checkpoint")
    return found


def forms() -> str:
    """Return in words how models are named."""
    return "; ".join(kind.words for kind in SOURCES.values() if kind.words)


def build(architecture: Mapping[str, Any]) -> "nn.Module | None":
    """Return the module of a `Model.architecture` with fresh weights; None where no source knows it.

    Raises:
        ModelError: It cannot be built here.
    """
    built = (kind.build(architecture) for kind in SOURCES.values())
    return next((module for module in built if module is not None), None)
