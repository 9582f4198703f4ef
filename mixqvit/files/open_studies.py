"""Opening a study from its description, and the studies that one server holds open for all its sessions."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixqvit.engines.progress import Progress
from mixqvit.errors import AccessError, ModelError
from mixqvit.files.uploads import uploads_folder
from mixqvit.images.sources.factory import is_path
from mixqvit.stages.store import Store, fingerprint
from mixqvit.study.library import StudyDescription, studies_folder
from mixqvit.study.settings import Settings

if TYPE_CHECKING:
    from mixqvit.study.study import Study

__all__ = ["OpenStudies", "open_study", "open_study_steps", "settings_from"]

LARGEST_LIMIT = 8 * 2**30
"""Memory in bytes for all open studies of a server, where the machine has twice as much to spare."""

COPIES = 7
"""Parameters in memory, in multiples of those of the model: the model, its graph, its graph in double precision (two),
and weights prepared at some bit-widths."""

SECONDS_BETWEEN_LOOKS = 0.2

OTHER_VERSIONS = (
    "Its results were computed by other versions of this program or its libraries; those that may differ are computed "
    "again here."
)


def settings_from(description: StudyDescription, **changed: Any) -> Settings:
    """Return the settings of a described study.

    Args:
        description: The study.
        changed: Settings that differ from the description's, by name.

    Raises:
        ModelError: The description has a setting that this version does not know.
    """
    try:
        return replace(Settings(), **{**description.settings, **changed})
    except TypeError as error:
        raise ModelError(f"This study has settings that this version does not know ({error}).") from error


def open_study_steps(
    description: StudyDescription, settings: Settings | None = None, store: Store | None = None
) -> Iterator[Progress]:
    """Load a model and its images and open the study of them; the last result is the `Study`.

    Args:
        description: What the study is made of.
        settings: What to compute with; by default what the description says.
        store: Where results are saved; the user's cache folder by default.

    Raises:
        ModelError, ImageError, StudyFileError, StoreError: Model, images or results cannot be read.
        AccessError: An upload was removed.
    """
    from mixqvit.images.loading import load_image_sets_steps
    from mixqvit.images.sampling import Sampling
    from mixqvit.models.loading import load_model_steps
    from mixqvit.study.study import Study

    settings, store = settings or settings_from(description), store or Store()
    if description.study_file is not None:
        from mixqvit.files.study_file import read_study_file, restore_results

        path = studies_folder(store) / description.study_file
        yield Progress(0, 1, "checking the study file")
        content = read_study_file(path)
        model, images = content.model(), content.images()
        study = Study(model, images, settings, store)
        belongs = restore_results(content, study)
        if not belongs or content.made_with != study.made_with:
            noted = replace(model, notes=(*model.notes, OTHER_VERSIONS))
            study = Study(noted, images, settings, store)
        yield Progress(1, 1, "open", study)
        return
    for path in _paths(description):
        if path.is_relative_to(uploads_folder()) and not path.exists():
            raise AccessError(f"The upload {path.name} was removed after a while. Send it again.")
    for step in load_model_steps(description.model, description.checkpoint, description.preprocessing):
        yield replace(step, result=None)
    model = step.result
    source = description.images or model.images
    if source is None:
        raise ModelError(f"Say which images to use with {model.name}: a folder with one sub-folder per class, say.")
    sampling = Sampling(
        settings.evaluation_images, settings.sampling_seed, settings.label_order, description.follow_links
    )
    for step in load_image_sets_steps(source, model, sampling):
        yield replace(step, result=None)
    yield Progress(1, 1, "open", Study(model, step.result, settings, store))


def open_study(description: StudyDescription, settings: Settings | None = None, store: Store | None = None) -> "Study":
    """Return the opened study; arguments and errors as in `open_study_steps`."""
    *_, last = open_study_steps(description, settings, store)
    return last.result


Files = dict[str, str | None]
"""By path what tells whether a study's files have changed; None for what is not there."""


@dataclass(frozen=True)
class _Open:
    """A study, about how many bytes it takes, and its files when it was opened."""

    study: "Study"
    size: int
    files: Files


class OpenStudies:
    """The studies that are open, shared by all sessions of a server.

    Each is opened once, however many sessions ask for it at the same time, and again when somebody opens it after its
    files have changed. Those used longest ago are closed when all together would take more than `limit_bytes`; who
    still works with one keeps it until the work is done.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        """Start with none open.

        Args:
            limit_bytes: Memory for all together; by default half of what is free now, at most `LARGEST_LIMIT`.
        """
        self._limit_bytes = limit_bytes
        self._studies: OrderedDict[tuple[str, float], _Open] = OrderedDict()
        self._lock = threading.Lock()
        self._opening: dict[tuple[str, float], threading.Lock] = {}

    @cached_property
    def limit_bytes(self) -> int:
        """Memory in bytes that the open studies may take together."""
        if self._limit_bytes is not None:
            return self._limit_bytes
        import torch

        from mixqvit.network.devices import free_bytes

        return min(LARGEST_LIMIT, free_bytes(torch.device("cpu")) // 2)

    def find(self, description: StudyDescription, outlier_factor: float = 1.0) -> "Study | None":
        """Return a study that is open, None if it is not."""
        key = _key(description, outlier_factor)
        with self._lock:
            if key not in self._studies:
                return None
            self._studies.move_to_end(key)
            return self._studies[key].study

    def open_steps(self, description: StudyDescription, outlier_factor: float = 1.0) -> Iterator[Progress]:
        """Open a study, or wait for the session that is opening it; the last result is the `Study`.

        Args:
            description: What it is made of.
            outlier_factor: Amplification of its outlier channels.

        Raises:
            ModelError, ImageError, StudyFileError, StoreError, AccessError: As in `open_study_steps`.
        """
        key = _key(description, outlier_factor)
        with self._lock:
            opening = self._opening.setdefault(key, threading.Lock())
        while not opening.acquire(timeout=SECONDS_BETWEEN_LOOKS):
            yield Progress(0, 1, "another session is opening it")
        try:
            files = _files_of(description)
            self._close_outdated(key[0], files)
            study = self.find(description, outlier_factor)
            if study is None:
                settings = settings_from(description, outlier_factor=outlier_factor)
                for step in open_study_steps(description, settings):
                    if not step.finished:
                        yield step
                study = step.result
                self._add(key, _Open(study, _bytes_of(study), files))
        finally:
            opening.release()
        yield Progress(1, 1, "open", study)

    def clear(self) -> None:
        """Close all."""
        with self._lock:
            self._studies.clear()

    def _close_outdated(self, described: str, files: Files) -> None:
        """Close a description's studies, with whatever outliers, if their files are other ones now; not if gone."""
        with self._lock:
            for key, found in list(self._studies.items()):
                if key[0] == described and any(
                    state not in (None, found.files.get(path)) for path, state in files.items()
                ):
                    del self._studies[key]

    def _add(self, key: tuple[str, float], opened: _Open) -> None:
        with self._lock:
            self._studies[key] = opened
            while len(self._studies) > 1 and sum(found.size for found in self._studies.values()) > self.limit_bytes:
                self._studies.popitem(last=False)


def _key(description: StudyDescription, outlier_factor: float) -> tuple[str, float]:
    return fingerprint(asdict(description)), float(outlier_factor)


def _files_of(description: StudyDescription) -> Files:
    """Return size and time of change of a study's files; of folders those of the folder and of all in it."""
    return {str(path): _state(path.expanduser()) for path in _paths(description)}


def _paths(description: StudyDescription) -> list[Path]:
    """Return the files and folders that a study's model and images are read from."""
    images = description.images
    return [*description.model_files, *([Path(images)] if images and is_path(images) else [])]


def _state(path: Path) -> str | None:
    try:
        paths = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
        found = [(str(one), one.stat()) for one in paths]
        return fingerprint([(name, state.st_size, state.st_mtime_ns) for name, state in found])
    except OSError:
        return None


def _bytes_of(study: "Study") -> int:
    """Return about how much memory a study takes once its pages were visited."""
    from mixqvit.quantization.evaluation_stage import PAUSED_RUNS_BYTES

    weights = sum(parameter.numel() * parameter.element_size() for parameter in study.model.module.parameters())
    pixels = study.calibration_images.pixels.nbytes + study.evaluation_images.pixels.nbytes
    return COPIES * weights + pixels + PAUSED_RUNS_BYTES
