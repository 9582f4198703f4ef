"""A CSV file of image files and their labels."""

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.folder import LINK_OUT, followed_note, is_inside, read_limited
from mixqvit.images.kinds import is_image_name
from mixqvit.images.labels import FILE_COLUMNS, LABEL_COLUMNS
from mixqvit.images.listing import Entry, Listing, Steps, UnreadableImage, shown

__all__ = ["MAX_TABLE_BYTES", "MAX_TABLE_ROWS", "Table", "table_rows"]

MAX_TABLE_BYTES = 64 * 2**20
"""Bytes of a table: half a million rows of long paths."""

MAX_TABLE_ROWS = 2_000_000
"""Rows of a table: ImageNet's training set has 1.3 million."""

_DELIMITERS = ",;\t|"
_SNIFFED_ROWS = 50
_KNOWN_COLUMNS = f"files: {', '.join(FILE_COLUMNS)}; labels: {', '.join(LABEL_COLUMNS)}"
_REPORT_EVERY = 20_000


class Table:
    """A CSV file whose rows name a file, relative to the CSV's folder, and its label."""

    def __init__(self, path: Path, follow_links: bool = False) -> None:
        self.path = path
        self.follow_links = follow_links

    def listing_steps(self) -> Steps:
        """List the rows; whether a file is there shows when it is read."""
        yield Progress(0, 1, "reading the table")
        rows = table_rows(_content(self.path), str(self.path))
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
        return Listing(entries, skipped=tuple(skipped), notes=followed_note(list(links)))

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

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | UnreadableImage]]:
        """Read files one at a time."""
        root = None if self.follow_links else self.path.parent.resolve()
        for entry in entries:
            yield entry, read_limited(entry.key, root)


def table_rows(content: bytes, name: str) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV file that are not empty, with the numbers of their lines.

    Args:
        content: Of the file, UTF-8 or UTF-16.
        name: Of the file, for messages.

    Raises:
        ImageError: It is no such text, or has too many rows.
    """
    try:
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImageError(f"the table {name} is no UTF-8 text ({error.reason}); save it as CSV UTF-8") from error
    if "\0" in text:
        raise ImageError(f"the table {name} is no text: it holds NUL characters; save it as CSV UTF-8")
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        rows = []
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
            if reader.line_num > MAX_TABLE_ROWS:
                raise ImageError(f"the table {name} has more than {MAX_TABLE_ROWS:,} rows; give a part of it")
        return rows
    except csv.Error as error:
        raise ImageError(f"the table {name} cannot be read as CSV ({error}); save it again as CSV UTF-8") from error


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_TABLE_BYTES + 1)
    if len(content) > MAX_TABLE_BYTES:
        raise ImageError(f"the table {path} is larger than {MAX_TABLE_BYTES >> 20} MiB; give a part of it")
    return content


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
