"""The studies of real models that this machine knows by name: what each is made of, kept until somebody removes it.

Descriptions need no torch, so that a page lists them at once. The embedded models need no description: each is a study
of its own.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mixqvit.errors import ModelError, StoreError
from mixqvit.images.sources.factory import short_name
from mixqvit.models.cards import EMBEDDED
from mixqvit.models.sources.factory import find_source
from mixqvit.models.sources.source import ModelSource
from mixqvit.stages.store import KEPT, Store, fingerprint

__all__ = [
    "LONGEST_NAME",
    "StudyDescription",
    "default_name",
    "embedded_description",
    "find_study",
    "forget_study",
    "free_name",
    "keep_study",
    "known_studies",
    "studies_folder",
    "trained_folder",
]

LONGEST_NAME = 80

_KEY = KEPT + "studies"


@dataclass(frozen=True)
class StudyDescription:
    """What a study is made of.

    Attributes:
        model: What `load_model` is called with; None where the checkpoint says its architecture.
        checkpoint: A file of weights, None for the published or embedded ones.
        images: What `load_image_sets` is called with; None for the images that belong to the model.
        preprocessing: Values that differ from the model's own, see `Preprocessing.overridden`.
        settings: Values of `Settings` that differ from the defaults, by name.
        follow_links: Whether links that lead out of a folder of images are followed: in a study that the owner of this
            machine described on the command line, never in one that a browser did.
        study_file: Name of an imported file in `studies_folder`, from which model and images are read; None if they are
            read from where they lie.
    """

    model: str | None
    checkpoint: str | None = None
    images: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    study_file: str | None = None
    follow_links: bool = False

    @property
    def source(self) -> ModelSource | None:
        """Where the model comes from; None where it is in an imported file."""
        return find_source(self.model, self.checkpoint) if self.study_file is None else None

    @property
    def model_files(self) -> tuple[Path, ...]:
        """What on this machine the model is read from and a person can change."""
        return self.source.files if self.source is not None else ()


def embedded_description(name: str) -> StudyDescription:
    """Return the study of an embedded model on its own images."""
    return StudyDescription(name)


def default_name(description: StudyDescription, model: str) -> str:
    """Return a name for a study that nobody named: the name of its model, once it is loaded, and its images."""
    images = description.images
    if images is None:
        return model
    return f"{model} on {short_name(images)}"[:LONGEST_NAME]


def trained_folder(store: Store) -> Path:
    """Return where the weights of trained models lie that are studies of their own."""
    return store.folder / "trained"


def studies_folder(store: Store) -> Path:
    """Return where imported study files lie."""
    return store.folder / "studies"


def known_studies(store: Store) -> dict[str, StudyDescription]:
    """Return the descriptions that were kept, by name, oldest first."""
    return {name: _read(row) for name, row in store.rows(_KEY).items()}


def find_study(store: Store, name: str) -> StudyDescription | None:
    """Return the study of this name, kept or embedded; None if there is none."""
    if name in EMBEDDED:
        return embedded_description(name)
    return known_studies(store).get(name)


def keep_study(store: Store, name: str, description: StudyDescription) -> str:
    """Keep a description under a name; an earlier one of the same name is replaced. Returns the name without blanks.

    Raises:
        ModelError: The name is empty, too long, or that of an embedded model.
        StoreError: The cache folder cannot be written.
    """
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME:
        raise ModelError(f"Give the study a name of 1 to {LONGEST_NAME} characters.")
    if name in EMBEDDED:
        raise ModelError(f"{name} is the name of an embedded model; give the study another one.")
    store.put(_KEY, name, asdict(description))
    return name


def free_name(store: Store, name: str, description: StudyDescription) -> str:
    """Return a name that nobody chose, with a number behind it where it is that of another study."""
    known = known_studies(store)
    name = " ".join(name.split()) or "study"
    found, number = name, 2
    while found in EMBEDDED or (found in known and not _are_equal(known[found], description)):
        found, number = f"{name[: LONGEST_NAME - 6]} ({number})", number + 1
    return found


def _are_equal(first: StudyDescription, second: StudyDescription) -> bool:
    """Return whether two describe the same; what was saved has lists in place of tuples."""
    return fingerprint(asdict(first)) == fingerprint(asdict(second))


def forget_study(store: Store, name: str) -> None:
    """Remove a study from the list, and its file if it was imported or trained here; what was computed stays.

    Raises:
        StoreError: There is no study of this name, or its file cannot be removed.
    """
    description = known_studies(store).get(name)
    if description is None:
        raise StoreError(f"There is no saved study {name!r}; saved are: {', '.join(known_studies(store)) or 'none'}.")
    store.delete(_KEY, name)
    others = known_studies(store).values()
    file, folder = description.study_file, _trained(description, store)
    try:
        if file and all(other.study_file != file for other in others):
            (studies_folder(store) / file).unlink(missing_ok=True)
        if folder is not None and all(_trained(other, store) != folder for other in others):
            shutil.rmtree(folder)
    except OSError as error:
        raise StoreError(f"The files of the study {name} cannot be removed ({error.strerror}).") from error


def _trained(description: StudyDescription, store: Store) -> Path | None:
    """Return the folder of the trained weights that a study reads, None where it reads none."""
    folders = (folder for path in description.model_files for folder in (path, path.parent))
    return next((folder for folder in folders if folder.parent == trained_folder(store)), None)


def _read(row: Mapping[str, Any]) -> StudyDescription:
    """Return a saved description; what another version of this program wrote beside it is passed over."""
    known = {field.name for field in fields(StudyDescription)}
    return StudyDescription(**{name: value for name, value in row.items() if name in known})
