"""The JSON cards of the embedded models; reading them needs neither torch nor timm, so a page can list them at once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixqvit.errors import ModelError

__all__ = ["ASSETS", "EMBEDDED", "ModelSummary", "card_path", "checkpoint_path", "list_models", "read_card"]

ASSETS = Path(__file__).resolve().parents[2] / "assets"
EMBEDDED = ("digits_vit", "digits_deit", "digits_swin")
KEYS = ("description", "architecture", "parameters", "images", "class_names", "preprocessing", "accuracy", "checkpoint")


@dataclass(frozen=True)
class ModelSummary:
    """What a list of models shows about one of them.

    Attributes:
        name: What `load_model` is called with.
        architecture: The timm class.
        parameters: Number of parameters.
        input_size: Channels, height and width of an image.
        top1: Full-precision top-1 accuracy on the evaluation images, 0 to 1, as measured when it was trained.
        description: One sentence.
    """

    name: str
    architecture: str
    parameters: int
    input_size: tuple[int, int, int]
    top1: float | None
    description: str


def card_path(name: str, folder: Path = ASSETS) -> Path:
    """Returns where the card of an embedded model lies."""
    return folder / f"{name}.json"


def checkpoint_path(name: str, folder: Path = ASSETS) -> Path:
    """Returns where the weights of an embedded model lie."""
    return folder / f"{name}.safetensors"


def read_card(name: str, folder: Path = ASSETS) -> Mapping[str, Any]:
    """Reads the card of an embedded model.

    Raises:
        ModelError: The card is missing, is no JSON or lacks something a model needs.
    """
    path = card_path(name, folder)
    remedy = f"restore the file, or train the model again: python -m mixqvit train-embedded --model {name}"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"the card of {name} cannot be read from {path} ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise ModelError(f"the card of {name}, {path}, is damaged (not JSON); {remedy}") from error
    missing = KEYS if not isinstance(card, dict) else [key for key in KEYS if key not in card]
    if missing:
        raise ModelError(f"the card of {name}, {path}, is damaged (it lacks {', '.join(missing)}); {remedy}")
    return card


def list_models() -> tuple[ModelSummary, ...]:
    """Lists the embedded models whose cards are present.

    Any timm model works too, by its timm name or from a checkpoint file (see `load_model`).

    Raises:
        ModelError: A card is damaged.
    """
    return tuple(_summary(name, read_card(name)) for name in EMBEDDED if card_path(name).exists())


def _summary(name: str, card: Mapping[str, Any]) -> ModelSummary:
    return ModelSummary(
        name=name,
        architecture=card["architecture"]["class"],
        parameters=card["parameters"],
        input_size=tuple(card["preprocessing"]["input_size"]),
        top1=card["accuracy"]["top1"],
        description=card["description"],
    )
