"""Which of timm's architectures a checkpoint is of, from the names and shapes of its tensors alone."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import timm
from torch import Tensor, nn

from mixqvit.errors import ModelError
from mixqvit.models.architectures import on_meta
from mixqvit.models.catalogue import CATALOGUE
from mixqvit.models.checkpoints import STEMS, Checkpoint, prefixes_of
from mixqvit.models.fitting import arguments_of, classifiers, differences, in_timm_names
from mixqvit.models.layouts import OWN_ARGUMENTS, foreign_layout

__all__ = ["Guess", "Recognized", "guess", "guess_architecture", "recognize"]

MOST_CANDIDATES = 120

# A family is known by a tensor that the others do not have; the first that is found counts.
_FAMILIES = (
    ("CaiT", r"blocks_token_only\.0\.", ("cait",)),
    ("PVT v2", r"(stages\.0\.blocks\.0|block1\.0)\.attn\.kv\.", ("pvt_v2",)),
    ("Swin v2", r"layers\.0\.blocks\.0\.attn\.logit_scale", ("swin_transformer_v2",)),
    ("Swin", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table", ("swin_transformer",)),
    ("BEiT", r"(blocks\.0\.attn|rel_pos_bias)\.relative_position_bias_table", ("beit",)),
    (
        "EVA or DINOv3",
        r"storage_tokens|blocks\.0\.(mlp\.(fc1_g|w1)|attn\.(q_proj|q_bias))|rope",
        ("eva", "vision_transformer"),
    ),
    (
        "EVA or DINOv3",
        r"blocks\.0\.gamma_1",
        ("eva", "deit", "beit"),
    ),  # DINOv3 as timm keeps it, and DeiT III as released
    (
        "ViT with relative positions",
        r"(blocks\.0\.attn\.|shared_)?rel_pos\.",
        ("vision_transformer_relpos", "vision_transformer_sam"),
    ),
    ("ViT", r"blocks\.0\.attn\.qkv\.weight", ("deit", "vision_transformer", "eva", "vision_transformer_relpos")),
)
_LATER_BLOCK = re.compile(r"^(blocks|layers\.\d\.blocks|stages\.\d\.blocks|block\d)\.[1-9]")
_BLOCK = re.compile(r"^(blocks|layers\.(\d+)\.blocks|stages\.(\d+)\.blocks|block(\d))\.(\d+)\.")


@dataclass(frozen=True)
class Recognized:
    """What the names and shapes of a checkpoint say about its architecture.

    Attributes:
        family: Such as `ViT`.
        modules: timm's modules that hold such architectures.
        width: Features of a token (of the first stage).
        depths: Blocks per stage; one number where there are no stages.
        patch: Side of a patch in pixels.
    """

    family: str
    modules: tuple[str, ...]
    width: int
    depths: tuple[int, ...]
    patch: int

    @property
    def words(self) -> str:
        """The same as text."""
        blocks = " + ".join(map(str, self.depths))
        return f"{self.family} of {blocks} blocks, width {self.width} and patches of {self.patch} pixels"


def recognize(state: Mapping[str, Tensor]) -> Recognized | None:
    """Return family and dimensions of a checkpoint, None if it is of no vision transformer known here."""
    stem = next((state[name] for name in STEMS if name in state), None)
    if stem is None or stem.ndim != 4:
        return None
    for family, pattern, modules in _FAMILIES:
        if any(re.match(pattern, name) for name in state):
            return Recognized(family, modules, stem.shape[0], _depths(state), stem.shape[-1])
    return None


@dataclass(frozen=True)
class Guess:
    """timm's architectures that a checkpoint fits exactly.

    Attributes:
        names: The likeliest first.
        differing: For those of the names that compute something else than the first, in words what.
    """

    names: tuple[str, ...]
    differing: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class _Compared:
    """How an architecture fits: its arguments, its module (without values), and in words what differs."""

    arguments: Mapping[str, Any]
    module: nn.Module | None
    problem: str
    distance: int = 0


def guess_architecture(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return timm's names of all architectures that a checkpoint fits exactly, the likeliest first.

    A name that occurs in the file's name comes first, then those whose usual image size it has, then those that the
    file's name begins like, then those of the catalogue.

    Raises:
        ModelError: None fits; the message says what was recognized.
    """
    return guess(checkpoint).names


def guess(checkpoint: Checkpoint) -> Guess:
    """Return the same as `guess_architecture`, and which of the architectures differ in what shapes do not show.

    Raises:
        ModelError: As `guess_architecture`.
    """
    found = recognize(checkpoint.state)
    if found is None:
        raise ModelError(_unrecognized(checkpoint))
    compared = {
        name: _compared(name, found, checkpoint) for name in list(_candidates(found, checkpoint))[:MOST_CANDIDATES]
    }
    fitting = {name: one for name, one in compared.items() if not one.problem}
    if not fitting:
        raise ModelError(_unfitting(found, checkpoint, compared))
    stem = checkpoint.path.name.lower().replace("-", "_")
    catalogued = {entry.name.split(".")[0] for entry in CATALOGUE}

    def rank(name: str) -> tuple[Any, ...]:
        in_file_name = len(name) if name in stem else 0
        unusual_sizes = len({"img_size", "window_size"} & set(fitting[name].arguments))
        return -in_file_name, unusual_sizes, -_common_start(name, stem), name not in catalogued

    first, *others = sorted(fitting, key=rank)
    own = _computation(fitting[first].module)
    words = {name: _first_difference(own, _computation(fitting[name].module)) for name in others}
    names = tuple(_with_tag(name, checkpoint.path.name) for name in (first, *others))
    return Guess(names, {name: difference for name, difference in words.items() if difference})


def _unrecognized(checkpoint: Checkpoint) -> str:
    names = [*checkpoint.state, *checkpoint.beside]
    start = f"the architecture of {checkpoint.path} cannot be guessed: its names ({_some(names)}, ...) are those of"
    layout, several = foreign_layout(names), prefixes_of(checkpoint.state)
    if layout:
        return f"{start} {layout}, which are not read yet; give weights under timm's names"
    if len(several) > 1:
        shown = ", ".join(prefix[:60] for prefix in several[:3])
        return f"{start} several models ({shown}); save the state_dict() of one of them"
    return f"{start} no vision transformer that is recognized; name the architecture"


def _unfitting(found: Recognized, checkpoint: Checkpoint, compared: Mapping[str, _Compared]) -> str:
    start = f"{checkpoint.path} looks like a {found.words}, but"
    remedy = f"name the architecture; if it was built with arguments of its own, {OWN_ARGUMENTS}"
    if not compared:
        return f"{start} timm has none of this family with these dimensions; {remedy}"
    closest = min(compared, key=lambda name: compared[name].distance)
    return (
        f"{start} none of the {len(compared)} architectures of timm that were compared has exactly its tensors "
        f"(closest is {closest}: {compared[closest].problem}); {remedy}"
    )


def _compared(name: str, found: Recognized, checkpoint: Checkpoint) -> _Compared:
    """Compare a checkpoint with an architecture.

    Most are ruled out by a model of one block (per stage), because building all blocks takes long.
    """
    whole = replace(checkpoint, state=checkpoint.on_meta())
    first = replace(
        whole, state={tensor: value for tensor, value in whole.state.items() if not _LATER_BLOCK.match(tensor)}
    )
    try:
        module = on_meta(name, {"depths": (1,) * len(found.depths)} if len(found.depths) > 1 else {"depth": 1})
    except ModelError:  # its depth is said by another argument; then all blocks are compared at once
        try:
            module, first = on_meta(name, {}), whole
        except ModelError as error:
            return _Compared({}, None, str(error), len(whole.state))
    heads = tuple(f"{head}." for head in classifiers(module))
    translated, reason = in_timm_names(first.state, module)
    expected = {tensor for tensor in module.state_dict() if not tensor.startswith(heads)}
    actual = {tensor for tensor in translated if not tensor.startswith(heads)}
    if expected != actual:
        listed = [
            f"{len(names)} {word} ({_some(sorted(names))})"
            for names, word in ((expected - actual, "missing"), (actual - expected, "unknown"))
            if names
        ]
        problem = f"tensors {' and '.join(listed)}" + (f"; {reason}" if reason else "")
        return _Compared({}, None, problem, len(expected ^ actual))
    arguments = arguments_of(module, first)
    try:
        module = on_meta(name, arguments)
    except ModelError as error:
        return _Compared(arguments, None, str(error))
    translated, reason = in_timm_names(whole.state, module)
    problem = differences(module, translated, whole.state)
    return _Compared(arguments, module, f"{problem}; {reason}" if problem and reason else problem)


def _computation(module: nn.Module) -> dict[str, Any]:
    """Return what shapes do not show of a module: kinds of its parts, and their numbers such as heads and epsilons."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        if "drop" in type(part).__name__.lower():
            continue  # does nothing in evaluation mode
        found[f"{path} kind".strip()] = type(part).__name__
        for name, value in vars(part).items():
            if isinstance(value, bool | int | float | str) and not name.startswith("_") and "drop" not in name:
                found[f"{path} {name}".strip()] = value
    return found


def _first_difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    keys = [key for key in {**own, **other} if own.get(key) != other.get(key)]
    return f"{keys[0]} {other.get(keys[0])} instead of {own.get(keys[0])}" if keys else ""


def _some(names: list[str]) -> str:
    return ", ".join(name[:60] for name in names[:3])


def _candidates(found: Recognized, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield architectures of the family, the catalogue's first, that do not state other dimensions in timm's source."""
    names = [name for module in found.modules for name in timm.list_models(module=module)]
    catalogued = [entry.name.split(".")[0] for entry in CATALOGUE]
    stem = checkpoint.path.name.lower().replace("-", "_")
    for name in sorted(names, key=lambda name: (name not in stem, name not in catalogued)):
        stated = _stated_dimensions(name)
        actual = {"embed_dim": (found.width,), "depth": found.depths[:1], "depths": found.depths}
        actual |= {"embed_dims": (found.width,), "patch_size": (found.patch,)}
        if all(actual[key] == value[: len(actual[key])] for key, value in stated.items()):
            yield name


def _stated_dimensions(name: str) -> dict[str, tuple[int, ...]]:
    """Return width, depth and patch size as written in timm's function of this name; building all takes seconds."""
    try:
        source = inspect.getsource(timm.model_entrypoint(name))
    except OSError:  # timm was installed without its source: nothing is ruled out by it
        return {}
    found = re.findall(r"\b(embed_dims?|depths?|patch_size)\s*=\s*[(\[]?([\d, ]+)", source)
    return {key: tuple(int(number) for number in re.findall(r"\d+", value)) for key, value in found}


def _common_start(first: str, second: str) -> int:
    return next(
        (index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), len(first)
    )


def _depths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    blocks: dict[int, int] = {}
    for name in state:
        if match := _BLOCK.match(name):
            stage = int(next((group for group in match.groups()[1:4] if group), 0))
            blocks[stage] = max(blocks.get(stage, 0), int(match[5]) + 1)
    return tuple(blocks[stage] for stage in sorted(blocks)) or (0,)


def _with_tag(name: str, file_name: str) -> str:
    """Return the name with the pretrained tag that the file's name has too; the tag decides on preprocessing."""
    if f"{name}." not in file_name:
        return name
    tagged = timm.list_models(f"{name}.*", pretrained=True)
    return next((full for full in sorted(tagged, key=len, reverse=True) if full in file_name), name)
