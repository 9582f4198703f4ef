"""Checkpoints: the weights inside the wrappers that training scripts put around them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixqvit.errors import ModelError
from mixqvit.models.reading import read_file
from mixqvit.models.recorded import Recorded, recorded_in

__all__ = ["STEMS", "Checkpoint", "prefixes_of", "read_checkpoint"]

STEMS = ("patch_embed.proj.weight", "patch_embed1.proj.weight")
"""What most vision transformers begin with; what stands before it is no part of timm's names."""

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
        beside: Tensors that lie outside of the prefix that all of the model's names have.
        recorded: What the file says about the model.
    """

    path: Path
    state: Mapping[str, Tensor]
    notes: tuple[str, ...]
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    recorded: Recorded = field(default_factory=Recorded)

    def on_meta(self) -> dict[str, Tensor]:
        """Return tensors of the same shapes without values."""
        return {name: torch.empty(value.shape, dtype=value.dtype, device="meta") for name, value in self.state.items()}


def read_checkpoint(path: Path, stems: Sequence[str] = STEMS) -> Checkpoint:
    """Read a `.safetensors` file, or one of `torch.save` with `weights_only=True`, and unwrap the weights in it.

    Args:
        path: The file.
        stems: Tensors with which the model begins, in timm's names: where they lie, its other tensors lie too.

    Raises:
        ModelError: The file is missing, damaged, or holds no weights.
    """
    levels, notes = _unwrapped(path, read_file(path))
    whole = _tensors(path, levels[-1], notes)
    for name, value in whole.items():
        _check_tensor(path, name, value)
    if sum(value.numel() * value.element_size() for value in whole.values()) > 2 * path.stat().st_size:
        raise ModelError(f"the checkpoint {path} claims tensors of more bytes than the file has; download it again")
    state, beside = _without_prefixes(whole, stems, notes)
    halves = {str(value.dtype).removeprefix("torch.") for value in state.values() if value.dtype in _HALF}
    if halves:
        notes.append(f"Weights in {' and '.join(sorted(halves))} became float32.")
    return Checkpoint(path, state, tuple(notes), beside, recorded_in(levels[:-1]))


def _unwrapped(path: Path, content: Any) -> tuple[list[Any], list[str]]:
    """Return the file's content, what lies in its wrapper, and so on, the state dict last; and notes about that."""
    levels, notes = [content], []
    for _ in range(DEEPEST):
        wrapper = _wrapper(path, content)
        if wrapper is None:
            break
        notes.append(f"The weights were taken from {wrapper!r} in the file{_others(content, wrapper)}.")
        content = content[wrapper]
        levels.append(content)
    return levels, notes


def _tensors(path: Path, content: Any, notes: list[str]) -> dict[str, Tensor]:
    if not _holds_tensors(content):
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
    return state


def _holds_tensors(content: Any) -> bool:
    return isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())


def _wrapper(path: Path, content: Any) -> Any:
    """Return under which name the weights lie: a usual one, or the only one that holds tensors."""
    if not isinstance(content, Mapping):
        return None
    for name in (*WRAPPERS, *AVERAGED_WRAPPERS):
        inside = content.get(name)
        if isinstance(inside, Mapping) and inside:
            return name
    holding = [] if _holds_tensors(content) else [name for name in content if _holds_tensors(content[name])]
    if len(holding) > 1:
        shown = _some([repr(name) for name in holding])
        raise ModelError(
            f"the checkpoint {path} holds several sets of weights, under {shown}; save the state_dict() of one of them"
        )
    return holding[0] if holding else None


def _others(content: Mapping[str, Any], taken: Any) -> str:
    averaged = [name for name in AVERAGED_WRAPPERS if name in content and name != taken]
    if averaged:
        return f", not the averaged ones in {averaged[0]!r}"
    return " (averaged over training)" if taken in AVERAGED_WRAPPERS else ""


def _without_prefixes(
    state: dict[str, Tensor], stems: Sequence[str], notes: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Remove what training scripts put before the model's names; return its tensors, and those that lie beside it."""
    found = prefixes_of(state, stems)
    prefix = found[0] if len(found) == 1 else _usual_prefix(state) if not found else ""
    if not prefix:
        return state, {}
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    beside = {name: value for name, value in state.items() if not name.startswith(prefix)}
    if beside:
        notes.append(f"The weights are those whose names begin with {prefix!r}; not used: {_some(list(beside))}.")
    else:
        notes.append(f"The prefix {prefix!r} was removed from every name.")
    return inside, beside


def prefixes_of(names: Iterable[str], stems: Sequence[str] = STEMS) -> tuple[str, ...]:
    """Return what stands before the stems; several where several models lie beside each other."""
    found = {name.removesuffix(stem) for name in names for stem in stems if f".{name}".endswith(f".{stem}")}
    # a later part of the same model may have a tensor of the same name
    return tuple(sorted(one for one in found if not any(one != other and one.startswith(other) for other in found)))


def _usual_prefix(names: Iterable[str]) -> str:
    """Return what distributed training and compilation put before every name."""
    rest, removed = list(names), ""
    for _ in range(DEEPEST):
        found = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in rest)), "")
        rest, removed = [name.removeprefix(found) for name in rest], removed + found
    return removed


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
