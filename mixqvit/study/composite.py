"""The progress of work that is made of other work: each part reports as one part of the whole."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from mixqvit.engines.progress import Progress

__all__ = ["PART", "Composite", "awaited", "without_results"]

PART = 100
"""What one part counts."""


class Composite:
    """How far the whole is.

    Attributes:
        total: What all parts count together; lowered where one is left out.
        finished: What the finished parts count.
    """

    def __init__(self, name: str, parts: int, piece: Callable[[], Any]) -> None:
        """Count so many parts.

        Args:
            name: Of the whole, which its progress names as its stage.
            parts: All of them.
            piece: Returns what is finished of the whole so far.
        """
        self.total, self.finished = PART * parts, 0
        self._name, self._piece = name, piece

    def part(self, steps: Iterator[Progress], name: str, stages: Sequence[str]) -> Generator[Progress, None, Any]:
        """Report work as the next part of the whole; returns its result.

        Args:
            steps: The work.
            name: What it is, in words.
            stages: Names of its stages that count, alike and in this order; others do not move the whole on.
        """
        done = self.finished
        for step in steps:
            if step.stage in stages:
                parts = stages.index(step.stage) + step.done / max(1, step.total)
                done = max(done, self.finished + int(PART * parts / len(stages)))
            yield Progress(done, self.total, f"{name}: {step.doing}", stage=self._name, piece=self._piece())
        self.finished += PART
        return step.result

    def leave_out(self, parts: int) -> None:
        """Count fewer parts."""
        self.total -= PART * parts

    def progress(self) -> Progress:
        """Return how far the whole is."""
        return Progress(self.finished, self.total, self._name, stage=self._name, piece=self._piece())

    def last(self) -> Progress:
        """Return the last progress, whose result is what is finished."""
        total = max(1, self.total)
        return Progress(total, total, self._name, self._piece(), self._name)


def without_results(steps: Iterator[Progress]) -> Iterator[Progress]:
    """Yield the progress of work that other work needs: results and pieces are those of the whole alone."""
    return (replace(step, result=None, piece=None) for step in steps)


def awaited(steps: Iterator[Progress]) -> Generator[Progress, None, Any]:
    """Yield the progress of work that other work needs, as `without_results` does; returns its result."""
    for step in steps:
        yield replace(step, result=None, piece=None)
    return step.result
