"""A folder as timm saves and the hub serves a model: `config.json` beside a file of weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from mixqvit.errors import ModelError

__all__ = ["LocalFolder", "folder_remedy", "read_folder"]

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
LARGEST_CONFIG = 32 * 2**20


@dataclass(frozen=True, eq=False)
class LocalFolder:
    """What `config.json` says about the weights beside it.

    Attributes:
        architecture: timm's name.
        arguments: Arguments of the architecture: `model_args`, classes, channels, image size.
        weights: The file of weights.
        data_config: timm's `pretrained_cfg`, which holds the preprocessing.
        label_names: One per class, or None.
        label_descriptions: One per class, or None.
    """

    architecture: str
    arguments: Mapping[str, Any]
    weights: Path
    data_config: Mapping[str, Any]
    label_names: tuple[str, ...] | None
    label_descriptions: tuple[str, ...] | None


def read_folder(folder: Path) -> LocalFolder:
    """Read the description of a saved model.

    Raises:
        ModelError: The folder, its `config.json` or its weights are missing, or the description cannot be used.
    """
    path = folder / "config.json"
    config = _read_config(path)
    if foreign := _of_transformers(config):
        raise ModelError(f"{folder} holds {foreign}")
    # older versions of timm wrote everything on one level
    details = config.get("pretrained_cfg", config)
    architecture, arguments = config.get("architecture"), config.get("model_args") or {}
    if not isinstance(architecture, str) or not isinstance(details, Mapping) or not isinstance(arguments, Mapping):
        raise ModelError(
            f"{path} does not describe a model of timm: it must name an architecture and a pretrained_cfg; if it "
            "belongs to something else, give the file of weights itself as the checkpoint"
        )
    if not timm.is_model(architecture):
        raise ModelError(
            f"{path} names the architecture {architecture[:100]!r}, which this version of timm does not have"
        )
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        pieces = next(folder.glob("*.index.json"), None)
        if pieces is not None:
            raise ModelError(
                f"the weights in {folder} are split into several files ({pieces.name}), which are not read yet; save "
                "them as one, model.safetensors"
            )
        raise ModelError(f"{folder} holds no weights beside config.json; it needs {' or '.join(WEIGHTS[:2])}")
    arguments = dict(arguments)
    classes = config.get("num_classes", details.get("num_classes"))
    if isinstance(classes, int) and not isinstance(classes, bool):
        arguments.setdefault("num_classes", classes)
    size = details.get("input_size")
    if isinstance(size, list) and len(size) == 3:
        arguments.setdefault("in_chans", size[0])
        if details.get("fixed_input_size"):
            arguments.setdefault("img_size", size[1:])
    names = _labels(config.get("label_names", details.get("label_names", details.get("labels"))))
    descriptions = config.get("label_descriptions", details.get("label_descriptions"))
    if isinstance(descriptions, Mapping) and names is not None:
        descriptions = [str(descriptions.get(name, name)) for name in names]
    return LocalFolder(architecture, arguments, weights, details, names, _labels(descriptions))


def folder_remedy(folder: Path) -> str:
    """Return what to do with a folder that was given where a file is needed."""
    if not (folder / "config.json").is_file():
        return "give the file of weights inside it"
    try:
        read_folder(folder)
    except ModelError as error:
        return str(error)
    return f"use local-dir:{folder} as the model"


def _of_transformers(config: Mapping[str, Any]) -> str | None:
    """Return in words what Hugging Face transformers saved; around timm's models it describes them as timm does."""
    kind, classes = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or kind == "timm_wrapper" or "architecture" in config:
        return None
    name = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else kind
    return (
        f"a model of Hugging Face transformers ({name[:60]}), whose layout is not read yet; use the same model of "
        "timm, by its name or fine-tuned there"
    )


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ModelError(f"{path.parent} is no folder with a model that timm saved: it has no config.json")
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ModelError(f"{path} is too large for the description of a model")
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged (not JSON); save the model again") from error
    if not isinstance(config, Mapping):
        raise ModelError(f"{path} does not describe a model: it is no JSON object")
    return config


def _labels(names: Any) -> tuple[str, ...] | None:
    """Return names by index from a list, or from a mapping of every index to its name."""
    if isinstance(names, Mapping):
        names = [names.get(str(index)) for index in range(len(names))]
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        return None
    return tuple(names) if all(isinstance(name, str) for name in names) else None
