"""Checkpoints: the weights inside the wrappers that training scripts put around them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixqvit.errors import ModelError
from mixqvit.models.reading import read_file

__all__ = ["Checkpoint", "read_checkpoint"]

WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict", "module")
AVERAGED_WRAPPERS = ("model_ema", "state_dict_ema")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
DEEPEST = 4
LARGEST_TENSOR = 2**34

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of a file under the names they have there, wrappers and prefixes removed.

    Attributes:
        path: The file.
        state: Tensors by name; views of the file where that is possible.
        notes: Sentences about what was taken out of which wrapper.
    """

    path: Path
    state: Mapping[str, Tensor]
    notes: tuple[str, ...]

    def on_meta(self) -> dict[str, Tensor]:
        """Return tensors of the same shapes without values."""
        return {name: torch.empty(value.shape, dtype=value.dtype, device="meta") for name, value in self.state.items()}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a `.safetensors` file, or one of `torch.save` with `weights_only=True`, and unwrap the weights in it.

    Raises:
        ModelError: The file is missing, damaged, or holds no weights.
    """
    state, notes = _unwrapped(path, read_file(path))
    for name, value in state.items():
        _check_tensor(path, name, value)
    if sum(value.numel() * value.element_size() for value in state.values()) > 2 * path.stat().st_size:
        raise ModelError(f"the checkpoint {path} claims tensors of more bytes than the file has; download it again")
    halves = {str(value.dtype).removeprefix("torch.") for value in state.values() if value.dtype in _HALF}
    if halves:
        notes.append(f"Weights in {' and '.join(sorted(halves))} became float32.")
    return Checkpoint(path, state, tuple(notes))


def _unwrapped(path: Path, content: Any) -> tuple[dict[str, Tensor], list[str]]:
    notes = []
    for _ in range(DEEPEST):
        wrapper = _wrapper(content)
        if wrapper is None:
            break
        notes.append(f"The weights were taken from {wrapper!r} in the file{_others(content, wrapper)}.")
        content = content[wrapper]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(
            f"the checkpoint {path} is no plain state dict (names to tensors), and none is under the usual names "
            f"({', '.join((*WRAPPERS, *AVERAGED_WRAPPERS))}); save the model's state_dict()"
        )
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not all(isinstance(name, str) for name in state):
        raise ModelError(f"the checkpoint {path} is no plain state dict: its names are no text; save state_dict()")
    left = [str(name) for name in content if name not in state]
    if left:
        notes.append(f"Left out: {_some(left)}, which {'is no tensor' if len(left) == 1 else 'are no tensors'}.")
    return _without_prefixes(state, notes), notes


def _wrapper(content: Any) -> str | None:
    if not isinstance(content, Mapping):
        return None
    for name in (*WRAPPERS, *AVERAGED_WRAPPERS):
        inside = content.get(name)
        if isinstance(inside, Mapping) and inside:
            return name
    return None


def _others(content: Mapping[str, Any], taken: str) -> str:
    averaged = [name for name in AVERAGED_WRAPPERS if name in content and name != taken]
    if averaged:
        return f", not the averaged ones in {averaged[0]!r}"
    return " (averaged over training)" if taken in AVERAGED_WRAPPERS else ""


def _without_prefixes(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Remove what distributed training and compilation put before every name."""
    removed = []
    for _ in range(DEEPEST):
        found = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None)
        if found is None:
            break
        removed.append(found)
        state = {name.removeprefix(found): value for name, value in state.items()}
    if removed:
        notes.append(f"The prefix {''.join(removed)!r} was removed from every name.")
    return state


def _check_tensor(path: Path, name: str, value: Tensor) -> None:
    """Refuse what is larger than the bytes behind it, before anything is computed with it."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
        raise ModelError(f"the checkpoint {path} holds {name[:100]} in a form that is not read; save plain tensors")
    elements = 1
    for size in value.shape:
        elements *= size
    if elements > LARGEST_TENSOR or elements * value.element_size() > value.untyped_storage().nbytes():
        raise ModelError(
            f"the checkpoint {path} claims a shape of {tuple(value.shape)} for {name[:100]}, more than it has values "
            "for; download it again"
        )


def _some(names: list[str]) -> str:
    return ", ".join(name[:60] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
