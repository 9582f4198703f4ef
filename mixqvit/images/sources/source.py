"""What a source of images knows of itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.files import Files
from mixqvit.images.listing import Listing

if TYPE_CHECKING:  # these load torch, which pages and `--help` do not wait for
    from mixqvit.images.image_sets import ImageSets
    from mixqvit.images.images import Images
    from mixqvit.images.preparing import Prepared
    from mixqvit.images.sampling import Sampling
    from mixqvit.images.training_images import TrainingImages
    from mixqvit.models.model import Model

__all__ = ["SOURCES", "FileSource", "Given", "ImageSource", "Listed", "PathSource", "registered", "source_path"]

Listed = Generator[Progress, None, tuple[Files, Listing]]
"""Listing a source: how far it is, without results, and at the end what reads its files, and which there are."""

_START_BYTES = 512


def source_path(where: str) -> Path:
    """Return the path that a person wrote, `~` replaced by the home folder."""
    with suppress(RuntimeError):  # there is no such person
        return Path(where).expanduser()
    return Path(where)


@dataclass(frozen=True)
class Given:
    """What a person gave to say where images are.

    Attributes:
        where: What was written.
        follow_links: Whether links that lead out of a folder are followed.
    """

    where: str
    follow_links: bool = False

    @cached_property
    def path(self) -> Path:
        """What was written as a path."""
        return source_path(self.where)

    @cached_property
    def start(self) -> bytes:
        """The first bytes of the file; of a folder there are none."""
        if self.path.is_dir():
            return b""
        with self.path.open("rb") as file:
            return file.read(_START_BYTES)


@dataclass(frozen=True)
class ImageSource(ABC):
    """A place that images come from.

    Attributes:
        kind: Its name; unique.
        words: How a person names such a source, short.
        details: A sentence on what such a source looks like inside; empty where it needs none.
        uploads: Endings, without the dot, of the files that a browser may send.
        where: What was named.
    """

    kind: ClassVar[str]
    words: ClassVar[str]
    details: ClassVar[str] = ""
    uploads: ClassVar[tuple[str, ...]] = ()

    where: str

    @classmethod
    def is_named(cls, where: str) -> bool:
        """Return whether a text names such a source by itself; all others are paths. Nothing is looked at."""
        return False

    @classmethod
    @abstractmethod
    def parse(cls, given: Given) -> Self | None:
        """Return this source of what a person gave, None if it is another one. Paths exist.

        Raises:
            ImageError: It is one of this kind, and cannot be used.
            OSError: It cannot be looked at.
        """

    @abstractmethod
    def prepared_steps(self, model: "Model", sampling: "Sampling") -> Generator[Progress, None, "Prepared | None"]:
        """List the files and match their labels to a model's classes; returns None where images are no files.

        Raises:
            ImageError: The source cannot be read, holds no images, or does not fit the model.
        """

    @abstractmethod
    def sets_steps(self, model: "Model", sampling: "Sampling") -> Generator[Progress, None, "ImageSets"]:
        """Load calibration and evaluation images; yields how far that is, returns the images.

        Raises:
            ImageError: As `prepared_steps`; or too many images are unreadable.
        """

    @abstractmethod
    def images(self, split: str, model: "Model | None", limit: int | None) -> "Images":
        """Return one split: `calibration`, `evaluation` or, where the source has one, `training`; at most `limit`.

        Raises:
            ImageError: There is no such split, or a model is needed; or as `sets_steps`.
        """

    @abstractmethod
    def training_steps(
        self, model: "Model", sampling: "Sampling", sets: "ImageSets | None", study: "ImageSource"
    ) -> Generator[Progress, None, "TrainingImages"]:
        """Find the images to train on; yields how far that is, returns them.

        Args:
            model: Whose preprocessing and classes to use.
            sampling: How labels are read.
            sets: The images that calibrate and evaluate, which are left out; None where there are none.
            study: Where those are from; this object itself if from here, or without `sets`.

        Raises:
            ImageError: As `prepared_steps`; or none is left, or what is left out cannot be read again.
        """


class FileSource(ImageSource):
    """A source of image files."""

    @abstractmethod
    def listed_steps(self, is_class: Callable[[str], bool]) -> Listed:
        """List the files with their labels and splits.

        Args:
            is_class: Whether a name means a class of the model.

        Raises:
            ImageError: The source cannot be read or used.
            OSError: It cannot be read.
        """

    def prepared_steps(self, model: "Model", sampling: "Sampling") -> Generator[Progress, None, "Prepared"]:
        """List the files and match their labels to a model's classes."""
        from mixqvit.images.preparing import prepared_steps

        return prepared_steps(self.where, self.listed_steps, model, sampling)

    def sets_steps(self, model: "Model", sampling: "Sampling") -> Generator[Progress, None, "ImageSets"]:
        """Load calibration and evaluation images as `sampling` says."""
        from mixqvit.images.drawing import drawn_steps

        prepared = yield from self.prepared_steps(model, sampling)
        return (yield from drawn_steps(self.where, prepared, model, sampling))

    def images(self, split: str, model: "Model | None", limit: int | None) -> "Images":
        """Return the images that `sets_steps` loads with seed 0; there is no training split."""
        from mixqvit.images.sampling import Sampling

        if model is None:
            raise ImageError(f"the images of {self.where} need a model to be prepared for; give the model as well")
        if split == "training":
            raise ImageError(f"images such as {self.where} have no training split; choose calibration or evaluation")
        steps = self.sets_steps(model, Sampling(evaluation=limit if split == "evaluation" else 1))
        while True:
            try:
                next(steps)
            except StopIteration as finished:
                sets = finished.value
                break
        if split == "evaluation":
            return sets.evaluation
        return sets.calibration if limit is None else sets.calibration.subset(limit)

    def training_steps(
        self, model: "Model", sampling: "Sampling", sets: "ImageSets | None", study: ImageSource
    ) -> Generator[Progress, None, "TrainingImages"]:
        """Find the images that are left of the source, of one with splits those of `train`."""
        from mixqvit.images.training_choice import training_files_steps

        prepared = yield from self.prepared_steps(model, sampling)
        held = None
        if sets is not None:
            held = prepared if study is self else (yield from study.prepared_steps(model, sets.sampling))
        return (yield from training_files_steps(self.where, prepared, held, model, sets))


class PathSource(FileSource):
    """A source of image files that is named by its path."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        return source_path(self.where)


SOURCES: dict[str, type[ImageSource]] = {}
"""All kinds of sources by name, in the order in which they are asked."""


def registered(source: type[ImageSource]) -> type[ImageSource]:
    """Put a kind of source on the list, as a decorator."""
    if SOURCES.setdefault(source.kind, source) is not source:
        raise ValueError(f"There are two sources {source.kind!r}.")
    return source
