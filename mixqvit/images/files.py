"""What reads the image files of a source, in order or in any order."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from mixqvit.images.listing import Entry, UnreadableImage

__all__ = ["MAX_KEPT_BYTES", "Files", "can_be_kept"]

MAX_KEPT_BYTES = 2 * 2**30
"""Bytes of the files of a source that are kept in memory, not decoded, where they cannot be read in any order."""


def can_be_kept(size: int) -> bool:
    """Return whether so many bytes of files may be kept in memory."""
    return size <= MAX_KEPT_BYTES


class Files(ABC):
    """Reads files that were listed. Worker processes get a copy."""

    @abstractmethod
    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | UnreadableImage]]:
        """Read files of the listing, one at a time, in the order that suits the source.

        Raises:
            ImageError: The source as a whole cannot be read any longer.
            OSError: The same.
        """

    @abstractmethod
    def size(self, entry: Entry) -> int | None:
        """Return the bytes of a file, or None where only reading it would tell.

        Raises:
            UnreadableImage: It cannot be read.
        """

    @abstractmethod
    def is_kept(self, entries: Sequence[Entry]) -> bool:
        """Return whether files that are read again and again in any order are to be kept in memory.

        Raises:
            ImageError: They must be, and are too large.
        """

    def stamps(self) -> tuple[str, ...]:
        """Return what tells a change of the files that hold all images; none where each image is a file."""
        return ()

    @abstractmethod
    def stamp(self, entry: Entry) -> str:
        """Return what tells a change of one image that the `stamps` do not tell."""
