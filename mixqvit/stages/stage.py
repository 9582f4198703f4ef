"""What a stage is: long work in pieces, said as data. `mixqvit.stages.runner` runs it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from mixqvit.engines.base import Task, Work
from mixqvit.stages.forms import ROWS, Form
from mixqvit.stages.items import Items

if TYPE_CHECKING:  # it brings torch, and criteria that name their stages do not
    from mixqvit.stages.context import Context

__all__ = ["STAGES", "Stage", "Step", "registered", "versions"]

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Step:
    """How far the piece is that is being computed.

    Attributes:
        part: From 0 to 1.
        doing: In words.
    """

    part: float
    doing: str


class Stage(ABC, Generic[Piece, Result]):
    """Long work in pieces. A stage is a frozen dataclass of its parameters.

    Its results are found again by name, version, parameters, those of the stages it needs, the model, the calibration
    images and the versions of libraries: whoever changes what it computes raises the version, which a test watches
    (`tests/stages/test_golden.py`).

    Attributes:
        name: What progress says; unique.
        version: Raised whenever the numbers change.
        form: How pieces are kept: `ROWS` (values that JSON can write), `TENSORS` or `STATE`.
        libraries: Packages beside torch and timm that decide numbers.
        shows_all: Whether progress carries what all pieces so far make together, in place of the latest alone; `join`
            then takes a part of the pieces too.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    form: ClassVar[Form] = ROWS
    libraries: ClassVar[tuple[str, ...]] = ()
    shows_all: ClassVar[bool] = False

    def needs(self, study: "Context") -> Sequence["Stage"]:
        """Return the stages that are finished before this one is computed; `study.result` gives their results."""
        return ()

    def depends_on(self, study: "Context") -> Sequence[Any]:
        """Return what else decides the numbers, as JSON can write it: how many images, which other ones."""
        return ()

    @abstractmethod
    def items(self, study: "Context") -> Items:
        """Return what it is made of."""

    def compute(self, study: "Context", missing: Sequence[Any]) -> Iterator[Step | tuple[Any, Piece]]:
        """Yield (item, piece) for all items that are missing, in any order; between them steps, if there are any.

        By default the engine of the study runs the tasks.
        """
        yield from study.engine.results(self.work(study), self.tasks(study, missing))

    def work(self, study: "Context") -> Work:
        """Return what a worker of an engine does: from a task to its (item, piece) pairs."""
        raise NotImplementedError(f"{self.name} runs in this process only.")

    def tasks(self, study: "Context", missing: Sequence[Any]) -> Sequence[Task]:
        """Return the tasks that make up what is missing."""
        raise NotImplementedError(f"{self.name} runs in this process only.")

    def written(self, piece: Piece) -> Any:
        """Return a piece as its form keeps it."""
        return piece

    def read(self, name: str, written: Any) -> Piece:
        """Return what `written` was given, from the name of the item and what was kept."""
        return written

    @abstractmethod
    def join(self, study: "Context", pieces: Mapping[str, Piece]) -> Result:
        """Return the result from all pieces, by the names of the items."""

    def is_remembered(self, study: "Context") -> bool:
        """Return whether the result stays in memory; otherwise it is joined from the store each time."""
        return True

    def seconds_left(self, study: "Context") -> float | None:
        """Return about how long computing what is missing takes here; None where nobody has measured what it takes."""
        return None

    def companions(self) -> tuple[int, int]:
        """Return the number of this process, and of how many that compute the same pieces hand in hand.

        Such processes do not claim their work from each other, and the first one saves it.
        """
        return 0, 1


STAGES: dict[str, type[Stage]] = {}
"""All stages by name."""


def registered(stage: type[Stage]) -> type[Stage]:
    """Put a class of stages on the list, as a decorator."""
    if STAGES.setdefault(stage.name, stage) is not stage:
        raise ValueError(f"There are two stages {stage.name!r}.")
    return stage


def versions() -> dict[str, int]:
    """Return the versions of all stages by name."""
    return {name: stage.version for name, stage in sorted(STAGES.items())}
