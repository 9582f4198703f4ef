"""Parquet files of images, as the Hugging Face hub stores data sets: only the rows that are needed are read.

pyarrow reads them and `datasets` understands their columns; `datasets.load_dataset` would first copy every row of the
files into its cache, and set no limit to what a file of a kilobyte expands to.
"""

import re
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.files import Files, can_be_kept
from mixqvit.images.listing import MAX_FILE_BYTES, Entry, Listing, UnreadableImage, shown, split_of
from mixqvit.images.local_files import file_stamp, is_inside, read_limited

__all__ = ["MAX_ROWS", "ParquetFiles", "parquet_files"]

MAX_ROWS = 20_000_000
"""Rows of all files together: ImageNet-21k has 14 million."""

MAX_GROUP_BYTES = 8 * 2**30
"""Bytes of one group of rows, which is what is unpacked at once at most; most have a hundredth of it."""

MAX_LABEL_CHARACTERS = 1000
"""Characters of one label."""

_IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "png")
_LABEL_NAMES = ("label", "labels", "class", "target", "fine_label", "category", "cls")


def parquet_files(folder: Path, follow_links: bool = False) -> list[Path]:
    """Return the parquet files in a folder and its sub-folders, sorted; by default none that a link leads out to."""
    root = folder.resolve()
    found = (path for path in folder.rglob("*.parquet") if path.is_file())
    files = [path for path in found if follow_links or is_inside(path.resolve(), root)]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


@dataclass(frozen=True)
class ParquetFiles(Files):
    """Parquet files with a column of images and, where there is one, a column of labels.

    Attributes:
        root: Their folder; a row that names a file names one in here.
        files: In the order of the rows.
        where: The data set, for messages.
        splits: Split of each file; None where its name and its folders inside `root` say so.
        column: Of the images; empty before they are listed.
    """

    root: Path
    files: tuple[Path, ...]
    where: str
    splits: Mapping[Path, str | None] | None = None
    column: str = ""

    def listed_steps(self) -> Generator[Progress, None, tuple["ParquetFiles", Listing]]:
        """Read the labels of all rows; returns what reads the images as well.

        Raises:
            ImageError: A file is damaged or has no images, or there are too many rows.
            OSError: A file cannot be read.
        """
        entries: list[Entry] = []
        names: tuple[str, ...] = ()
        columns: tuple[str, str | None] | None = None
        rows: dict[str | None, int] = defaultdict(int)
        for number, path in enumerate(self.files):
            yield Progress(number, len(self.files), f"listing: file {number + 1} of {len(self.files)}")
            features, file_rows = _opened(path)
            found, names = _columns(features, self.where)
            if columns is None:
                columns = found
            elif found[0] != columns[0]:
                raise ImageError(f"the parquet files of {self.where} have different columns; give one kind of them")
            if len(entries) + file_rows > MAX_ROWS:
                raise ImageError(f"{self.where} has more than {MAX_ROWS:,} rows; give a part of its files")
            labels = _labels(path, found[1], file_rows)
            split = self._named_split(path) if self.splits is None else self.splits[path]
            for row, label in enumerate(labels):
                if isinstance(label, int) and names and 0 <= label < len(names):
                    label = names[label]
                elif isinstance(label, int) and label < 0:  # the hub's sign for an unknown label
                    label = None
                name = f"{split or 'row'} {rows[split]:08d}"
                rows[split] += 1
                entries.append(Entry(name, label, split, (number, row)))
        if not entries:
            raise ImageError(f"{self.where} has no rows; give parquet files with images")
        return replace(self, column=columns[0]), Listing(tuple(entries), names)

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | UnreadableImage]]:
        """Read the images of rows, file by file."""
        by_file: dict[int, dict[int, Entry]] = defaultdict(dict)
        for entry in entries:
            number, row = entry.key
            by_file[number][row] = entry
        for number, wanted in sorted(by_file.items()):
            path = self.files[number]
            for row, value in _values(path, self.column, sorted(wanted)):
                yield wanted[row], self._content(value, path)

    def size(self, entry: Entry) -> None:
        """Return None: a cell must be read."""
        return None

    def is_kept(self, entries: Sequence[Entry]) -> bool:
        """Return whether all files together may be: for a few cells a whole group of rows is unpacked."""
        return can_be_kept(sum(path.stat().st_size for path in self.files))

    def stamps(self) -> tuple[str, ...]:
        """Return size and time of change of each file."""
        return tuple(map(file_stamp, self.files))

    def stamp(self, entry: Entry) -> str:
        """Return the place of an image in the files."""
        return str(entry.key)

    def _content(self, value: Any, path: Path) -> bytes | UnreadableImage:
        """Returns the bytes of an image cell: bytes, or a mapping with `bytes` or the `path` of a file beside."""
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            if len(content) > MAX_FILE_BYTES:
                return UnreadableImage(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
            return content
        name = value.get("path") if isinstance(value, dict) else None
        if not isinstance(name, str) or not name or "\0" in name:
            return UnreadableImage("the row holds no image")
        return read_limited(path.parent / name, self.root.resolve())

    def _named_split(self, path: Path) -> str | None:
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else Path(path.name)
        return next((split for part in reversed(inside.parts) if (split := split_of(part))), None)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says in words what pyarrow raises for a damaged file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ImageError:
    from mixqvit.models.reading import first_line

    return ImageError(f"the file {path} is damaged or no parquet file ({first_line(error)}); download it again")


def _opened(path: Path) -> tuple[Any, int]:
    """Returns the features of a file, as the library `datasets` understands its columns, and its rows."""
    import pyarrow.parquet
    from datasets import Features

    with _reading(path), pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.metadata.num_row_groups):
            # Not the sizes of single columns: asking for those ends the whole process where a file is damaged.
            if file.metadata.row_group(group).total_byte_size > MAX_GROUP_BYTES:
                raise ImageError(f"the file {path} holds a group of rows of more than {MAX_GROUP_BYTES >> 30} GiB")
        schema, rows = file.schema_arrow, file.metadata.num_rows
    try:
        return Features.from_arrow_schema(schema), rows
    except Exception as error:  # the schema's description, whatever is in it, is made objects of
        raise _damaged(path, error) from error


def _columns(features: Any, where: str) -> tuple[tuple[str, str | None], tuple[str, ...]]:
    """Returns the names of the columns of images and of labels, and the names of the labels where it has them."""
    from datasets import ClassLabel, Image, Value

    def is_image(feature: Any) -> bool:
        if isinstance(feature, dict):
            return "bytes" in feature
        return isinstance(feature, Image) or (isinstance(feature, Value) and "binary" in feature.dtype)

    images = [name for name, feature in features.items() if is_image(feature)]
    if not images:
        raise ImageError(f"{where} has no column of images; its columns are {', '.join(map(shown, features))}")
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)] or [
        name
        for name, feature in features.items()
        if isinstance(feature, Value)
        and name.lower() in _LABEL_NAMES
        and re.match(r"u?int|(large_)?string", feature.dtype)
    ]
    image = min(images, key=lambda name: _rank(name, _IMAGE_NAMES))
    label = min(labels, key=lambda name: _rank(name, _LABEL_NAMES), default=None)
    names = features[label].names if label and isinstance(features[label], ClassLabel) else ()
    return (image, label), tuple(names or ())


def _rank(name: str, preferred: Sequence[str]) -> int:
    return preferred.index(name.lower()) if name.lower() in preferred else len(preferred)


def _labels(path: Path, column: str | None, rows: int) -> list[str | int | None]:
    import pyarrow.compute
    import pyarrow.parquet

    if column is None:
        return [None] * rows
    # Texts come as numbers and a list of those that occur: a kilobyte can say the same long text a million times.
    with _reading(path), pyarrow.parquet.ParquetFile(path, read_dictionary=[column]) as file:
        chunks = file.read(columns=[column]).column(column).chunks
    labels: list[str | int | None] = []
    for chunk in chunks:
        if not pyarrow.types.is_dictionary(chunk.type):
            with _reading(path):
                labels += chunk.to_pylist()
            continue
        if (pyarrow.compute.max(pyarrow.compute.binary_length(chunk.dictionary)).as_py() or 0) > MAX_LABEL_CHARACTERS:
            raise ImageError(f"the file {path} holds a label of more than {MAX_LABEL_CHARACTERS:,} characters")
        with _reading(path):
            names = chunk.dictionary.to_pylist()
        labels += [None if index is None else names[index] for index in chunk.indices.to_pylist()]
    return labels


def _values(path: Path, column: str, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yields some cells of a column, one in memory at a time: a kilobyte can say the same large cell many times."""
    import pyarrow.parquet

    with _reading(path), pyarrow.parquet.ParquetFile(path) as file:
        first = 0
        for group in range(file.metadata.num_row_groups):
            after = first + file.metadata.row_group(group).num_rows
            wanted = [row for row in rows if first <= row < after]
            if wanted:
                start = first
                batches = file.iter_batches(1, row_groups=[group], columns=[column], use_threads=False)
                for batch in batches:
                    for row in wanted:
                        if start <= row < start + batch.num_rows:
                            yield row, batch.column(0)[row - start].as_py()
                    start += batch.num_rows
                    if start > wanted[-1]:
                        break
            first = after
