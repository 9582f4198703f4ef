"""Archives of image files, read in memory one member at a time: nothing is ever written to disk."""

import re
import unicodedata
from pathlib import Path, PurePosixPath

from mixqvit.errors import ImageError
from mixqvit.images.listing import MAX_FILE_BYTES, Entry, is_hidden, is_image_name, shown

__all__ = [
    "ARCHIVE_SUFFIXES",
    "MAX_EXPANDED_BYTES",
    "MAX_MEMBERS",
    "MAX_RATIO",
    "RATIO_SLACK_BYTES",
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


class Members:
    """Collects the members of an archive that are images, and says of all others why not."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.entries: list[Entry] = []
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

    def refuse(self, name: str, reason: str) -> None:
        """Note a member that is not read."""
        self.skipped.append((shown(name), reason))

    def add(self, name: str, size: int, key: object) -> bool:
        """Take an ordinary member where it is an image with a harmless name of its own; returns whether it was."""
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
        if not is_image_name(clean):
            return False
        unique = unicodedata.normalize("NFC", clean)
        if unique in self._names:
            self.refuse(name, "its name occurs twice; the first one is used")
            return False
        self._names.add(unique)
        if not 0 < size <= MAX_FILE_BYTES:
            self.refuse(name, "it is empty" if size == 0 else f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
            return False
        self.entries.append(Entry(shown(clean, 4096), key=key))
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
