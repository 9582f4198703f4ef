"""The progress of work that is made of stages: each stage reports as one part of the whole."""

from collections.abc import Callable, Generator, Iterator
from typing import Any

from mixqvit.progress import Progress

__all__ = ["PART", "Parts"]

PART = 100
"""What one stage counts."""


class Parts:
    """How far the whole is.

    Attributes:
        total: What all stages count together; lowered where one is left out.
        finished: What the finished stages count.
    """

    def __init__(self, stages: int, result: Callable[[], Any]) -> None:
        """Count so many stages.

        Args:
            stages: All of them.
            result: Returns the result of the whole so far.
        """
        self.total, self.finished = PART * stages, 0
        self._result = result

    def forwarded(self, steps: Iterator[Progress], name: str) -> Generator[Progress, None, Any]:
        """Report a stage as the next part of the whole; returns the stage's last result."""
        for step in steps:
            done = self.finished + PART * step.done // max(1, step.total)
            yield Progress(done, self.total, f"{name}: {step.doing}", self._result())
        self.finished += PART
        return step.result
