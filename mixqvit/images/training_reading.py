"""Reading training images in any order, and the random view of each: what worker processes do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixqvit.errors import ImageError
from mixqvit.images.decoding import upright
from mixqvit.images.files import Files
from mixqvit.images.listing import Entry, UnreadableImage
from mixqvit.images.random_views import random_number, random_view
from mixqvit.models.preprocessing import Preprocessing

__all__ = ["Part", "Request", "TrainingFiles", "ViewReader"]


@dataclass(frozen=True)
class TrainingFiles:
    """The image files that are trained on, as a worker process is told of them.

    Attributes:
        files: What reads them.
        entries: The files; their places in here are the positions that are asked for.
        preprocessing: The model's.
        kept: Whether the files are kept in memory as they are, not decoded, since the source reads only from front
            to back, or slowly, in any other order.
    """

    files: Files
    entries: tuple[Entry, ...]
    preprocessing: Preprocessing
    kept: bool


@dataclass(frozen=True)
class Part:
    """Views of some images.

    Attributes:
        positions: Of those that could be read.
        pixels: `[b, C, H, W]` uint8.
        left_out: Name and reason of those that could not.
    """

    positions: tuple[int, ...]
    pixels: np.ndarray
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Request:
    """What is asked of worker processes: views of an epoch, or of a training process's slice of one.

    Attributes:
        seed: Of the views.
        epoch: Of the views.
        jobs: Positions of the images of each part.
        workers: How many processes.
    """

    seed: int
    epoch: int
    jobs: Sequence[Sequence[int]]
    workers: int


class ViewReader:
    """Reads images and views them at random; the same seed, epoch and position give the same view."""

    def __init__(self, files: TrainingFiles) -> None:
        """Read the files that are kept in memory.

        Raises:
            ImageError: The source cannot be read any longer.
        """
        self._files = files
        self._mode = "L" if files.preprocessing.input_size[0] == 1 else "RGB"
        self._view = random_view(files.preprocessing)
        self._kept = _contents(files.files, files.entries) if files.kept else None

    def part(self, seed: int, epoch: int, positions: Sequence[int]) -> Part:
        """Return views of the images at these positions, in this order.

        Raises:
            ImageError: The source cannot be read any longer.
        """
        entries = [self._files.entries[position] for position in positions]
        contents = _contents(self._files.files, entries) if self._kept is None else self._kept
        found, views, left_out = [], [], []
        for position, entry in zip(positions, entries, strict=True):
            try:
                data = contents[entry.name]
                if isinstance(data, UnreadableImage):
                    raise data
                picture = upright(data, self._mode)
                views.append(self._view(picture, random_number("view", seed, epoch, position)).numpy())
                found.append(position)
            except UnreadableImage as problem:
                left_out.append((entry.name, str(problem)))
        shape = (0, *self._files.preprocessing.input_size)
        pixels = np.stack(views) if views else np.empty(shape, np.uint8)
        return Part(tuple(found), pixels, tuple(left_out))


def _contents(files: Files, entries: Sequence[Entry]) -> Mapping[str, bytes | UnreadableImage]:
    try:
        return {entry.name: data for entry, data in files.read(entries)}
    except OSError as error:
        raise ImageError(
            f"the training images cannot be read any longer ({error}); put them back, and go on from the last "
            "checkpoint"
        ) from error
