"""What every source gives: a list of image files by name, and their bytes on request."""

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Protocol

from mixqvit.errors import ImageError
from mixqvit.progress import Progress

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_FILE_BYTES",
    "Entry",
    "Listing",
    "Source",
    "Steps",
    "UnreadableImage",
    "arranged",
    "is_hidden",
    "is_image_name",
    "shown",
    "split_of",
]

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
    ]
)

MAX_FILE_BYTES = 64 * 2**20
"""Bytes of one image file: a photograph of the largest admitted size takes less than half of it."""

_MACHINE_FILES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


class UnreadableImage(Exception):
    """One image cannot be read; the message says why. It is skipped, counted and named."""


@dataclass(frozen=True)
class Entry:
    """One image file of a source.

    Attributes:
        name: What it is called in messages and in `Images.names`; no two of a source are the same.
        label: The class as the source writes it: a name, an index, or None where it has none.
        split: `train`, `validation` or `test` where the source says so, otherwise None.
        key: What the source finds it by.
    """

    name: str
    label: str | int | None = None
    split: str | None = None
    key: object = None


@dataclass(frozen=True)
class Listing:
    """All image files of a source.

    Attributes:
        entries: The files, in any order.
        class_names: Where labels are names: those that exist, in the order that counts where a model knows none of
            them; empty for the sorted order of those that occur.
        skipped: Name and reason of what is not even listed, such as links out of a folder.
        notes: Sentences on how the source was understood.
        kind: What a label is called in messages: `sub-folder` or `label`.
    """

    entries: tuple[Entry, ...]
    class_names: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    kind: str = "label"


Steps = Generator[Progress, None, Listing]
"""Listing a source: how far it is, without results, and at the end the listing."""


class Source(Protocol):
    """Where images come from."""

    def listing_steps(self) -> Steps:
        """List the image files.

        Raises:
            ImageError: The source cannot be read or used.
        """
        ...

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | UnreadableImage]]:
        """Read files of the listing, one at a time, in the order that suits the source.

        Raises:
            ImageError: The source as a whole cannot be read any longer.
        """
        ...


def shown(name: str, length: int = 120) -> str:
    """Return a name that is safe to print and to save: control characters and broken Unicode escaped, not too long."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in name)
    return printable if len(printable) <= length else f"{printable[: length - 3]}..."


def is_image_name(name: str) -> bool:
    """Return whether a file name ends as an image's does."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Return whether some part of a path is hidden, or is what an operating system leaves beside files."""
    return any(part.startswith(".") or part.lower() in _MACHINE_FILES for part in name.split("/"))


def split_of(name: str) -> str | None:
    """Return `train`, `validation` or `test` where a folder or a file such as `test-00000-of-00001` says so."""
    return _SPLITS.get(re.split(r"[-_.]", name.lower())[0]) or _SPLITS.get(name.lower())


def arranged(listing: Listing, where: str, is_class: Callable[[str], bool], wrapped: bool) -> Listing:
    """Return files that were listed by path with what their folders say: splits, classes, or nothing.

    Args:
        listing: Entries whose names are paths with `/`, without labels.
        where: The source, for messages.
        is_class: Whether a name means a class of the model: such a folder is a class, whatever else it might be.
        wrapped: Whether a single folder with images straight inside is packaging rather than a class.

    Raises:
        ImageError: There is no image.
    """
    if not listing.entries:
        reasons = "".join(f"; {name}: {reason}" for name, reason in listing.skipped[:3])
        raise ImageError(
            f"{where} holds no images{reasons}; it needs one sub-folder per class with image files inside, or image "
            "files without classes"
        )
    entries = {entry: PurePosixPath(entry.name).parts for entry in listing.entries}
    notes = list(listing.notes)
    entries = _unwrapped(entries, is_class, wrapped)
    tops = {parts[0] for parts in entries.values() if len(parts) > 1}
    splits = {top: _SPLITS.get(top.lower()) for top in tops}
    flat = [entry for entry, parts in entries.items() if len(parts) == 1]
    if tops and all(splits.values()) and not flat and not all(map(is_class, tops)):
        if len(tops) > 1:
            notes.append(f"the sub-folders {', '.join(sorted(tops))} are taken as splits, not as classes")
        split = {entry: splits[parts[0]] if len(tops) > 1 else None for entry, parts in entries.items()}
        entries = {entry: parts[1:] for entry, parts in entries.items()}
        flat = [entry for entry, parts in entries.items() if len(parts) == 1]
    else:
        split = dict.fromkeys(entries)
    if len(flat) == len(entries):
        labelled = [replace(entry, split=split[entry]) for entry in entries]
        return replace(listing, entries=tuple(labelled), notes=tuple(notes), kind="sub-folder")
    if flat:
        notes.append(f"{len(flat)} image(s) beside the sub-folders have no class and are left out")
    labelled = [
        replace(entry, label=parts[0], split=split[entry]) for entry, parts in entries.items() if len(parts) > 1
    ]
    return replace(listing, entries=tuple(labelled), notes=tuple(notes), kind="sub-folder")


def _unwrapped(
    entries: dict[Entry, tuple[str, ...]], is_class: Callable[[str], bool], wrapped: bool
) -> dict[Entry, tuple[str, ...]]:
    """Returns paths without the single folders around everything that are no classes."""
    while True:
        tops = {parts[0] for parts in entries.values()}
        nested = any(len(parts) > 2 for parts in entries.values())
        flat = any(len(parts) == 1 for parts in entries.values())
        top = next(iter(tops))
        if len(tops) != 1 or flat or is_class(top) or not (nested or wrapped):
            return entries
        entries = {entry: parts[1:] for entry, parts in entries.items()}
