"""How a checkpoint fits a module of timm: its tensors in timm's names, what they show, and what differs."""

import contextlib
import inspect
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from mixqvit.errors import ModelError
from mixqvit.models.checkpoints import STEMS, Checkpoint, prefixes_of
from mixqvit.models.layouts import OWN_ARGUMENTS, foreign_layout
from mixqvit.models.reading import first_line

__all__ = [
    "arguments_of",
    "check_finite",
    "check_fits",
    "classifiers",
    "differences",
    "fill",
    "in_timm_names",
    "possible_classifier",
    "stems",
]

_CLASSIFIER = re.compile(r"(^|[._])(head|class|fc|linear|logits|pred)[^.]*\.([^.]+\.)*weight$")

# What timm's filters raise where names or shapes are not the family's: tensors and submodules that are not there,
# unpacking and resizing other shapes.
_FILTER_ERRORS = (KeyError, AttributeError, RuntimeError, ValueError, IndexError, TypeError, AssertionError)


def in_timm_names(state: Mapping[str, Tensor], module: nn.Module) -> tuple[dict[str, Tensor], str]:
    """Return a checkpoint's tensors under timm's names, by timm's own filter for the family.

    The filter knows the names of the original releases and drops what timm computes itself.

    Returns:
        The tensors; and why the filter could not be used, in which case they are as they were, otherwise nothing.
    """
    translate = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return dict(state), ""
    options = {"adapt_layer_scale": True} if "adapt_layer_scale" in inspect.signature(translate).parameters else {}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the filter of DINOv3 prints, which would spoil printed JSON
            return translate(dict(state), module, **options), ""
    except _FILTER_ERRORS as error:
        return dict(state), f"timm's conversion of released weights does not take them ({first_line(error)})"


def arguments_of(module: nn.Module, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments by which a checkpoint differs from timm's model: classes, channels, image size, windows."""
    state, _ = in_timm_names(checkpoint.on_meta(), module)
    heads = classifiers(module)
    rows = [len(state[f"{head}.weight"]) for head in heads if _dimensions(state.get(f"{head}.weight")) == 2]
    found = {"num_classes": rows[0] if rows else 0 if heads else module.num_classes, "in_chans": 3}
    for stem in stems(module):
        if _dimensions(state.get(stem)) == 4:
            found["in_chans"] = state[stem].shape[1]
    usual = {"num_classes": module.num_classes, "in_chans": 3}
    arguments = {key: value for key, value in found.items() if value != usual[key]}
    return arguments | _sizes(checkpoint.state, module)


def stems(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights that a timm model applies to the image itself."""
    named = _listed(_config(module).get("first_conv"))
    first = next((name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)), None)
    return tuple(f"{name}.weight" for name in named or _listed(first))


def classifiers(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a timm model's classifying layers, also where it has none of its own."""
    return _listed(_config(module).get("classifier"))


def _config(module: nn.Module) -> Mapping[str, Any]:
    """Return what timm says about a model; nothing for one that was built by its class."""
    return getattr(module, "pretrained_cfg", None) or {}


def _sizes(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Any]:
    """Return image and window size where they show in the shapes of position tables and differ from the module's."""
    stem = getattr(module, "patch_embed", None)
    grid, patch = getattr(stem, "grid_size", None), getattr(stem, "patch_size", None)
    if grid is None or patch is None:
        return {}
    patch_side = patch[0] if isinstance(patch, tuple | list) else patch
    positions, own = state.get("pos_embed"), getattr(module, "pos_embed", None)
    if _dimensions(positions) == 3 and isinstance(own, Tensor):
        extra = own.shape[1] - math.prod(grid)
        # DINOv2 with registers has a position for the class token, which timm adds to the token
        sides = [side for side in (_root(positions.shape[1] - extra), _root(positions.shape[1] - extra - 1)) if side]
        return {"img_size": sides[0] * patch_side} if sides and (sides[0], sides[0]) != tuple(grid) else {}
    table = state.get("blocks.0.attn.relative_position_bias_table")
    if _dimensions(table) == 2:  # BEiT: three more rows for the class token
        side = ((_root(len(table) - 3) or -1) + 1) // 2
        return {"img_size": side * patch_side} if side and (side, side) != tuple(grid) else {}
    windows = [window for stage in range(4) if (window := _window(state, stage))]
    if len(windows) == 4 and isinstance(module, SwinTransformer) and len(module.layers) == 4:
        own_windows = [stage.blocks[0].window_size[0] for stage in module.layers]
        if windows != own_windows:
            return {"window_size": windows[0], "img_size": windows[-1] * 8 * patch_side}
    return {}


def _window(state: Mapping[str, Tensor], stage: int) -> int:
    """Return the side of Swin's windows from its table of (2w - 1)² relative positions; 0 where there is none."""
    table = state.get(f"layers.{stage}.blocks.0.attn.relative_position_bias_table")
    return ((_root(len(table)) or -1) + 1) // 2 if _dimensions(table) == 2 else 0


def fill(module: nn.Module, checkpoint: Checkpoint, name: str) -> nn.Module:
    """Return the module with the weights of a checkpoint, every one present, of the right shape and finite.

    Raises:
        ModelError: The checkpoint is of another architecture, or holds values that are not finite.
    """
    state = check_fits(module, checkpoint, name)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    check_finite(state, str(checkpoint.path))
    module.load_state_dict(state)
    return module


def check_fits(module: nn.Module, checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """Return a checkpoint's tensors in timm's names, which are exactly those of the module.

    Raises:
        ModelError: They are not; the message says what differs, and what that means where it is known.
    """
    state, reason = in_timm_names(checkpoint.state, module)
    problem = differences(module, state, checkpoint.state)
    if not problem:
        return state
    parts = [f"{checkpoint.path} does not hold the weights of {name}: {problem}"]
    source = checkpoint.recorded.source
    if source and checkpoint.recorded.architecture == name:
        parts.append(f"the file itself names that architecture ({source})")
    layout = foreign_layout([*checkpoint.state, *checkpoint.beside])
    several = prefixes_of(checkpoint.state, (*STEMS, *stems(module)))
    found = possible_classifier(module, checkpoint)
    if layout:
        parts.append(f"the names are those of {layout}, which are not read yet; give weights under timm's names")
    elif len(several) > 1:
        parts.append(f"if these are several models ({', '.join(several[:3])}), save the state_dict() of one of them")
    elif found:
        parts.append(f"if {found} is its classifier, give it timm's name, {' or '.join(classifiers(module))}.weight")
    else:
        parts += [reason] if reason else []
        parts.append(f"choose the model it is of; if it was built with arguments of its own, {OWN_ARGUMENTS}")
    raise ModelError("; ".join(parts))


def possible_classifier(module: nn.Module, checkpoint: Checkpoint) -> str | None:
    """Return which matrix may be the classifier of a checkpoint that has none under timm's names, if one may be."""
    heads = {f"{head}.weight" for head in classifiers(module)}
    translated, _ = in_timm_names(checkpoint.on_meta(), module)
    if heads & translated.keys():
        return None
    width, own = getattr(module, "num_features", None), module.state_dict()
    for name, value in {**translated, **checkpoint.beside}.items():
        if name not in own and value.ndim == 2 and value.shape[1] == width and _CLASSIFIER.search(name):
            return name
    return None


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights with values that are no numbers.

    Raises:
        ModelError: Some are NaN or infinite; the message names their tensors.
    """
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise ModelError(
            f"{source} holds values in {_some(bad)} that are not finite (NaN or infinite); use an undamaged checkpoint"
        )


def differences(module: nn.Module, state: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> str:
    """Return in words how a checkpoint differs from what a module needs; empty where it fits exactly.

    Args:
        module: Built for the checkpoint; may be on the meta device.
        state: The checkpoint in timm's names.
        original: The same in its own names: timm's filter resizes what does not fit, which is another model.
    """
    expected = module.state_dict()
    shapes = {key: _before_resizing(key, value, original) for key, value in state.items()}
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    others = [
        f"{key} has shape {shapes[key]} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in shapes and shapes[key] != tuple(value.shape)
    ]
    kinds = [
        f"{key} holds {str(state[key].dtype).removeprefix('torch.')}"
        for key, value in expected.items()
        if key in state and value.is_floating_point() != state[key].is_floating_point()
    ]
    parts = [
        f"{len(keys)} {word} ({_some(keys)})" for keys, word in ((missing, "missing"), (unknown, "unknown")) if keys
    ]
    for found, word in ((others, "of another shape"), (kinds, "of another kind of number")):
        if found:
            parts.append(f"{len(found)} {word} ({_some(found)})")
    return f"tensors {' and '.join(parts)}" if parts else ""


def _before_resizing(key: str, value: Tensor, original: Mapping[str, Tensor]) -> tuple[int, ...]:
    is_resizable = key.endswith((".relative_position_bias_table", "patch_embed.proj.weight", "pos_embed"))
    before = original.get(key)
    if not is_resizable or before is None or before.ndim != value.ndim:
        return tuple(value.shape)
    if key == "pos_embed" and before.shape[1] == value.shape[1] + 1:  # a class token's position, see above
        return tuple(value.shape)
    return tuple(before.shape)


def _some(words: Sequence[str]) -> str:
    return ", ".join(word[:150] for word in words[:3]) + (", ..." if len(words) > 3 else "")


def _listed(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def _dimensions(tensor: Tensor | None) -> int:
    return -1 if tensor is None else tensor.ndim


def _root(number: int) -> int | None:
    """Return the square root of a square above 0, otherwise None."""
    root = math.isqrt(number) if number > 0 else 0
    return root if root and root * root == number else None
