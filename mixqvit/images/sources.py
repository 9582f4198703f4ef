"""From what a person names to a list of images with the model's classes: which source it is, what its labels mean."""

from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.classes import ClassNames, class_indices
from mixqvit.images.folder import Folder
from mixqvit.images.huggingface import PREFIX, HubDataset
from mixqvit.images.kinds import VALIDATION_LIST, is_image_name, is_validation_list, unread_name
from mixqvit.images.listing import Entry, Listing, Source, arranged, few, shown, split_word
from mixqvit.images.parquet import Parquet, parquet_files
from mixqvit.images.sampling import Sampling
from mixqvit.images.table import Table
from mixqvit.images.tars import TarArchive
from mixqvit.images.validation_list import with_validation_list
from mixqvit.images.zips import ZipArchive

if TYPE_CHECKING:
    from mixqvit.models.model import Model

__all__ = ["Prepared", "check_source", "is_compressed", "left_out_notes", "prepared_steps", "source_path"]

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


@dataclass(frozen=True)
class Prepared:
    """A source whose labels are the model's classes.

    Attributes:
        source: What reads the files.
        entries: The images that may be used.
        labels: One class index per entry; all None where the source has no labels.
        calibration: Positions of those that may calibrate.
        evaluation: Positions of those that may evaluate: the same ones, or none in common.
        skipped: Name and reason of what is left out.
        notes: Sentences on how the source was understood.
    """

    source: Source
    entries: tuple[Entry, ...]
    labels: tuple[int | None, ...]
    calibration: tuple[int, ...]
    evaluation: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def prepared_steps(where: str, model: "Model", sampling: Sampling) -> Generator[Progress, None, Prepared]:
    """List a source's images and match their labels; yields how far that is, returns the result.

    Args:
        where: The source.
        model: Whose classes the labels are.
        sampling: How the labels are read; what is drawn is not decided here.

    Raises:
        ImageError: The source is unknown, cannot be read, holds no images, or does not fit the model.
    """
    try:
        source, listing = yield from _listed(where, ClassNames(model), sampling.follow_links)
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

    return Prepared(source, tuple(used), labels, places(calibration), places(evaluation), tuple(skipped), tuple(notes))


def source_path(where: str) -> Path:
    """Return the path that a person wrote, `~` replaced by the home folder."""
    with suppress(RuntimeError):  # there is no such person
        return Path(where).expanduser()
    return Path(where)


def left_out_notes(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """Return a sentence for every reason for which images are left out."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in skipped:
        names[reason].append(name)
    return [f"{len(found)} left out ({few(found)}): {reason}" for reason, found in names.items()]


def check_source(where: str) -> None:
    """Raises ImageError where images are named neither by a path that exists nor as a data set of the hub."""
    known = where.startswith(PREFIX)
    with suppress(OSError, ValueError):  # a name that no file system takes
        known = known or source_path(where).is_dir() or source_path(where).is_file()
    if not known or not where.strip():
        raise ImageError(
            f"unknown images {shown(where)!r}: neither 'digits' nor a folder, an archive, a CSV or parquet file that "
            "exists, nor hf:owner/name"
        )


def is_compressed(path: Path) -> bool:
    """Return whether an archive is compressed as a whole, as .tar.gz is."""
    with path.open("rb") as file:
        return file.read(6).startswith(_COMPRESSED)


def _listed(where: str, classes: ClassNames, follow_links: bool) -> Generator[Progress, None, tuple[Source, Listing]]:
    """Finds out what a source is, and lists it."""
    if where.startswith(PREFIX):
        source: Source = HubDataset(where)
        return source, (yield from source.listing_steps())
    check_source(where)
    path = source_path(where)
    if path.is_dir():
        source = Folder(path, follow_links)
        listing = yield from source.listing_steps()
        files = [] if listing.entries else parquet_files(path, follow_links)
        if not files:
            return source, with_validation_list(arranged(listing, where, classes.knows, wrapped=False), source)
        source = Parquet(path, files, where)
        return source, (yield from source.listing_steps())
    source, by_folders = _file_source(path, follow_links)
    listing = yield from source.listing_steps()
    if by_folders:
        listing = with_validation_list(arranged(listing, where, classes.knows, wrapped=True), source)
    return source, listing


def _file_source(path: Path, follow_links: bool) -> tuple[Source, bool]:
    """Returns what reads a file, and whether its folders say the classes. Archives are known by their content."""
    with path.open("rb") as file:
        start = file.read(512)
    if is_validation_list(path.name):
        raise ImageError(f"{path} is the list of the classes of validation images; give the folder it is in")
    if path.suffix.lower() in (".csv", ".tsv"):
        return Table(path, follow_links), False
    if start[:4] == b"PAR1":
        return Parquet(path.parent, [path], str(path)), False
    if start[:2] == b"PK":
        return ZipArchive(path), True
    if start.startswith(_COMPRESSED) or start[257:262] == b"ustar" or path.suffix.lower() == ".tar":
        return TarArchive(path), True
    if is_image_name(path.name) or unread_name(path.name):
        raise ImageError(f"{path} is a single file; give the folder it is in")
    raise ImageError(
        f"{path} is of an unknown kind; give a folder, a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz archive, a .csv or a "
        ".parquet file"
    )


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
    entries: Sequence[Entry], listing: Listing, model: "Model", where: str, sampling: Sampling, notes: list[str]
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
