"""A whole study as one file: the model's weights, the prepared images and all that was computed of them.

It is a safetensors file. Its tensor `document` is JSON as bytes: what the model and the images are, and every saved
result; the others are weights, pixels and the tensors of results. A SHA-256 over the document and all tensors says
whether it arrived as it was written. It does not say who wrote it: results in it are believed, so import only what
comes from people you trust; nothing in it is ever executed.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mixqvit.engines.progress import Progress
from mixqvit.errors import MixQViTError, StudyFileError
from mixqvit.images.image_sets import ImageSets, Sample
from mixqvit.images.images import Images, normalized
from mixqvit.images.sampling import Sampling
from mixqvit.models.model import Model
from mixqvit.models.preprocessing import Preprocessing
from mixqvit.packing.architecture import build_described, describe
from mixqvit.stages.store import Store
from mixqvit.study.library import LONGEST_NAME, StudyDescription
from mixqvit.study.settings import Settings

if TYPE_CHECKING:
    from mixqvit.study.study import Study

__all__ = [
    "Content",
    "read_study_file",
    "restore_results",
    "study_file_content",
    "write_study_file_steps",
]

_FORMAT, _VERSION = "mixqvit study", "1"
_DOCUMENT = "document"
_WEIGHTS = "weights/"
_SPLITS = ("calibration", "evaluation")
_KEY = re.compile(r"[0-9a-f]{16}-[0-9a-f]{64}( seconds|-state)?")  # an earlier program kept states apart
_ITEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]*")


class Content:
    """An open study file; everything is read when it is asked for.

    Attributes:
        description: How the study is described in the library, without what lies on another machine.
        name: What the study was called where it was written.
        results: How many results the file holds.
        digest: Hexadecimal SHA-256 of the content.
        identity: What the keys of its results begin with.
        made_with: Versions of what computed the results, by name.
    """

    def __init__(self, path: Path, document: Mapping[str, Any], digest: str) -> None:
        """Take a checked document; use `read_study_file`."""
        self._path, self._document = path, document
        self.description = _description(document["description"])
        self.name = str(document["name"])[:LONGEST_NAME]
        self.results = sum(map(len, document["rows"].values())) + len(document["tensors"])
        self.digest = digest
        self.identity = str(document["identity"])
        self.made_with: Mapping[str, str] = document["made_with"]

    def model(self) -> Model:
        """Build the model with the weights of the file.

        Raises:
            StudyFileError: It cannot be read, or the weights do not fit the architecture.
            PackingError, ModelError: Its architecture is not known or cannot be built here.
        """
        with _understood(self._path, "its model"):
            return self._model()

    def _model(self) -> Model:
        found = self._document["model"]
        module = build_described(found["architecture"])
        with _open(self._path) as file:
            names = [name for name in file.keys() if name.startswith(_WEIGHTS)]  # noqa: SIM118
            state = {name.removeprefix(_WEIGHTS): file.get_tensor(name) for name in names}
        module.load_state_dict(state)
        return Model(
            name=found["name"],
            module=module.eval().requires_grad_(False),
            preprocessing=_preprocessing(found["preprocessing"]),
            class_names=_texts(found["class_names"]),
            label_names=_texts(found["label_names"]),
            notes=_texts(found["notes"]),
            arguments=found["architecture"].get("arguments", {}) if "timm" in found["architecture"] else {},
            architecture=found["architecture"],
        )

    def images(self) -> ImageSets:
        """Return the images of the file.

        Raises:
            StudyFileError: They cannot be read.
        """
        with _understood(self._path, "its images"):
            return self._images()

    def _images(self) -> ImageSets:
        found = self._document["images"]
        sample = dict(found["sample"])
        sample |= {"skipped": tuple(map(tuple, sample["skipped"])), "notes": tuple(sample["notes"])}
        calibration, evaluation = (self._split(name) for name in _SPLITS)
        sampling = Sampling(seed=sample["seed"], label_order=self.description.settings.get("label_order"))
        return ImageSets(calibration, evaluation, Sample(**sample), sampling)

    def _split(self, name: str) -> Images:
        found = self._document["images"][name]
        mean, std = tuple(found["mean"]), tuple(found["std"])
        with _open(self._path) as file:
            pixels = file.get_tensor(f"{name}/pixels")
            labels = file.get_tensor(f"{name}/labels") if found["labelled"] else None
        if pixels.dtype == torch.uint8:
            pixels = normalized(pixels, mean, std)
        classes = tuple(self._document["model"]["class_names"])
        names = _texts(found["names"])
        if len(pixels) != len(names) or (labels is not None and not _are_labels(labels, len(names), len(classes))):
            raise ValueError("images, names and labels do not fit together")
        return Images(found["source"], name, pixels, labels, classes, names, mean, std)


def write_study_file_steps(study: "Study", name: str, path: str | Path) -> Iterator[Progress]:
    """Write a study with its model, images and all results that are saved, atomically.

    Args:
        study: The study; nothing is computed for it.
        name: What it is called.
        path: The file to write.

    Yields:
        Progress; the last result is the number of results in the file.

    Raises:
        StudyFileError: The model cannot be described, or the file cannot be written.
    """
    path = Path(path)
    architecture = describe(study.model)
    if architecture is None:
        raise StudyFileError(
            f"{study.model.name} is not a model of timm by name, so another machine could not build it."
        )
    yield Progress(0, 3, "weights and images")
    tensors = {_WEIGHTS + key: value for key, value in study.model.module.state_dict().items()}
    splits = {"calibration": study.image_sets.calibration, "evaluation": study.image_sets.evaluation}
    for split, images in splits.items():
        tensors[f"{split}/pixels"] = _compact(images)
        if images.labels is not None:
            tensors[f"{split}/labels"] = images.labels
    yield Progress(1, 3, "results")
    rows, saved = _results(study.store, study.identity)
    document = {
        "name": name,
        "description": asdict(StudyDescription(study.model.name, settings=_changed(study.settings))),
        "made_with": study.made_with,
        "model": {
            "name": study.model.name,
            "architecture": architecture,
            "preprocessing": asdict(study.model.preprocessing),
            "class_names": study.model.class_names,
            "label_names": study.model.label_names,
            "notes": study.model.notes,
        },
        "images": {split: _described(images) for split, images in splits.items()}
        | {"sample": asdict(study.image_sets.sample)},
        "identity": study.identity,
        "rows": rows,
        "kept": study.kept.all(),
        "tensors": [(key, item, sorted(found), dict(sorted(metadata.items()))) for key, item, found, metadata in saved],
    }
    for place, (_, _, found, _) in enumerate(saved):
        tensors |= {f"result {place}/{part}": tensor for part, tensor in found.items()}
    tensors[_DOCUMENT] = torch.frombuffer(bytearray(json.dumps(document).encode()), dtype=torch.uint8)
    yield Progress(2, 3, "the file")
    _write(tensors, path)
    yield Progress(3, 3, "the file", sum(map(len, rows.values())) + len(saved))


def study_file_content(study: "Study", name: str) -> bytes:
    """Return what `write_study_file_steps` writes, for a browser that saves it; errors as there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.safetensors"
        for _ in write_study_file_steps(study, name, path):
            pass
        return path.read_bytes()


def read_study_file(path: str | Path) -> Content:
    """Open a study file and check every byte of it.

    Raises:
        StudyFileError: It cannot be read, is no study file, is of another version, truncated or altered.
    """
    path = Path(path)
    with _open(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise StudyFileError(f"{path} holds no study. Give a file that `python -m mixqvit study export` wrote.")
        if metadata.get("version") != _VERSION:
            raise StudyFileError(f"{path} is of version {metadata.get('version')}, this program reads {_VERSION}.")
        names = sorted(file.keys())
        with _understood(path, "its tensors"):
            digest = _digest((name, file.get_tensor(name)) for name in names)
        if digest != metadata.get("sha256"):
            raise _damaged(path, "its SHA-256 differs")
        with _understood(path, "its description"):
            document = json.loads(bytes(file.get_tensor(_DOCUMENT).numpy()))
            return Content(path, document, metadata["sha256"])


def restore_results(content: Content, study: "Study") -> bool:
    """Put the results of a study file into the store of the study that was opened from it.

    What the store has already stays as it is.

    Returns:
        Whether they belong to the study as the versions here read it; otherwise nothing is put there.

    Raises:
        StudyFileError: The results cannot be read.
        StoreError: The cache folder cannot be written.
    """
    path, document = content._path, content._document
    if document["identity"] != study.identity:
        return False
    with _understood(path, "its results"):
        _restore(path, document, study)
    return True


def _restore(path: Path, document: Mapping[str, Any], study: "Study") -> None:
    store = study.store
    for key, row in document["rows"].items():
        _check_name(_KEY, key, path, study.identity)
        here = set(store.items(key))
        for item, value in row.items():
            if "/" in item:  # tensors are listed under such names, with their sizes as values
                raise _damaged(path, "a result in it has an impossible name")
            if item not in here:
                store.put(key, item, value)
    with _open(path) as file:
        for place, (key, item, names, metadata) in enumerate(document["tensors"]):
            _check_name(_KEY, key, path, study.identity)
            _check_name(_ITEM, item, path)
            if store.tensors(key, item) is None:
                found = {name: file.get_tensor(f"result {place}/{name}") for name in names}
                store.put_tensors(key, item, found, metadata)
    kept = study.kept.all()
    for name, recipe in document["kept"].items():
        if name not in kept:
            study.kept.save(name, recipe)


def _results(store: Store, identity: str) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str, dict, dict]]]:
    """Return the saved values by key and item, and the saved tensors as (key, item, tensors, metadata)."""
    rows: dict[str, dict[str, Any]] = {}
    tensors = []
    for key in store.keys(f"{identity}-"):
        for item, value in store.rows(key).items():
            if not item.startswith("tensors/"):
                rows.setdefault(key, {})[item] = value
            elif saved := store.tensors(key, item.removeprefix("tensors/")):
                tensors.append((key, item.removeprefix("tensors/"), *saved))
    return rows, tensors


def _changed(settings: Settings) -> dict[str, Any]:
    return {
        one.name: getattr(settings, one.name)
        for one in fields(Settings)
        if getattr(settings, one.name) != getattr(Settings(), one.name)
    }


def _described(images: Images) -> dict[str, Any]:
    return {
        "source": images.source,
        "labelled": images.labels is not None,
        "names": images.names,
        "mean": images.mean,
        "std": images.std,
    }


def _compact(images: Images) -> Tensor:
    """Return pixels as bytes where those give the very same images, else as they are."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (images.mean, images.std))
    raw = ((images.pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return raw if torch.equal(normalized(raw, images.mean, images.std), images.pixels) else images.pixels


def _preprocessing(values: Mapping[str, Any]) -> Preprocessing:
    tuples = {name: tuple(values[name]) for name in ("input_size", "mean", "std")}
    return Preprocessing(**{**values, **tuples})


def _description(values: Mapping[str, Any]) -> StudyDescription:
    """Return what goes on the list of studies, which every page shows: model and settings, of the right types."""
    kinds = get_type_hints(Settings)
    settings = dict(values["settings"])
    for name, value in settings.items():
        if name in kinds and not isinstance(value, float | int if kinds[name] is float else kinds[name]):
            raise TypeError(f"{name} cannot be {value!r}")
    return StudyDescription(*_texts([values["model"]]), settings=settings)


def _texts(values: Any) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise TypeError("names are texts")
    return tuple(values)


def _are_labels(labels: Tensor, count: int, classes: int) -> bool:
    return labels.dtype == torch.int64 and labels.shape == (count,) and bool(((labels >= 0) & (labels < classes)).all())


def _check_name(pattern: re.Pattern[str], name: Any, path: Path, identity: str = "") -> None:
    """Names of results become names of files: only those that this program writes are taken."""
    if not isinstance(name, str) or not pattern.fullmatch(name) or not name.startswith(identity):
        raise _damaged(path, "a result in it has an impossible name")


@contextmanager
def _understood(path: Path, what: str) -> Iterator[None]:
    """Say that a part of the file makes no sense: somebody altered it and sealed it again."""
    try:
        yield
    except (
        AttributeError,
        IndexError,
        KeyError,
        RecursionError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        raise _damaged(path, f"{what} cannot be understood") from error


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError as error:
        raise StudyFileError(f"There is no study file {path}.") from error
    except OSError as error:
        raise StudyFileError(f"The study file {path} cannot be read ({error.strerror or error}).") from error
    except SafetensorError as error:
        raise StudyFileError(
            f"{path} is no study file, or is truncated ({error}). Give a file that `python -m mixqvit study export` "
            "wrote."
        ) from error


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    metadata = {"format": _FORMAT, "version": _VERSION, "sha256": _digest(contiguous.items())}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        safetensors.torch.save_file(contiguous, temporary, metadata)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StudyFileError(f"The study cannot be written to {path} ({error}).") from error


def _digest(tensors: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _damaged(path: Path, what: str) -> MixQViTError:
    return StudyFileError(f"{path} was altered or damaged after it was written: {what}. Copy or export it again.")
