"""A folder of image files."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.kinds import is_image_name, is_validation_list, unread_name
from mixqvit.images.listing import Entry, Listing, Steps, arranged, is_hidden, shown
from mixqvit.images.local_files import LINK_OUT, LocalFiles, followed_note, is_inside
from mixqvit.images.parquet_files import ParquetFiles, parquet_files
from mixqvit.images.sources.source import Given, Listed, PathSource, registered
from mixqvit.images.validation_list import with_validation_list

__all__ = ["MAX_FILES", "Folder"]

MAX_FILES = 2_000_000
"""Files and folders that are looked at: ImageNet's training set has 1.3 million."""

_REPORT_EVERY = 2000


@registered
@dataclass(frozen=True)
class Folder(PathSource, LocalFiles):
    """A folder of image files or, where it has none, of parquet files.

    Attributes:
        follow_links: Whether links that lead out of the folder are followed.
    """

    kind = "folder"
    words = "a folder"
    details = "A folder has one sub-folder per class (WordNet ids or names of classes), or images without classes."

    follow_links: bool = False

    @classmethod
    def parse(cls, given: Given) -> Self | None:
        """Return this source for a folder."""
        return cls(given.where, given.follow_links) if given.path.is_dir() else None

    @property
    def root(self) -> Path | None:
        """The folder, if links must not lead out of it."""
        return None if self.follow_links else self.path.resolve()

    def listed_steps(self, is_class: Callable[[str], bool]) -> Listed:
        """List the image files with what their folders say, or the rows of the parquet files."""
        listing = yield from self.listing_steps()
        files = [] if listing.entries else parquet_files(self.path, self.follow_links)
        if files:
            return (yield from ParquetFiles(self.path, tuple(files), self.where).listed_steps())
        return self, with_validation_list(arranged(listing, self.where, is_class, wrapped=False), self)

    def listing_steps(self) -> Steps:
        """List the image files in all sub-folders by their paths, and the lists of classes beside them."""
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


def _is_junction(item: os.DirEntry) -> bool:
    """Whether it is what Windows has in place of links to folders; Python tells from 3.12 on."""
    return getattr(item, "is_junction", lambda: False)()
