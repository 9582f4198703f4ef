"""The list of classes that Kaggle's ImageNet has in place of folders for its validation images."""

from dataclasses import replace
from pathlib import PurePosixPath

from mixqvit.errors import ImageError
from mixqvit.images.csv_rows import table_rows
from mixqvit.images.files import Files
from mixqvit.images.kinds import VALIDATION_LIST
from mixqvit.images.listing import Listing, UnreadableImage

__all__ = ["with_validation_list"]

_HEADER = ["imageid", "predictionstring"]


def with_validation_list(listing: Listing, files: Files) -> Listing:
    """Return a listing whose validation images have the classes of the list beside them, where no folder says them.

    A row is the name of an image without its ending, and the WordNet id and box of each object in it; all ids of a row
    are the same.

    Raises:
        ImageError: There are several lists, or one that cannot be used.
    """
    wanted = [entry for entry in listing.entries if entry.split in ("validation", None)]
    if not listing.lists or not wanted or any(entry.label is not None for entry in wanted):
        return listing
    if len(listing.lists) > 1:
        raise ImageError(f"there are {len(listing.lists)} files {VALIDATION_LIST} in one source; keep one")
    ((entry, content),) = files.read(listing.lists)
    if isinstance(content, UnreadableImage):
        raise ImageError(f"the list {entry.name} cannot be used: {content}")
    header, *rows = [[cell.strip() for cell in row] for _, row in table_rows(content, entry.name)] or [[]]
    if [cell.lower() for cell in header] != _HEADER:
        raise ImageError(f"the list {entry.name} does not begin with the columns ImageId,PredictionString")
    classes = {row[0]: row[1].split()[0] for row in rows if len(row) > 1 and row[1]}
    labels = {entry: classes.get(PurePosixPath(entry.name).stem) for entry in wanted}
    if not any(labels.values()):
        raise ImageError(f"the list {entry.name} names none of the {len(wanted)} images without classes beside it")
    note = f"the classes of the validation images are those of {entry.name}"
    labelled = tuple(replace(entry, label=labels.get(entry, entry.label)) for entry in listing.entries)
    return replace(listing, entries=labelled, notes=(*listing.notes, note))
