"""Importing a study file: checked, copied to the other studies of this machine, and opened."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

from mixqvit.errors import StudyFileError
from mixqvit.files.open_studies import open_study
from mixqvit.files.study_file import read_study_file
from mixqvit.stages.store import Store
from mixqvit.study.library import free_name, keep_study, studies_folder
from mixqvit.study.study import Study

__all__ = ["import_study_file"]


def import_study_file(store: Store, path: str | Path, name: str | None = None) -> tuple[str, Study, int]:
    """Check a study file, copy it into the cache folder, and add it to the studies that are known by name.

    Args:
        store: Where results go.
        path: The file.
        name: What to call it here; by default what it was called where it was written. A name that another study has
            already gets a number behind it.

    Returns:
        Its name here, the opened study, and the number of results in the file; 0 if the versions here read its model
        or images differently, so that everything is computed again.

    Raises:
        StudyFileError: It is no study file, or is damaged.
        StoreError: The cache folder cannot be written.
    """
    content = read_study_file(path)
    digest, folder = content.digest, studies_folder(store)
    kept = f"{digest[:32]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{kept}.{os.getpid()}.{time.monotonic_ns()}.tmp"
        shutil.copyfile(path, temporary)
        temporary.replace(folder / kept)
    except OSError as error:
        raise StudyFileError(f"The study file {path} cannot be copied to {folder} ({error.strerror}).") from error
    description = replace(content.description, study_file=kept)
    study = open_study(description, store=store)
    name = keep_study(store, free_name(store, name or content.name, description), description)
    belongs = study.identity == content.identity
    return name, study, content.results if belongs else 0
