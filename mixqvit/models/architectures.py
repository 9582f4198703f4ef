"""timm's architectures, built within limits."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mixqvit.errors import ModelError
from mixqvit.models.reading import first_line

__all__ = ["build", "build_class", "on_meta"]

LARGEST_MODEL = 16 * 2**30
LARGEST_NUMBER = 100_000
DEEPEST = 256

# What create_model takes beside arguments of the architecture: other weights, files, or another kind of module.
_NOT_ARCHITECTURE = frozenset(
    (
        *("cache_dir", "checkpoint_path", "exportable", "features_only", "model_name", "no_jit", "out_indices"),
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pruned", "scriptable"),
    )
)


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a timm model with fresh weights; nobody's random numbers change for them.

    Args:
        name: timm's name, with or without a pretrained tag.
        arguments: Arguments of its architecture, such as `num_classes`.

    Raises:
        ModelError: The arguments are impossible, or the model is too large.
    """
    _check_size(name, arguments, on_meta(name, arguments))
    with torch.random.fork_rng(devices=[]):
        return _created(name, partial(timm.create_model, name), arguments)


def build_class(kind: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """Build a module of a class of timm with fresh weights, drawn from the global random numbers.

    Raises:
        ModelError: The arguments are impossible, or the model is too large.
    """
    _check_arguments(arguments)
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _LinspaceWithValues():
        sketch = _created(kind.__name__, kind, arguments)
    _check_size(kind.__name__, arguments, sketch)
    return _created(kind.__name__, kind, arguments)


def _check_size(name: str, arguments: Mapping[str, Any], sketch: nn.Module) -> None:
    tensors = [*sketch.parameters(), *sketch.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > LARGEST_MODEL:
        raise ModelError(f"{name} with {dict(arguments)} has {size / 2**30:.0f} GiB; choose a smaller model")


def on_meta(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a timm model whose tensors have shapes but no values, in some hundredths of a second.

    Raises:
        ModelError: timm does not have it, or the arguments are impossible.
    """
    if not timm.is_model(name):
        raise ModelError(f"this version of timm has no model {name!r}")
    _check_arguments(arguments)
    with torch.device("meta"), _LinspaceWithValues():
        return _created(name, partial(timm.create_model, name), arguments)


class _LinspaceWithValues(TorchFunctionMode):
    """Some versions of timm read their drop rates from `torch.linspace`, which on the meta device has no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **(kwargs or {}) | values)


def _created(name: str, create: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return create(**arguments)
    except Exception as error:  # constructors raise what impossible arguments lead to
        given = f" with {dict(arguments)}" if arguments else ""
        raise ModelError(f"timm cannot build {name}{given} ({first_line(error)})") from error


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if name in _NOT_ARCHITECTURE:
            raise ModelError(f"{name!r} is no argument of an architecture; leave it out")
        _check_argument(name, value, DEEPEST if name.startswith("depth") else LARGEST_NUMBER)


def _check_argument(name: str, value: Any, largest: float, nested: int = 0) -> None:
    if isinstance(value, list | tuple) and nested < 3 and len(value) <= 64:
        for item in value:
            _check_argument(name, item, largest, nested + 1)
    elif isinstance(value, Mapping) and nested < 3 and len(value) <= 64:
        for key, item in value.items():
            _check_argument(f"{name}.{key}", item, largest, nested + 1)
    elif isinstance(value, float | int) and not (math.isfinite(value) and abs(value) <= largest):
        raise ModelError(f"{name} = {value!r} is no possible argument of an architecture")
    elif not isinstance(value, str | float | int | None) or (isinstance(value, str) and len(value) > 100):
        raise ModelError(f"{name} is no possible argument of an architecture")
