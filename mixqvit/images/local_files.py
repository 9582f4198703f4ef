"""Reading files of a folder that somebody else may have filled: no pipe, no huge file, no link out of it unasked."""

import stat
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixqvit.images.files import Files
from mixqvit.images.listing import MAX_FILE_BYTES, Entry, UnreadableImage, few

__all__ = ["LINK_OUT", "LocalFiles", "file_stamp", "followed_note", "is_inside", "read_limited"]

LINK_OUT = "it is a link that leads out of the folder; such links are followed on the command line only"


class LocalFiles(Files):
    """Image files by their paths, which are the keys of their entries."""

    @property
    @abstractmethod
    def root(self) -> Path | None:
        """The resolved folder that they must lie in; None where links may lead out of it."""

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | UnreadableImage]]:
        """Read files one at a time."""
        root = self.root
        for entry in entries:
            yield entry, read_limited(entry.key, root)

    def size(self, entry: Entry) -> int:
        """Return the bytes of a file."""
        try:
            return entry.key.stat().st_size
        except (OSError, RuntimeError) as error:
            raise _unreadable(error) from error

    def is_kept(self, entries: Sequence[Entry]) -> bool:
        """Return False: files are read in any order."""
        return False

    def stamp(self, entry: Entry) -> str:
        """Return size and time of change of a file."""
        return file_stamp(entry.key)


def file_stamp(path: Path) -> str:
    """Return the size of a file and when it was changed."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} "


def followed_note(links: Sequence[str]) -> tuple[str, ...]:
    """Return a note on links that lead out of a folder and are followed."""
    return (f"{len(links)} link(s) that lead out of the folder are followed: {few(links)}",) if links else ()


def is_inside(path: Path, root: Path) -> bool:
    """Return whether a path is a folder or lies in it; both are resolved already."""
    return path == root or root in path.parents


def read_limited(path: Path, root: Path | None) -> bytes | UnreadableImage:
    """Return a file's content where it is an ordinary file inside a resolved folder and not too large.

    Args:
        path: The file.
        root: The folder; None where links may lead out of it.
    """
    try:
        if root is not None and not is_inside(path.resolve(), root):
            return UnreadableImage("it leads out of the folder")
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            return UnreadableImage("it is no file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as error:
        return _unreadable(error)
    if len(data) > MAX_FILE_BYTES:
        return UnreadableImage(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def _unreadable(error: Exception) -> UnreadableImage:
    if isinstance(error, FileNotFoundError):
        return UnreadableImage("it does not exist")
    return UnreadableImage(f"it cannot be read ({getattr(error, 'strerror', None) or error})")
