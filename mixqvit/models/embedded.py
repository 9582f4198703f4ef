"""The embedded models: their cards, their checkpoints, and other weights in their architectures."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mixqvit.errors import ModelError
from mixqvit.models.architectures import build_class
from mixqvit.models.cards import ASSETS, checkpoint_path, read_card
from mixqvit.models.checkpoints import Checkpoint, read_checkpoint
from mixqvit.models.fitting import fill
from mixqvit.models.model import Model, frozen
from mixqvit.models.preprocessing import Preprocessing

__all__ = ["build_architecture", "embedded_from", "load_embedded"]

ARCHITECTURES = {cls.__name__: cls for cls in (VisionTransformer, VisionTransformerDistilled, SwinTransformer)}


def load_embedded(name: str, folder: Path = ASSETS) -> Model:
    """Loads an embedded model from its card and checkpoint, which must be the file the card describes.

    Raises:
        ModelError: The card or the checkpoint is missing or damaged.
    """
    card = read_card(name, folder)
    path = checkpoint_path(name, folder)
    remedy = f"restore it, or train the model again: python -m mixqvit train-embedded --model {name}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the checkpoint of {name} cannot be read from {path} ({error.strerror}); {remedy}") from error
    if hashlib.sha256(content).hexdigest() != card["checkpoint"]["sha256"]:
        raise ModelError(f"the checkpoint {path} is damaged: it is not the file its card describes; {remedy}")
    return _embedded(name, card, fill(build_architecture(card["architecture"]), read_checkpoint(path), name), card)


def build_architecture(architecture: Mapping[str, Any]) -> nn.Module:
    """Builds the timm module a card describes by `class` and `arguments`, with fresh weights.

    Raises:
        ModelError: The class is none that embedded models use, or its arguments are impossible.
    """
    if architecture["class"] not in ARCHITECTURES:
        raise ModelError(
            f"unknown architecture {architecture['class']!r}; it must be one of {', '.join(ARCHITECTURES)}"
        )
    return build_class(ARCHITECTURES[architecture["class"]], architecture["arguments"])


def embedded_from(name: str, checkpoint: Checkpoint) -> Model:
    """Return other weights in an embedded architecture: the card's accuracy is not theirs, so they carry no card.

    Raises:
        ModelError: The weights are of another architecture, or not finite.
    """
    card = read_card(name)
    module = fill(build_architecture(card["architecture"]), checkpoint, name)
    return replace(_embedded(name, card, module, {}), notes=checkpoint.notes)


def _embedded(name: str, card: Mapping[str, Any], module: nn.Module, own_card: Mapping[str, Any]) -> Model:
    preprocessing = Preprocessing(*(tuple(card["preprocessing"][key]) for key in ("input_size", "mean", "std")))
    return Model(
        name,
        frozen(module),
        preprocessing,
        tuple(card["class_names"]),
        images=card["images"],
        card=own_card,
        architecture=card["architecture"],
    )
