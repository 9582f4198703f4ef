"""Which image files are trained on: never one that calibrates or evaluates, nor a copy of one."""

import hashlib
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.files import Files
from mixqvit.images.image_sets import ImageSets
from mixqvit.images.listing import Entry, UnreadableImage, few, shown
from mixqvit.images.preparing import Prepared
from mixqvit.images.random_views import CROP_AREA, FLIP_PROBABILITY, JITTER
from mixqvit.images.training_images import CHANGES_VERSION, TrainingPictures
from mixqvit.images.training_reading import TrainingFiles
from mixqvit.models.model import Model
from mixqvit.models.preprocessing import Preprocessing

__all__ = ["training_files_steps"]

_REPORT_EVERY = 500


def training_files_steps(
    where: str, prepared: Prepared, studied: Prepared | None, model: Model, sets: ImageSets | None
) -> Generator[Progress, None, TrainingPictures]:
    """Compare files with those of a study; yields how far that is, returns the images that are trained on.

    Args:
        where: The source.
        prepared: Its files.
        studied: The files of the study's source, the same object if it is the same source; None where they are none.
        model: Whose preprocessing to use.
        sets: The study's images.

    Raises:
        ImageError: No image is left, the study's cannot be read again, or files that must be kept in memory are too
            large.
        OSError: The source cannot be read any longer.
    """
    held = _NOTHING_HELD if studied is None else (yield from _held_steps(prepared, studied, sets))
    choice = yield from _choice_steps(where, prepared, held)
    entries = tuple(prepared.entries[position] for position in choice.positions)
    labels = [prepared.labels[position] for position in choice.positions]
    return TrainingPictures(
        source=where,
        how=f"{choice.how}; {_changes()}",
        fingerprint=_fingerprint(prepared.files, entries, labels, model.preprocessing),
        names=tuple(entry.name for entry in entries),
        labels=None if labels[0] is None else torch.tensor(labels),
        notes=prepared.notes,
        files=TrainingFiles(prepared.files, entries, model.preprocessing, prepared.files.is_kept(entries)),
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


def _held_steps(prepared: Prepared, studied: Prepared, sets: ImageSets) -> Generator[Progress, None, _Held]:
    """Reads the files of the study's images again, for only their pixels are known."""
    names = [*sets.calibration.names, *sets.evaluation.names]
    by_name = {entry.name: entry for entry in studied.entries}
    digests, sizes = set(), set()
    contents = studied.files.read([by_name[name] for name in names if name in by_name])
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
            f"{len(gone)} of the {len(names)} images of {sets.evaluation.source} that calibrate or evaluate cannot be "
            f"read any longer ({shown(gone[0])}), so that copies of them cannot be left out of the training; open the "
            "study again"
        )
    is_own = studied is prepared
    calibrating, evaluating = (sets.calibration.names, sets.evaluation.names) if is_own else ((), ())
    return _Held(frozenset(calibrating), frozenset(evaluating), frozenset(digests), frozenset(sizes))


@dataclass(frozen=True)
class _Choice:
    """Positions of the images that are trained on, and how they were chosen, in words."""

    positions: tuple[int, ...]
    how: str


def _choice_steps(where: str, prepared: Prepared, held: _Held) -> Generator[Progress, None, _Choice]:
    entries = prepared.entries
    found = sorted(prepared.calibration, key=lambda position: entries[position].name)
    reasons: dict[int, str] = {}
    unreadable: dict[int, str] = {}
    suspects = []
    for number, position in enumerate(found, start=1):
        if number % _REPORT_EVERY == 0:
            yield Progress(number, len(found), f"looking at {number:,} of {len(found):,} images")
        name = entries[position].name
        try:
            size = prepared.files.size(entries[position])
        except UnreadableImage as problem:
            unreadable[position] = str(problem)
            continue
        if name in held.calibrating:
            reasons[position] = "calibrate"
        elif name in held.evaluating:
            reasons[position] = "evaluate"
        elif held.digests and (size is None or size in held.sizes):
            suspects.append(position)
    positions = {entries[position].name: position for position in suspects}
    contents = prepared.files.read([entries[position] for position in suspects])
    for number, (entry, data) in enumerate(contents, start=1):
        if number % _REPORT_EVERY == 0:
            yield Progress(number, len(suspects), f"comparing {number:,} of {len(suspects):,} images with the study's")
        if isinstance(data, UnreadableImage):
            unreadable[positions[entry.name]] = str(data)
        elif hashlib.sha256(data).digest() in held.digests:
            reasons[positions[entry.name]] = "are copies of images that calibrate or evaluate"
    if unreadable:
        cannot = f"cannot be read ({few(sorted(set(unreadable.values())))})"
        reasons |= dict.fromkeys(unreadable, cannot)
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


def _fingerprint(
    files: Files, entries: Sequence[Entry], labels: Sequence[int | None], preprocessing: Preprocessing
) -> str:
    digest = hashlib.sha256(f"{CHANGES_VERSION} {_changes()} {preprocessing}".encode())
    for stamp in files.stamps():
        digest.update(stamp.encode())
    for entry, label in zip(entries, labels, strict=True):
        line = f"{entry.name!r} {label} {files.stamp(entry)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
