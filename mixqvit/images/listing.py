"""What every source gives: a list of image files by name, and their bytes on request."""

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError

__all__ = [
    "MAX_FILE_BYTES",
    "Entry",
    "Listing",
    "Steps",
    "UnreadableImage",
    "arranged",
    "few",
    "is_hidden",
    "shown",
    "split_of",
    "split_word",
]

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
    "dev": "validation",
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
        lists: Files beside the images that say the classes of some, see `validation_list`.
    """

    entries: tuple[Entry, ...]
    class_names: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    kind: str = "label"
    lists: tuple[Entry, ...] = ()


Steps = Generator[Progress, None, Listing]
"""Listing files: how far it is, without results, and at the end the listing."""


def shown(name: str, length: int = 120) -> str:
    """Return a name that is safe to print and to save: control characters and broken Unicode escaped, not too long."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in name)
    return printable if len(printable) <= length else f"{printable[: length - 3]}..."


def is_hidden(name: str) -> bool:
    """Return whether some part of a path is hidden, or is what an operating system leaves beside files."""
    return any(part.startswith(".") or part.lower() in _MACHINE_FILES for part in name.split("/"))


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, safe to print, and dots where there are more."""
    return ", ".join(map(shown, names[:most])) + (", ..." if len(names) > most else "")


def split_word(name: str) -> str | None:
    """Return `train`, `validation` or `test` where a name is a word for it."""
    return _SPLITS.get(name.lower())


def split_of(name: str) -> str | None:
    """Return `train`, `validation` or `test` where a folder or a file such as `test-00000-of-00001` says so."""
    return _SPLITS.get(re.split(r"[-_.]", name.lower())[0]) or split_word(name)


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
    paths = {entry: PurePosixPath(entry.name).parts for entry in listing.entries}
    notes = list(listing.notes)
    paths = _unwrapped(paths, is_class, wrapped)
    tops = {parts[0] for parts in paths.values() if len(parts) > 1}
    splits = {top: split_word(top) for top in tops}
    in_splits = all(splits.values()) and not any(len(parts) == 1 for parts in paths.values())
    split: dict[Entry, str | None] = dict.fromkeys(paths)
    if tops and in_splits and not all(map(is_class, tops)):
        if len(tops) > 1:
            notes.append(f"the sub-folders {', '.join(sorted(tops))} are taken as splits, not as classes")
        split = {entry: splits[parts[0]] for entry, parts in paths.items()}
        paths = {entry: parts[1:] for entry, parts in paths.items()}
        if len(tops) == 1:
            paths = _unwrapped(paths, is_class, wrapped)
    classed = {split[entry] for entry, parts in paths.items() if len(parts) > 1}
    kept = {entry: parts for entry, parts in paths.items() if len(parts) > 1 or split[entry] not in classed}
    if len(kept) < len(paths):
        notes.append(f"{len(paths) - len(kept)} image(s) beside the sub-folders have no class and are left out")
    labelled = tuple(
        replace(entry, label=parts[0] if len(parts) > 1 else None, split=split[entry]) for entry, parts in kept.items()
    )
    if classed:
        notes += _empty_classes({entry: parts for entry, parts in kept.items() if len(parts) > 1}, listing.skipped)
    return replace(listing, entries=labelled, notes=tuple(notes), kind="sub-folder")


def _unwrapped(
    entries: dict[Entry, tuple[str, ...]], is_class: Callable[[str], bool], wrapped: bool
) -> dict[Entry, tuple[str, ...]]:
    """Returns paths without the single folders around everything that are neither classes nor splits."""
    while True:
        tops = {parts[0] for parts in entries.values()}
        nested = any(len(parts) > 2 for parts in entries.values())
        flat = any(len(parts) == 1 for parts in entries.values())
        top = next(iter(tops))
        if len(tops) != 1 or flat or is_class(top) or split_word(top) or not (nested or wrapped):
            return entries
        entries = {entry: parts[1:] for entry, parts in entries.items()}


def _empty_classes(entries: dict[Entry, tuple[str, ...]], skipped: Sequence[tuple[str, str]]) -> list[str]:
    """Returns a note on the class folders of which nothing is left.

    Args:
        entries: What follows the splits and the folders around everything in the paths of the images of classes.
        skipped: Names and reasons of what is not listed; a name without an ending is taken for a folder's.
    """
    found = {parts[0] for parts in entries.values()}
    entry, parts = next(iter(entries.items()))
    level = entry.name.count("/") + 1 - len(parts)
    paths = (PurePosixPath(name) for name, _ in skipped)
    left_out = [path for path in paths if not path.is_absolute() and ".." not in path.parts]
    empty = sorted(
        {
            path.parts[level]
            for path in left_out
            if len(path.parts) > level + 1 or (len(path.parts) == level + 1 and not path.suffix)
        }
        - found
    )
    if not empty:
        return []
    everything = len(empty) + len(found)
    return [f"{len(empty)} of {everything} sub-folders have no image that is read and are left out: {few(empty)}"]
