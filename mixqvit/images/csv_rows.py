"""The rows of a CSV file of whatever delimiter, encoding and size.

`csv.Sniffer` guesses a delimiter for a table of one column, too, and pandas expands any file: neither refuses a table.
"""

import csv
import io
from pathlib import Path

from mixqvit.errors import ImageError

__all__ = ["MAX_TABLE_BYTES", "MAX_TABLE_ROWS", "table_content", "table_rows"]

MAX_TABLE_BYTES = 64 * 2**20
"""Bytes of a table: half a million rows of long paths."""

MAX_TABLE_ROWS = 2_000_000
"""Rows of a table: ImageNet's training set has 1.3 million."""

_DELIMITERS = ",;\t|"
_SNIFFED_ROWS = 50


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


def table_content(path: Path) -> bytes:
    """Return what a table holds.

    Raises:
        ImageError: It is too large.
        OSError: It cannot be read.
    """
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
