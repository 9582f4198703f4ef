"""A folder of image files."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.kinds import is_image_name, is_validation_list, unread_name
from mixqvit.images.listing import MAX_FILE_BYTES, Entry, Listing, Steps, UnreadableImage, few, is_hidden, shown

__all__ = ["LINK_OUT", "MAX_FILES", "Folder", "followed_note", "is_inside", "read_limited"]

MAX_FILES = 2_000_000
"""Files and folders that are looked at: ImageNet's training set has 1.3 million."""

LINK_OUT = "it is a link that leads out of the folder; such links are followed on the command line only"

_REPORT_EVERY = 2000


class Folder:
    """A folder with one sub-folder per class, or with images straight inside."""

    def __init__(self, path: Path, follow_links: bool = False) -> None:
        self.path = path
        self.follow_links = follow_links

    def listing_steps(self) -> Steps:
        """List the image files in all sub-folders; links out of the folder are followed only if the folder says so."""
        root = self.path.resolve()
        entries: list[Entry] = []
        skipped: list[tuple[str, str]] = []
        lists: list[Entry] = []
        followed: list[str] = []
        waiting = [(self.path, "", (root,))]
        seen = 0
        while waiting:
            folder, prefix, ancestors = waiting.pop()
            try:
                with os.scandir(folder) as scanned:
                    items = sorted(scanned, key=lambda item: item.name)
            except OSError as error:
                if not prefix:
                    raise ImageError(f"the folder {self.path} cannot be read ({error.strerror})") from error
                skipped.append((shown(prefix), f"the folder cannot be read ({error.strerror})"))
                continue
            for item in items:
                seen += 1
                if seen > MAX_FILES:
                    raise ImageError(f"{self.path} holds more than {MAX_FILES:,} files; give a part of it")
                if seen % _REPORT_EVERY == 0:
                    yield Progress(0, 1, f"listing: {seen} files")
                name = prefix + item.name
                if is_hidden(item.name):
                    continue
                path = Path(item.path)
                try:
                    if (item.is_symlink() or _is_junction(item)) and not is_inside(path.resolve(), root):
                        if not self.follow_links:
                            skipped.append((shown(name), LINK_OUT))
                            continue
                        followed.append(name)
                    if item.is_dir():
                        real = path.resolve()
                        if real not in ancestors:
                            waiting.append((path, f"{name}/", (*ancestors, real)))
                    elif reason := unread_name(item.name):
                        skipped.append((shown(name), reason))
                    elif is_image_name(item.name) or is_validation_list(item.name):
                        if item.is_file():
                            kept = lists if is_validation_list(item.name) else entries
                            kept.append(Entry(shown(name, 4096), key=path))
                        else:
                            skipped.append((shown(name), "it is no file, or a link that leads nowhere"))
                except (OSError, RuntimeError) as error:  # a link that leads to itself
                    skipped.append((shown(name), f"it cannot be looked at ({error})"))
        return Listing(tuple(entries), (), tuple(skipped), followed_note(followed), lists=tuple(lists))

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | UnreadableImage]]:
        """Read files one at a time."""
        root = None if self.follow_links else self.path.resolve()
        for entry in entries:
            yield entry, read_limited(entry.key, root)


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
    except FileNotFoundError:
        return UnreadableImage("it does not exist")
    except (OSError, RuntimeError, ValueError) as error:
        return UnreadableImage(f"it cannot be read ({getattr(error, 'strerror', None) or error})")
    if len(data) > MAX_FILE_BYTES:
        return UnreadableImage(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def _is_junction(item: os.DirEntry) -> bool:
    """Whether it is what Windows has in place of links to folders; Python tells from 3.12 on."""
    return getattr(item, "is_junction", lambda: False)()
