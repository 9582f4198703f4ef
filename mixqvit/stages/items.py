"""What a stage is made of: how many pieces there are, which are saved, and which are missing."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["ImageRanges", "Items", "Named"]


class Items(Protocol):
    """The items of a stage. Its pieces are saved under their names."""

    def name(self, item: Any) -> str:
        """Return what the piece of an item is saved under."""
        ...

    def counted(self, saved: Collection[str]) -> tuple[int, int]:
        """Return how many items the saved pieces are, and how many there are."""
        ...

    def missing(self, saved: Collection[str]) -> list[Any]:
        """Return the items that no saved piece covers, in order."""
        ...

    def words(self, name: str, done: int) -> str:
        """Return what was finished, in words, when `done` items are."""
        ...


@dataclass(frozen=True)
class Named:
    """Items with names, one piece each.

    Attributes:
        names: In order.
        template: What is said of a finished one, with `{name}`.
    """

    names: tuple[str, ...]
    template: str = "{name}"

    def name(self, item: str) -> str:
        """Return the item, which is its name."""
        return item

    def counted(self, saved: Collection[str]) -> tuple[int, int]:
        """Return how many items are saved, and how many there are."""
        known = set(saved)
        return sum(name in known for name in self.names), len(self.names)

    def missing(self, saved: Collection[str]) -> list[str]:
        """Return the names that are not saved."""
        known = set(saved)
        return [name for name in self.names if name not in known]

    def words(self, name: str, done: int) -> str:
        """Return what was finished, in words."""
        return self.template.format(name=name)


@dataclass(frozen=True)
class ImageRanges:
    """Images, of which a piece covers a `range` of any length.

    Attributes:
        images: How many.
        template: What is said after a piece, with `{done}` and `{total}`.
    """

    images: int
    template: str = "{done} of {total} images"

    def name(self, item: range) -> str:
        """Return what a piece of these images is saved under."""
        return f"images {item.start} to {item.stop}"

    def counted(self, saved: Collection[str]) -> tuple[int, int]:
        """Return how many images are covered, and how many there are."""
        return sum(map(len, self.covered(saved))), self.images

    def missing(self, saved: Collection[str]) -> list[range]:
        """Return the ranges of images that nothing covers, as long as they can be."""
        gaps, position = [], 0
        for part in [*self.covered(saved), range(self.images, self.images)]:
            if part.start > position:
                gaps.append(range(position, part.start))
            position = part.stop
        return gaps

    def words(self, name: str, done: int) -> str:
        """Return how many images are finished, in words."""
        return self.template.format(done=done, total=self.images)

    def covered(self, saved: Iterable[str]) -> list[range]:
        """Return the ranges of saved pieces in order; where two overlap, the one that begins first."""
        found: list[range] = []
        for part in sorted((_range(name) for name in saved), key=lambda part: (part.start, -part.stop)):
            if part.stop <= self.images and part.start >= (found[-1].stop if found else 0):
                found.append(part)
        return found

    def in_order(self, pieces: Iterable[str]) -> list[str]:
        """Return the names of the saved pieces that are used, in the order of their images."""
        return [self.name(part) for part in self.covered(pieces)]


def _range(name: str) -> range:
    start, stop = re.findall(r"\d+", name)
    return range(int(start), int(stop))
