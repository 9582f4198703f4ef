"""Images to train on: batches that a seed and an epoch decide, with random changes to every image."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mixqvit.errors import ImageError
from mixqvit.images.augmentation import augment
from mixqvit.images.images import Images, normalized
from mixqvit.images.random_views import random_number
from mixqvit.images.training_reading import Part, TrainingFiles, ViewReader
from mixqvit.images.workers import Workers, worker_count

__all__ = ["CHANGES_VERSION", "TrainingBatch", "TrainingDigits", "TrainingImages", "TrainingPictures"]

UNREADABLE_PART = 10  # at most every tenth image of an epoch may be unreadable ...
UNREADABLE_COUNT = 5  # ... but so many may be in any case

CHANGES_VERSION = 1
"""Of the random changes: another one, another fingerprint."""

_JOB = 32  # images that a worker process prepares at a time


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Images of a step, or a training process's slice of them.

    Attributes:
        positions: Of the images in `TrainingImages.names`.
        pixels: `[b, C, H, W]` float32, normalized; b is 0 where a batch has fewer images than there are processes.
        labels: `[b]` int64, or None where nothing is known.
        images: Images of the whole batch over all processes; those left out are counted.
        left_out: Name and reason of the images of this slice that could not be read.
    """

    positions: tuple[int, ...]
    pixels: Tensor
    labels: Tensor | None
    images: int
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class TrainingImages(ABC):
    """Images to train on.

    Attributes:
        source: `digits`, or where the images come from as it was given.
        how: How many images, what was left out and which random changes, one sentence.
        fingerprint: SHA-256 (hexadecimal) of which images, with which labels, prepared how: two sets with the same
            one give the same batches. Files count by name, size and time of change.
        names: One per image.
        labels: `[N]` int64, indices of the model's classes; None where nothing is known.
        notes: Sentences on how the source was understood.
    """

    source: str
    how: str
    fingerprint: str
    names: tuple[str, ...] = field(repr=False)
    labels: Tensor | None = field(repr=False)
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> bool:
        """Whether the classes of the images are known."""
        return self.labels is not None

    def batches(self, seed: int, epoch: int, batch: int, shard: tuple[int, int] = (0, 1)) -> Iterator[TrainingBatch]:
        """Return the batches of an epoch, every image once, the last batch with what is left.

        They depend on the arguments alone, bit for bit: not on the number of worker processes, not on any global
        random generator, which they leave as it was. What several processes get are slices of what one would get.

        Args:
            seed: Another seed, other batches.
            epoch: Another epoch, another order and other random changes.
            batch: Images in a step, over all processes.
            shard: Rank of this process and number of processes; their slices of a batch differ by one image at most.

        Raises:
            ImageError: An argument is not possible; while iterating: the source cannot be read any longer, or more than
                a tenth of its images cannot.
        """
        rank, world = shard
        if batch < 1 or epoch < 0 or seed < 0 or not 0 <= rank < world:
            raise ImageError(
                f"there are no training batches of {batch} images with seed {seed}, epoch {epoch} and rank {rank} of "
                f"{world}; a batch has 1 image or more, and the others count from 0"
            )
        generator = torch.Generator().manual_seed(random_number("order", seed, epoch))
        order = torch.randperm(len(self), generator=generator).tolist()
        whole = [tuple(order[start : start + batch]) for start in range(0, len(order), batch)]
        return self._batches(seed, epoch, whole, shard)

    @abstractmethod
    def _batches(
        self, seed: int, epoch: int, whole: Sequence[tuple[int, ...]], shard: tuple[int, int]
    ) -> Iterator[TrainingBatch]:
        """Yield the shard's slices of whole batches, given by the positions of their images."""

    def _labels(self, positions: Sequence[int]) -> Tensor | None:
        return None if self.labels is None else self.labels[torch.tensor(positions, dtype=torch.long)]


def _slice(count: int, shard: tuple[int, int]) -> slice:
    rank, world = shard
    return slice(count * rank // world, count * (rank + 1) // world)


@dataclass(frozen=True, eq=False)
class TrainingDigits(TrainingImages):
    """The training digits; see `augmentation.augment` for their random changes."""

    digits: Images = field(repr=False)

    def _batches(
        self, seed: int, epoch: int, whole: Sequence[tuple[int, ...]], shard: tuple[int, int]
    ) -> Iterator[TrainingBatch]:
        shown = self.digits.display().permute(0, 3, 1, 2)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.digits.mean, self.digits.std))
        for number, positions in enumerate(whole):
            # The whole batch, whatever the shard: an image's random numbers depend on its place in the batch.
            generator = torch.Generator().manual_seed(random_number("digits", seed, epoch, number))
            changed = augment(shown[torch.tensor(positions)], generator)
            part = _slice(len(positions), shard)
            pixels = (changed[part] - mean) / std
            yield TrainingBatch(positions[part], pixels, self._labels(positions[part]), len(positions))


@dataclass(frozen=True, eq=False)
class TrainingPictures(TrainingImages):
    """Image files of any source, read when they are needed; see `random_views.random_view` for their changes.

    Attributes:
        files: What is read.
        workers: Processes that decode and augment beside the training; 0 for none, None for as many as pay.
    """

    files: TrainingFiles = field(repr=False)
    workers: int | None = None

    @cached_property
    def _pool(self) -> Workers:
        return Workers(self.files)

    def _batches(
        self, seed: int, epoch: int, whole: Sequence[tuple[int, ...]], shard: tuple[int, int]
    ) -> Iterator[TrainingBatch]:
        mean, std = self.files.preprocessing.mean, self.files.preprocessing.std
        slices = [positions[_slice(len(positions), shard)] for positions in whole]
        jobs = [part[start : start + _JOB] for part in slices for start in range(0, len(part), _JOB)]
        unreadable = _Unreadable(self.source, sum(map(len, slices)))
        parts = self._parts(seed, epoch, jobs, shard[1])
        try:
            for positions, part in zip(whole, slices, strict=True):
                done = [next(parts) for _ in range(0, len(part), _JOB)]
                left_out = tuple(named for piece in done for named in piece.left_out)
                unreadable.count(left_out)
                found = tuple(position for piece in done for position in piece.positions)
                raw = [torch.from_numpy(piece.pixels) for piece in done]
                pixels = torch.cat(raw) if raw else torch.empty(0, *self.files.preprocessing.input_size)
                yield TrainingBatch(found, normalized(pixels, mean, std), self._labels(found), len(positions), left_out)
            next(parts, None)  # lets the worker processes of a finished epoch wait for the next one
        finally:
            parts.close()  # ends those of an unfinished epoch

    def _parts(self, seed: int, epoch: int, jobs: Sequence[Sequence[int]], processes: int) -> Iterator[Part]:
        workers = worker_count(len(self), processes) if self.workers is None else self.workers
        if workers:
            yield from self._pool.parts(seed, epoch, jobs, workers)
            return
        reader = ViewReader(self.files)
        for job in jobs:
            yield reader.part(seed, epoch, job)


@dataclass
class _Unreadable:
    """Counts the images of an epoch that cannot be read."""

    source: str
    images: int
    named: list[tuple[str, str]] = field(default_factory=list)

    def count(self, left_out: Sequence[tuple[str, str]]) -> None:
        """Count some more.

        Raises:
            ImageError: They are too many, or all.
        """
        self.named += left_out
        allowed = min(max(UNREADABLE_COUNT, self.images // UNREADABLE_PART), self.images - 1)
        if self.named and len(self.named) > allowed:
            first = "; ".join(f"{name}: {reason}" for name, reason in self.named[:3])
            raise ImageError(
                f"more than {allowed} of the {self.images} training images of {self.source} cannot be read; the first "
                f"are {first}; replace or remove them"
            )
