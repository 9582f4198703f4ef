"""A walk through the network that measures what it is asked for, layer after layer."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Generic, TypeVar

__all__ = ["InOrder"]

Piece = TypeVar("Piece")

Wanted = Callable[[str], Collection[Any]]


class InOrder(Generic[Piece]):
    """Turns a sweep over all layers into one that is told, a task at a time, which layer to measure.

    A task is (name of a layer, what to measure there). As long as the layers come in network order, the walk goes on
    from where it stands, so that all tasks together cost one pass up to the layers; for an earlier one it begins anew.
    """

    def __init__(self, start: Callable[[Wanted], Iterator[Piece]], order: Mapping[str, int]) -> None:
        """Get ready; nothing is computed yet.

        Args:
            start: Starts the sweep. It calls what it is given with the name of each layer it comes to, and yields one
                piece for each of what that returns.
            order: Place of every layer in the network.
        """
        self._start, self._order = start, order
        self._task: tuple[str, Collection[Any]] = ("", ())
        self._walk: Iterator[Piece] | None = None

    def __call__(self, task: tuple[str, Collection[Any]]) -> Iterator[Piece]:
        """Yield the pieces of a task."""
        last, self._task = self._task[0], task
        if self._walk is None or self._order[task[0]] <= self._order[last]:
            self._walk = self._start(self._wanted)
        for _ in task[1]:
            yield next(self._walk)

    def _wanted(self, layer: str) -> Collection[Any]:
        return self._task[1] if layer == self._task[0] else ()
