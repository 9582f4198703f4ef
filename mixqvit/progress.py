"""How far long work is: every stage, loader and export is a generator of this."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """How far a long stage is. A stage that needs another one first reports that one's steps, without results.

    Attributes:
        done: Finished pieces, those found in the store included.
        total: All pieces.
        doing: What was finished last, in words.
        result: The finished piece, where it is of use by itself.
    """

    done: int
    total: int
    doing: str
    result: Any = None
