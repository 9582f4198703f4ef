"""How far long work is: every stage, loader and export is a generator of this."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """How far long work is. Work that needs a stage first reports that one's progress, under its name.

    Attributes:
        done: Finished pieces, those found in the store included; with a fraction where a piece reports finer steps.
        total: All pieces of this stage.
        doing: What was finished last, in words.
        result: The result of the whole work, which its last progress carries, and no other.
        stage: Name of the stage that `done` and `total` count; empty for work that has only one.
        piece: What was finished last, or all that is finished so far, where it is of use by itself.
    """

    done: float
    total: int
    doing: str
    result: Any = None
    stage: str = ""
    piece: Any = None

    @property
    def finished(self) -> bool:
        """Whether this is the last one, with the result."""
        return self.result is not None
