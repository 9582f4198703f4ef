"""From the files of a source to those that may calibrate and evaluate, with the model's classes as labels."""

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.classes import ClassNames, class_indices
from mixqvit.images.files import Files
from mixqvit.images.kinds import VALIDATION_LIST
from mixqvit.images.listing import Entry, Listing, few, shown, split_word
from mixqvit.images.sampling import Sampling
from mixqvit.models.model import Model

__all__ = ["Prepared", "left_out_notes", "prepared_steps"]

ListedSteps = Callable[[Callable[[str], bool]], Generator[Progress, None, tuple[Files, Listing]]]
"""From whether a name means a class of the model to the files of a source: `FileSource.listed_steps`."""


@dataclass(frozen=True)
class Prepared:
    """A source whose labels are the model's classes.

    Attributes:
        files: What reads them.
        entries: The images that may be used.
        labels: One class index per entry; all None where the source has no labels.
        calibration: Positions of those that may calibrate.
        evaluation: Positions of those that may evaluate: the same ones, or none in common.
        skipped: Name and reason of what is left out.
        notes: Sentences on how the source was understood.
    """

    files: Files
    entries: tuple[Entry, ...]
    labels: tuple[int | None, ...]
    calibration: tuple[int, ...]
    evaluation: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def prepared_steps(
    where: str, listed_steps: ListedSteps, model: Model, sampling: Sampling
) -> Generator[Progress, None, Prepared]:
    """List a source's images and match their labels; yields how far that is, returns the result.

    Args:
        where: The source, for messages.
        listed_steps: Lists its files.
        model: Whose classes the labels are.
        sampling: How the labels are read; what is drawn is not decided here.

    Raises:
        ImageError: The source cannot be read, holds no images, or does not fit the model.
    """
    try:
        files, listing = yield from listed_steps(ClassNames(model).knows)
    except OSError as error:
        raise ImageError(f"{shown(where)} cannot be read ({error.strerror or error})") from error
    if not listing.entries:
        raise ImageError(f"{where} holds no images; it needs at least two")
    notes = list(listing.notes)
    calibration, evaluation = _by_split(listing.entries, where, notes)
    used = calibration if calibration is evaluation else [*calibration, *evaluation]
    labelled = sum(entry.label is not None for entry in used)
    skipped = list(listing.skipped)
    if 0 < labelled < len(used):
        skipped += [(entry.name, "it has no label") for entry in used if entry.label is None]
        used = [entry for entry in used if entry.label is not None]
    labels = _class_labels(used, listing, model, where, sampling, notes)
    notes += left_out_notes(skipped)
    positions = {entry: position for position, entry in enumerate(used)}

    def places(entries: Sequence[Entry]) -> tuple[int, ...]:
        return tuple(positions[entry] for entry in entries if entry in positions)

    return Prepared(files, tuple(used), labels, places(calibration), places(evaluation), tuple(skipped), tuple(notes))


def left_out_notes(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """Return a sentence for every reason for which images are left out."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in skipped:
        names[reason].append(name)
    return [f"{len(found)} left out ({few(found)}): {reason}" for reason, found in names.items()]


def _by_split(entries: Sequence[Entry], where: str, notes: list[str]) -> tuple[Sequence[Entry], Sequence[Entry]]:
    """Returns the entries for calibration and for evaluation: all of them for both where they are to be divided."""
    counts = Counter(entry.split for entry in entries)
    if len(counts) == 1:
        if "train" in (*counts, split_word(PurePath(where).stem)):
            notes.append(
                "all images are training images: on those that it has learned from, a model is better than on others"
            )
        return entries, entries
    with_labels = {entry.split for entry in entries if entry.label is not None}
    evaluation = next(
        (split for split in ("validation", "test") if counts[split] and (split in with_labels or not with_labels)), None
    )
    if evaluation is None and with_labels == {"train"}:
        others = " and ".join(sorted(str(split) for split in counts if split != "train"))
        raise ImageError(
            f"of the images of {where} only those of the split train have classes, those of {others} have none: "
            "accuracy on images that a model has learned from says little. Sort the others into one sub-folder per "
            f"class (for Kaggle's ImageNet, give the folder with {VALIDATION_LIST} and everything below it), or name "
            "with --images the part that is meant: train alone to measure on training images all the same, "
            f"{others} alone to measure agreement without labels (of a data set of the hub, hf:NAME@SPLIT)"
        )
    if evaluation is None:
        kept = [entry for entry in entries if entry.split in (with_labels or counts)]
        left = sorted(str(split) for split in counts if with_labels and split not in with_labels)
        if left:
            notes.append(f"the split {' and '.join(left)} has no labels and is left out")
        return kept, kept
    chosen = [entry for entry in entries if entry.split == evaluation]
    unused = sorted(str(split) for split in counts if split not in (evaluation, "train"))
    suffix = f"; {', '.join(unused)} is left out" if unused else ""
    if counts["train"] and ("train" in with_labels or not with_labels):
        notes.append(f"calibration images are from the split train, evaluation images from {evaluation}{suffix}")
        return [entry for entry in entries if entry.split == "train"], chosen
    notes.append(f"calibration and evaluation images are both from the split {evaluation}{suffix}")
    return chosen, chosen


def _class_labels(
    entries: Sequence[Entry], listing: Listing, model: Model, where: str, sampling: Sampling, notes: list[str]
) -> tuple[int | None, ...]:
    labels = {entry.label for entry in entries}
    if labels <= {None}:
        notes.append("the images have no labels: agreement with the full-precision model takes the place of accuracy")
        return (None,) * len(entries)
    names = {str(label) for label in labels}
    indices, note = class_indices(names, model, where, listing.kind, listing.class_names, sampling.label_order)
    if note:
        notes.append(note)
    return tuple(indices[str(entry.label)] for entry in entries)
