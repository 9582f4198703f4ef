"""A CSV file of image files and their labels."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.csv_rows import table_content, table_rows
from mixqvit.images.kinds import is_image_name, is_validation_list
from mixqvit.images.labels import FILE_COLUMNS, LABEL_COLUMNS
from mixqvit.images.listing import Entry, Listing, shown
from mixqvit.images.local_files import LINK_OUT, LocalFiles, followed_note, is_inside
from mixqvit.images.sources.source import Given, Listed, PathSource, registered

__all__ = ["Table"]

_SUFFIXES = (".csv", ".tsv")
_KNOWN_COLUMNS = f"files: {', '.join(FILE_COLUMNS)}; labels: {', '.join(LABEL_COLUMNS)}"
_REPORT_EVERY = 20_000


@registered
@dataclass(frozen=True)
class Table(PathSource, LocalFiles):
    """A CSV file whose rows name a file, relative to the CSV's folder, and its label.

    Attributes:
        follow_links: Whether links that lead out of the folder are followed.
    """

    kind = "table"
    words = "a .csv of file,label"
    details = (
        f"A .csv has a column of files ({', '.join(FILE_COLUMNS)}) and one of labels ({', '.join(LABEL_COLUMNS)}), or "
        "no header: first the file, then the label."
    )

    follow_links: bool = False

    @classmethod
    def parse(cls, given: Given) -> Self | None:
        """Return this source for a file with such an ending."""
        if given.path.is_dir() or given.path.suffix.lower() not in _SUFFIXES:
            return None
        if is_validation_list(given.path.name):
            raise ImageError(f"{given.path} is the list of the classes of validation images; give the folder it is in")
        return cls(given.where, given.follow_links)

    @property
    def root(self) -> Path | None:
        """The table's folder, if links must not lead out of it."""
        return None if self.follow_links else self.path.parent.resolve()

    def listed_steps(self, is_class: Callable[[str], bool]) -> Listed:
        """List the rows; whether a file is there shows when it is read."""
        yield Progress(0, 1, "reading the table")
        rows = table_rows(table_content(self.path), str(self.path))
        if not rows:
            raise ImageError(f"the table {self.path} is empty; it needs one row per image: file,label")
        file_column, label_column, rows = _columns(rows, self.path)
        root = self.path.parent.resolve()
        labels: dict[str, str | None] = {}
        skipped = []
        inside: dict[str, bool] = {}
        links: dict[str, None] = {}
        for place, (number, row) in enumerate(rows, start=1):
            if place % _REPORT_EVERY == 0:
                yield Progress(0, 1, f"listing: {place:,} of {len(rows):,} rows")
            name = row[file_column].strip().replace("\\", "/").removeprefix("./") if file_column < len(row) else ""
            label = row[label_column].strip() if label_column is not None and label_column < len(row) else ""
            if not name or (label_column is not None and not label):
                skipped.append((f"row {number}", "it names no label" if name else "it names no file"))
                continue
            name = self._relative(name, number)
            if self._leads_out(name, root, number, inside):
                links[name] = None
            if labels.setdefault(name, label or None) != (label or None):
                raise ImageError(
                    f"the table {self.path} gives {shown(name)} two labels, {shown(labels[name] or '')} and "
                    f"{shown(label)} (row {number}); keep one"
                )
        entries = tuple(Entry(shown(name, 4096), label, key=self.path.parent / name) for name, label in labels.items())
        return self, Listing(entries, skipped=tuple(skipped), notes=followed_note(list(links)))

    def _relative(self, name: str, number: int) -> str:
        """Return a name that does not lead out of the table's folder, relative to it."""
        if not (name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/")):
            return name
        folder = self.path.parent
        path = Path(os.path.normpath(folder.absolute() / name))  # as it is written: links are looked at later
        for root in (folder.absolute(), folder.resolve()):
            if is_inside(path, root) and (os.name == "nt" or not re.match(r"[A-Za-z]:/", name)):
                return path.relative_to(root).as_posix()
        raise ImageError(
            f"row {number} of the table {self.path} names {shown(name)}, which is not inside the table's folder "
            f"{folder}; put the files beside the table, and name them relative to it"
        )

    def _leads_out(self, name: str, root: Path, number: int, inside: dict[str, bool]) -> bool:
        """Return whether a file lies behind a link out of the table's folder; folders once looked at are in `inside`.

        Raises:
            ImageError: It does, and is not to be followed; or it is no usable path.
        """
        try:
            folder = name.rpartition("/")[0]
            if folder not in inside:
                inside[folder] = is_inside((root / folder).resolve(), root)
            file = root / name
            if inside[folder] and not (file.is_symlink() and not is_inside(file.resolve(), root)):
                return False
        except (OSError, RuntimeError, ValueError) as error:
            raise ImageError(f"row {number} of the table {self.path} names no usable path: {shown(name)}") from error
        if not self.follow_links:
            raise ImageError(f"row {number} of the table {self.path} names {shown(name)}, but {LINK_OUT}")
        return True


def _columns(rows: list[tuple[int, list[str]]], path: Path) -> tuple[int, int | None, list[tuple[int, list[str]]]]:
    """Returns which columns hold the file and the label (None: there is none), and the rows without the header."""
    first = [cell.strip().lower() for cell in rows[0][1]]
    file_column = next((column for column, cell in enumerate(first) if cell in FILE_COLUMNS), None)
    label_column = next((column for column, cell in enumerate(first) if cell in LABEL_COLUMNS), None)
    if file_column is not None:
        if label_column is None and len(first) > 1:
            raise ImageError(
                f"the table {path} has the columns {', '.join(map(shown, first[:5]))}, but none for the labels; name "
                f"one so, or keep only the column of the files (columns that are known: {_KNOWN_COLUMNS})"
            )
        return file_column, label_column, rows[1:]
    if is_image_name(rows[0][1][0].strip()):
        return 0, 1 if len(first) > 1 else None, rows
    raise ImageError(
        f"the table {path} begins with {shown(', '.join(first))!r}, which is neither a header such as file,label nor "
        f"an image file and its label (columns that are known: {_KNOWN_COLUMNS})"
    )
