"""The record of a loaded model."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import timm
import torch
from torch import nn

from mixqvit.models.preprocessing import Preprocessing
from mixqvit.tasks.classification import Classification
from mixqvit.tasks.task import Task

__all__ = ["Model", "class_and_label_names", "frozen"]


@dataclass(frozen=True, eq=False)
class Model:
    """A classifier in evaluation mode, with what is needed to feed it. Nothing may change its module.

    Attributes:
        name: The embedded model's or timm's name.
        module: The timm module, in evaluation mode, parameters without gradients.
        preprocessing: How an image becomes its input.
        class_names: One per output, for people.
        label_names: One per output, for matching labels: WordNet ids for the ImageNet sets that timm knows, otherwise
            (and where left out) the class names.
        images: The images that belong to it (`digits` for the embedded models), or None.
        card: The embedded model's JSON card, otherwise empty.
        notes: Sentences about what was guessed or unwrapped when it was loaded.
        arguments: Arguments of the architecture by which the module differs from timm's model of that name.
        architecture: How its source builds the module again (`ModelSource.build`), as JSON can write it; None for a
            model of timm, whose name and arguments say it.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    images: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.label_names:
            object.__setattr__(self, "label_names", self.class_names)

    @property
    def task(self) -> Task:
        """What its outputs mean: all sources hold classifiers."""
        return Classification(len(self.class_names))

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.preprocessing.input_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, what normalization subtracts."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, what normalization divides by."""
        return self.preprocessing.std

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the architecture and every stored tensor."""
        kind = type(self.module)
        digest = hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}\n{self.module}\n".encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def class_and_label_names(classes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names for people and for matching labels: words and WordNet ids where timm knows the set by its size."""
    subset = timm.data.infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        names = tuple(f"class {index}" for index in range(classes))
        return names, names
    known = timm.data.ImageNetInfo(subset)
    return tuple(known.label_descriptions()), tuple(known.label_names())


def frozen(module: nn.Module) -> nn.Module:
    """Return the module itself, in evaluation mode, its parameters without gradients."""
    return module.eval().requires_grad_(False)
