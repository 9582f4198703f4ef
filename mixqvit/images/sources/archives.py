"""Archives of image files, read in memory one member at a time: nothing is ever written to disk."""

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mixqvit.errors import ImageError
from mixqvit.images.files import Files
from mixqvit.images.kinds import is_image_name, is_validation_list, unread_name
from mixqvit.images.listing import MAX_FILE_BYTES, Entry, Listing, Steps, arranged, is_hidden, shown
from mixqvit.images.sources.source import Listed, PathSource
from mixqvit.images.validation_list import with_validation_list

__all__ = [
    "ARCHIVE_SUFFIXES",
    "MAX_EXPANDED_BYTES",
    "MAX_MEMBERS",
    "MAX_RATIO",
    "RATIO_SLACK_BYTES",
    "Archive",
    "Members",
    "check_ratio",
]

MAX_MEMBERS = 200_000
"""Members of an archive: four times ImageNet's validation set; each costs memory before anything is read."""

MAX_EXPANDED_BYTES = 32 * 2**30
"""Bytes that are expanded of one archive: five times ImageNet's validation set, about ten minutes of reading."""

MAX_RATIO = 200
"""Expanded by compressed bytes: image files hardly shrink, and even plain bitmaps of drawings stay below this."""

RATIO_SLACK_BYTES = 16 * 2**20
"""Expanded bytes that are not held against the ratio: a small file may be one colour all over."""

ARCHIVE_SUFFIXES = frozenset(
    {".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".tbz", ".xz", ".txz", ".7z", ".rar", ".zst", ".lzma"}
)


class Archive(PathSource, Files):
    """An archive of image files, with one folder per class or with images straight inside."""

    def listed_steps(self, is_class: Callable[[str], bool]) -> Listed:
        """List the members with what their folders say."""
        listing = yield from self.listing_steps()
        return self, with_validation_list(arranged(listing, self.where, is_class, wrapped=True), self)

    @abstractmethod
    def listing_steps(self) -> Steps:
        """List the members that are images by their paths, and the lists of classes beside them.

        Raises:
            ImageError: The archive is damaged, or not as an honest one is.
            OSError: It cannot be read.
        """


class Members:
    """Collects the members of an archive that are images or lists of classes, and says of all others why not."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.entries: list[Entry] = []
        self.lists: list[Entry] = []
        self.skipped: list[tuple[str, str]] = []
        self._names: set[str] = set()
        self._count = 0

    def count(self) -> int:
        """Count one more member, of whatever kind.

        Raises:
            ImageError: There are too many.
        """
        self._count += 1
        if self._count > MAX_MEMBERS:
            raise ImageError(f"the archive {self.archive} has more than {MAX_MEMBERS:,} members; give a part of it")
        return self._count

    def listing(self, notes: tuple[str, ...] = ()) -> Listing:
        """Return what was collected."""
        return Listing(tuple(self.entries), skipped=tuple(self.skipped), notes=notes, lists=tuple(self.lists))

    def refuse(self, name: str, reason: str) -> None:
        """Note a member that is not read."""
        self.skipped.append((shown(name), reason))

    def add(self, name: str, size: int, key: object) -> bool:
        """Take an ordinary member where it is an image, or a list of classes, with a harmless name of its own.

        Returns whether it was.
        """
        clean = name.replace("\\", "/").removeprefix("./")
        problem = _name_problem(name, clean)
        if problem:
            self.refuse(name, problem)
            return False
        if is_hidden(clean):
            return False
        if PurePosixPath(clean).suffix.lower() in ARCHIVE_SUFFIXES:
            self.refuse(name, "it is an archive inside the archive, which is not opened")
            return False
        if reason := unread_name(clean):
            self.refuse(name, reason)
            return False
        is_list = is_validation_list(clean)
        if not is_list and not is_image_name(clean):
            return False
        unique = unicodedata.normalize("NFC", clean)
        if unique in self._names:
            self.refuse(name, "its name occurs twice; the first one is used")
            return False
        self._names.add(unique)
        if not 0 < size <= MAX_FILE_BYTES:
            self.refuse(name, "it is empty" if size == 0 else f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
            return False
        (self.lists if is_list else self.entries).append(Entry(shown(clean, 4096), key=key))
        return True


def check_ratio(archive: Path, expanded: int, compressed: int) -> None:
    """Raises ImageError where far more comes out of an archive than goes in, or more than is ever read of one."""
    if expanded > MAX_RATIO * compressed + RATIO_SLACK_BYTES:
        raise ImageError(
            f"the archive {archive} expands to more than {MAX_RATIO} times its size, which photographs never do; it "
            "is not read"
        )
    if expanded > MAX_EXPANDED_BYTES:
        raise ImageError(
            f"the archive {archive} expands to more than {MAX_EXPANDED_BYTES >> 30} GiB; unpack it yourself, and give "
            "the folder"
        )


def _name_problem(name: str, clean: str) -> str | None:
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "its name holds control characters"
    if clean.startswith("/") or re.match(r"[A-Za-z]:", clean):
        return "its name is an absolute path"
    parts = clean.split("/")
    if ".." in parts:
        return "its name leads out of the archive"
    if len(clean) > 1024 or len(parts) > 64:
        return "its name is too long"
    if "" in parts or "." in parts:
        return "its name is no plain path"
    return None
