"""Which images are trained on: never one that calibrates or evaluates, nor a copy of one."""

import hashlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.digits import load_digits
from mixqvit.images.folder import Folder
from mixqvit.images.huggingface import PREFIX, HubDataset
from mixqvit.images.listing import Entry, Source, UnreadableImage, shown
from mixqvit.images.loading import ImageSets
from mixqvit.images.parquet import Parquet
from mixqvit.images.random_views import CROP_AREA, FLIP_PROBABILITY, JITTER
from mixqvit.images.sampling import Sampling
from mixqvit.images.sources import Prepared, is_compressed, prepared_steps, source_path
from mixqvit.images.table import Table
from mixqvit.images.tars import TarArchive
from mixqvit.images.training_images import TrainingDigits, TrainingImages, TrainingPictures
from mixqvit.images.training_reading import TrainingFiles
from mixqvit.images.zips import ZipArchive
from mixqvit.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from mixqvit.models.model import Model

__all__ = ["MAX_KEPT_BYTES", "load_training_images", "load_training_images_steps"]

MAX_KEPT_BYTES = 2 * 2**30
"""Bytes of the files of a source that are kept in memory, not decoded, where they cannot be read in any order."""

_CHANGES_VERSION = 1  # of the random changes: another one, another fingerprint
_MISSING = "cannot be read"
_REPORT_EVERY = 500


def load_training_images(
    source: str | Path, model: "Model", sets: ImageSets | None = None, follow_links: bool = False
) -> TrainingImages:
    """Loads images to train on; see `load_training_images_steps`."""
    *_, last = load_training_images_steps(source, model, sets, follow_links)
    return last.result


def load_training_images_steps(
    source: str | Path, model: "Model", sets: ImageSets | None = None, follow_links: bool = False
) -> Iterator[Progress]:
    """Loads images to train on, with progress. Files are listed and compared, but read only for a batch.

    The digits have training images of their own. Of another source they are all images, of one with splits those of
    `train`, without those that calibrate or evaluate, by name where the source is theirs, and without files of the
    same content as one of them, whatever the source and the name.

    Args:
        source: `digits`, or any other source of `load_image_sets_steps`.
        model: Whose preprocessing and classes to use.
        sets: The images that calibrate and evaluate; None where there are none to leave out. What they say about the
            order of labels counts for these as well.
        follow_links: Whether links that lead out of a folder are followed, where the source is not that of `sets`.

    Yields:
        How far it is; the last result is the TrainingImages.

    Raises:
        ImageError: The source is unknown or cannot be read, does not fit the model, or has no image left; the images
            that calibrate and evaluate cannot be read again to be compared; a compressed tar archive is too large.
    """
    where = str(source)
    if where == "digits":
        images: TrainingImages = _digits(model)
    else:
        try:
            images = yield from _pictures_steps(where, model, sets, follow_links)
        except OSError as error:
            raise ImageError(f"{shown(where)} cannot be read ({error.strerror or error})") from error
    yield Progress(len(images), len(images), f"{len(images):,} training images", images)


def _digits(model: "Model") -> TrainingDigits:
    digits = load_digits("training", model)
    changes = "turned, stretched, sheared, shifted, bent and made noisy at random each time"
    return TrainingDigits(
        source="digits",
        how=f"all {len(digits):,} training digits, {changes}",
        fingerprint=hashlib.sha256(f"{_CHANGES_VERSION} {changes} {digits.fingerprint}".encode()).hexdigest(),
        names=digits.names,
        labels=digits.labels,
        notes=(),
        digits=digits,
    )


def _pictures_steps(
    where: str, model: "Model", sets: ImageSets | None, follow_links: bool
) -> Generator[Progress, None, TrainingPictures]:
    sampling = Sampling() if sets is None else sets.sampling
    if sets is None or not _is_same(where, sets.evaluation.source):
        sampling = replace(sampling, follow_links=follow_links)
    prepared = yield from prepared_steps(where, model, sampling)
    held = _NOTHING_HELD if sets is None else (yield from _held_steps(where, prepared, model, sets))
    choice = yield from _choice_steps(where, prepared, held)
    entries = tuple(prepared.entries[position] for position in choice.positions)
    labels = [prepared.labels[position] for position in choice.positions]
    return TrainingPictures(
        source=where,
        how=f"{choice.how}; {_changes()}",
        fingerprint=_fingerprint(prepared.source, entries, labels, model.preprocessing),
        names=tuple(entry.name for entry in entries),
        labels=None if labels[0] is None else torch.tensor(labels),
        notes=prepared.notes,
        files=TrainingFiles(prepared.source, entries, model.preprocessing, _is_kept(prepared.source, entries)),
    )


def _changes() -> str:
    return (
        f"each time a random crop of {CROP_AREA[0] * 100:.0f} to {CROP_AREA[1] * 100:.0f} % of the area, mirrored with "
        f"probability {FLIP_PROBABILITY}, brightness, contrast and saturation changed by up to {JITTER * 100:.0f} %"
    )


@dataclass(frozen=True)
class _Held:
    """The images that must not be trained on.

    Attributes:
        calibrating: Names in the source that is trained on; empty where the study has another one.
        evaluating: The same.
        digests: SHA-256 of their files.
        sizes: Bytes of their files: only a file of the same size can be a copy.
    """

    calibrating: frozenset[str]
    evaluating: frozenset[str]
    digests: frozenset[bytes]
    sizes: frozenset[int]


_NOTHING_HELD = _Held(frozenset(), frozenset(), frozenset(), frozenset())


def _held_steps(where: str, prepared: Prepared, model: "Model", sets: ImageSets) -> Generator[Progress, None, _Held]:
    """Reads the files of the study's images again, for only their pixels are known."""
    other = sets.evaluation.source
    if other == "digits":
        return _NOTHING_HELD
    is_own = _is_same(where, other)
    study = prepared if is_own else (yield from prepared_steps(other, model, sets.sampling))
    names = [*sets.calibration.names, *sets.evaluation.names]
    by_name = {entry.name: entry for entry in study.entries}
    digests, sizes = set(), set()
    contents = study.source.read([by_name[name] for name in names if name in by_name])
    for number, (entry, data) in enumerate(contents, start=1):
        if isinstance(data, UnreadableImage):
            del by_name[entry.name]
        else:
            digests.add(hashlib.sha256(data).digest())
            sizes.add(len(data))
        if number % _REPORT_EVERY == 0:
            yield Progress(0, 1, f"comparing: {number} of {len(names)} images of the study")
    gone = [name for name in names if name not in by_name]
    if gone:
        raise ImageError(
            f"{len(gone)} of the {len(names)} images of {other} that calibrate or evaluate cannot be read any longer "
            f"({shown(gone[0])}), so that copies of them cannot be left out of the training; open the study again"
        )
    calibrating, evaluating = (sets.calibration.names, sets.evaluation.names) if is_own else ((), ())
    return _Held(frozenset(calibrating), frozenset(evaluating), frozenset(digests), frozenset(sizes))


def _is_same(where: str, other: str) -> bool:
    if where == other or where.startswith(PREFIX) or other.startswith(PREFIX):
        return where == other
    return source_path(where).resolve() == source_path(other).resolve()


@dataclass(frozen=True)
class _Choice:
    """Positions of the images that are trained on, and how they were chosen, in words."""

    positions: tuple[int, ...]
    how: str


def _choice_steps(where: str, prepared: Prepared, held: _Held) -> Generator[Progress, None, _Choice]:
    entries = prepared.entries
    found = sorted(prepared.calibration, key=lambda position: entries[position].name)
    reasons: dict[int, str] = {}
    suspects = []
    for number, position in enumerate(found, start=1):
        if number % _REPORT_EVERY == 0:
            yield Progress(number, len(found), f"looking at {number:,} of {len(found):,} images")
        name = entries[position].name
        try:
            size = _size(prepared.source, entries[position])
        except OSError:
            reasons[position] = _MISSING
            continue
        if name in held.calibrating:
            reasons[position] = "calibrate"
        elif name in held.evaluating:
            reasons[position] = "evaluate"
        elif held.digests and (size is None or size in held.sizes):
            suspects.append(position)
    positions = {entries[position].name: position for position in suspects}
    contents = prepared.source.read([entries[position] for position in suspects])
    for number, (entry, data) in enumerate(contents, start=1):
        if number % _REPORT_EVERY == 0:
            yield Progress(number, len(suspects), f"comparing {number:,} of {len(suspects):,} images with the study's")
        if isinstance(data, UnreadableImage):
            reasons[positions[entry.name]] = _MISSING
        elif hashlib.sha256(data).digest() in held.digests:
            reasons[positions[entry.name]] = "are copies of images that calibrate or evaluate"
    counts = Counter(reasons.values())
    left_out = " and ".join(f"{count:,} that {reason}" for reason, count in sorted(counts.items()))
    if len(reasons) == len(found):
        raise ImageError(
            f"{where} has {len(found):,} images, {left_out}: none is left to train on. Evaluate on fewer "
            "(--evaluation-images), or train on others (--training-images SOURCE)"
        )
    is_split = prepared.calibration != prepared.evaluation
    name = f"the split {entries[found[0]].split} of {where}" if is_split else where
    how = f"all {len(found):,} images of {name}"
    if reasons:
        how = f"{len(found) - len(reasons):,} of the {len(found):,} images of {name}, without {left_out}"
    return _Choice(tuple(position for position in found if position not in reasons), how)


def _size(source: Source, entry: Entry) -> int | None:
    """Returns the bytes of a file, or None where only reading it would tell.

    Raises:
        OSError: It is not there.
    """
    if isinstance(source, (Folder, Table)):
        return entry.key.stat().st_size
    if isinstance(source, ZipArchive):
        return entry.key.file_size
    return entry.key[1] if isinstance(source, TarArchive) else None


def _is_kept(source: Source, entries: Sequence[Entry]) -> bool:
    """Returns whether files are to be kept in memory, and refuses those that ought to be and are too large."""
    if isinstance(source, (Folder, Table)):
        return False
    if isinstance(source, (Parquet, HubDataset)):
        return sum(path.stat().st_size for path in source.files) <= MAX_KEPT_BYTES
    size = sum(_size(source, entry) for entry in entries)
    if isinstance(source, TarArchive):
        if not is_compressed(source.path):
            return False
        if size > MAX_KEPT_BYTES:
            raise ImageError(
                f"the training images of the archive {source.path} take {size / 2**30:.1f} GiB, and what is compressed "
                f"as a whole can be read only from front to back: at most {MAX_KEPT_BYTES >> 30} GiB of it are kept in "
                "memory. Unpack it and give the folder, or pack it as .tar or .zip"
            )
    return size <= MAX_KEPT_BYTES  # of a .zip, whose directory would be read again for every few images


def _fingerprint(
    source: Source, entries: Sequence[Entry], labels: Sequence[int | None], preprocessing: Preprocessing
) -> str:
    digest = hashlib.sha256(f"{_CHANGES_VERSION} {_changes()} {preprocessing}".encode())
    packed = [source.path] if isinstance(source, TarArchive) else getattr(source, "files", ())
    for path in packed:
        digest.update(_stamp(path).encode())
    for entry, label in zip(entries, labels, strict=True):
        if isinstance(source, (Folder, Table)):
            content = _stamp(entry.key)
        elif isinstance(source, ZipArchive):
            content = f"{entry.key.file_size} {entry.key.CRC}"
        else:
            content = str(entry.key)  # its place in the files whose stamps are in already
        digest.update(f"{entry.name!r} {label} {content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} "
