"""The engine that needs nothing: one task after the other, here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mixqvit.engines.base import Task, Work

__all__ = ["ThisProcess"]


@dataclass(frozen=True)
class ThisProcess:
    """Tasks run in this process; every piece is yielded as soon as it is there."""

    is_here: ClassVar[bool] = True
    workers: ClassVar[int] = 1

    def results(self, work: Work, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yield the pieces of all tasks; see `Engine.results`."""
        do = work()
        for task in tasks:
            yield from do(task)
