"""What a source of models knows of itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mixqvit.engines.progress import Progress
from mixqvit.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from mixqvit.models.checkpoints import Checkpoint
    from mixqvit.models.model import Model

__all__ = ["SOURCES", "ModelSource", "registered"]


@dataclass(frozen=True)
class ModelSource(ABC):
    """A place that a model is loaded from.

    Attributes:
        kind: Its name; unique.
        prefix: What a model of this source is named with, such as `local-dir:`; empty where names say it themselves.
        words: How a person names such a model, and what is read then. Empty where it is named by its checkpoint alone.
        model: What is named; None where the checkpoint says it.
        checkpoint: A file of weights beside it, or None.
    """

    kind: ClassVar[str]
    prefix: ClassVar[str] = ""
    words: ClassVar[str]

    model: str | None
    checkpoint: str | None = None

    @classmethod
    def parse(cls, model: str | None, checkpoint: str | None) -> Self | None:
        """Return this source of what a person named, None if it is another one."""
        is_named = checkpoint is None and model is not None and model.startswith(cls.prefix)
        return cls(model) if is_named else None

    @property
    def place(self) -> str:
        """What stands behind the prefix."""
        return (self.model or "").removeprefix(self.prefix)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files and folders of this machine that a person can change, and with them the model."""
        return ()

    def located(self, path: Callable[[str], str | Path]) -> "ModelSource":
        """Return the same source with every path in it replaced by what a function returns for it."""
        return self

    @abstractmethod
    def load_steps(self, chosen: Collection[str]) -> Iterator[Progress]:
        """Load the model; the last result is the `Model`.

        Args:
            chosen: Names of what is changed of its preprocessing afterwards, and so needs no note.

        Raises:
            ModelError: It cannot be loaded.
        """

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of tensors with which a checkpoint of this model begins, beside the usual ones.

        Raises:
            ModelError: There is no such model, or it has weights of its own.
        """
        raise ModelError(f"{self.model} has weights of its own; give either it or a checkpoint")

    def filled(self, checkpoint: "Checkpoint", others: Sequence[str], chosen: Collection[str]) -> "Model":
        """Return the model with the weights of a checkpoint.

        Args:
            checkpoint: The weights.
            others: Further architectures that they fit.
            chosen: As in `load_steps`.

        Raises:
            ModelError: These are not its weights.
        """
        raise NotImplementedError  # of a source without stems

    def with_weights(self, file: Path, name: str) -> tuple[str | None, str | None]:
        """Return which model and which checkpoint name the same model with other weights.

        Args:
            file: The weights, in a folder for them alone; what the source needs beside them is written there.
            name: The loaded model's name.

        Raises:
            OSError: The folder cannot be written.
        """
        return self.model or name, str(file)

    @classmethod
    def build(cls, architecture: Mapping[str, Any]) -> "nn.Module | None":
        """Return the module of a `Model.architecture` with fresh weights; None where another source wrote that.

        Raises:
            ModelError: It cannot be built here.
        """
        return None


SOURCES: dict[str, type[ModelSource]] = {}
"""All sources by kind."""


def registered(source: type[ModelSource]) -> type[ModelSource]:
    """Put a class of sources on the list, as a decorator."""
    if SOURCES.setdefault(source.kind, source) is not source:
        raise ValueError(f"There are two sources of models {source.kind!r}.")
    return source
