"""A CSV file of image files and their labels."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixqvit.errors import ImageError
from mixqvit.images.folder import is_inside, read_limited
from mixqvit.images.listing import Entry, Listing, Steps, UnreadableImage, is_image_name, shown
from mixqvit.progress import Progress

__all__ = ["MAX_TABLE_BYTES", "MAX_TABLE_ROWS", "Table"]

MAX_TABLE_BYTES = 64 * 2**20
"""Bytes of a table: half a million rows of long paths."""

MAX_TABLE_ROWS = 2_000_000
"""Rows of a table: ImageNet's training set has 1.3 million."""

FILE_HEADERS = frozenset({"file", "path", "image", "filename", "file_name", "filepath", "file_path", "image_path"})
LABEL_HEADERS = frozenset({"label", "class", "target", "category", "label_name", "class_name"})

_DELIMITERS = ",;\t|"
_SNIFFED_ROWS = 50
_REPORT_EVERY = 20_000


class Table:
    """A CSV file whose rows name a file, relative to the CSV's folder, and its label."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def listing_steps(self) -> Steps:
        """List the rows; whether a file is there shows when it is read."""
        yield Progress(0, 1, "reading the table")
        rows = _rows(_text(self.path), self.path)
        if not rows:
            raise ImageError(f"the table {self.path} is empty; it needs one row per image: file,label")
        file_column, label_column, rows = _columns(rows, self.path)
        root = self.path.parent.resolve()
        labels: dict[str, str | None] = {}
        skipped = []
        inside: dict[str, bool] = {}
        for place, (number, row) in enumerate(rows, start=1):
            if place % _REPORT_EVERY == 0:
                yield Progress(0, 1, f"listing: {place:,} of {len(rows):,} rows")
            name = row[file_column].strip().replace("\\", "/").removeprefix("./") if file_column < len(row) else ""
            label = row[label_column].strip() if label_column is not None and label_column < len(row) else ""
            if not name or (label_column is not None and not label):
                skipped.append((f"row {number}", "it names no label" if name else "it names no file"))
                continue
            self._check(name, root, number, inside)
            if labels.setdefault(name, label or None) != (label or None):
                raise ImageError(
                    f"the table {self.path} gives {shown(name)} two labels, {shown(labels[name] or '')} and "
                    f"{shown(label)} (row {number}); keep one"
                )
        entries = tuple(Entry(shown(name, 4096), label, key=self.path.parent / name) for name, label in labels.items())
        return Listing(entries, skipped=tuple(skipped))

    def _check(self, name: str, root: Path, number: int, inside: dict[str, bool]) -> None:
        """Refuse a name that leads out of the table's folder; folders that were looked at are in `inside`."""
        outside = name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/") or "\0" in name
        try:
            if not outside:
                folder = name.rpartition("/")[0]
                if folder not in inside:
                    inside[folder] = is_inside((root / folder).resolve(), root)
                file = root / name
                outside = not inside[folder] or (file.is_symlink() and not is_inside(file.resolve(), root))
        except (OSError, RuntimeError, ValueError) as error:
            raise ImageError(f"row {number} of the table {self.path} names no usable path: {shown(name)}") from error
        if outside:
            raise ImageError(
                f"row {number} of the table {self.path} names {shown(name)}, which is not inside the table's folder; "
                "put the files beside the table, and name them relative to it"
            )

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | UnreadableImage]]:
        """Read files one at a time."""
        root = self.path.parent.resolve()
        for entry in entries:
            yield entry, read_limited(entry.key, root)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MAX_TABLE_BYTES + 1)
    if len(content) > MAX_TABLE_BYTES:
        raise ImageError(f"the table {path} is larger than {MAX_TABLE_BYTES >> 20} MiB; give a part of it")
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImageError(f"the table {path} is no UTF-8 text ({error.reason}); save it as CSV UTF-8") from error


def _rows(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """Returns the rows that are not empty, with the numbers of their lines."""
    if "\0" in text:
        raise ImageError(f"the table {path} is no text: it holds NUL characters; save it as CSV UTF-8")
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        rows = []
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
            if reader.line_num > MAX_TABLE_ROWS:
                raise ImageError(f"the table {path} has more than {MAX_TABLE_ROWS:,} rows; give a part of it")
        return rows
    except csv.Error as error:
        raise ImageError(f"the table {path} cannot be read as CSV ({error}); save it again as CSV UTF-8") from error


def _delimiter(text: str) -> str:
    """Returns what separates the first rows into the same number of columns, a comma where nothing does."""
    for delimiter in _DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        widths = set()
        try:
            for row, _ in zip(reader, range(_SNIFFED_ROWS), strict=False):
                if row:
                    widths.add(len(row))
        except csv.Error:
            continue
        if len(widths) == 1 and widths.pop() > 1:
            return delimiter
    return ","


def _columns(rows: list[tuple[int, list[str]]], path: Path) -> tuple[int, int | None, list[tuple[int, list[str]]]]:
    """Returns which columns hold the file and the label (None: there is none), and the rows without the header."""
    first = [cell.strip().lower() for cell in rows[0][1]]
    file_column = next((column for column, cell in enumerate(first) if cell in FILE_HEADERS), None)
    label_column = next((column for column, cell in enumerate(first) if cell in LABEL_HEADERS), None)
    if file_column is not None:
        if label_column is None and len(first) > 1:
            raise ImageError(
                f"the table {path} has the columns {', '.join(map(shown, first[:5]))}, but none for the labels; name "
                "one label, or keep only the column of the files"
            )
        return file_column, label_column, rows[1:]
    if is_image_name(rows[0][1][0].strip()):
        return 0, 1 if len(first) > 1 else None, rows
    raise ImageError(
        f"the table {path} begins with {shown(', '.join(first))!r}, which is neither a header such as file,label nor "
        "an image file and its label"
    )
