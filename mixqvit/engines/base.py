"""What every engine does."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

__all__ = ["LOSSES", "Engine", "Task", "Work"]

Task = Any

Work = Callable[[], Callable[[Task], Iterable[Any]]]
"""Builds, once in every worker, what turns a task into pieces. Can be pickled, unless it only runs in this process."""

LOSSES = 3
"""Workers that may be lost one after the other, without a task finished in between, before an engine gives up."""


class Engine(Protocol):
    """Runs tasks.

    Attributes:
        is_here: Tasks run in this process, with the model that is loaded in it.
        workers: How many tasks run at once; None before a cluster was asked.
    """

    is_here: bool
    workers: int | None

    def results(self, work: Work, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yield the pieces of all tasks as they are finished; stopping early stops the workers.

        A worker that dies is replaced, and the task it was at runs again; of a task either all pieces are yielded or
        none, except in this process.

        Args:
            work: What a worker does.
            tasks: Independent of each other; begun in this order.

        Raises:
            EngineError: No worker can be had, or several in a row die at their first task.
            MixQViTError: What the work raises.
        """
        ...
