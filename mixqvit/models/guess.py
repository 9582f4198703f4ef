"""Which of timm's architectures a checkpoint is of, from the names and shapes of its tensors alone."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import timm
from torch import Tensor

from mixqvit.errors import ModelError
from mixqvit.models.architectures import arguments_of, classifiers, differences, in_timm_names, on_meta
from mixqvit.models.catalogue import CATALOGUE
from mixqvit.models.checkpoints import Checkpoint

__all__ = ["Recognized", "guess_architecture", "recognize"]

MOST_CANDIDATES = 120

# A family is known by a tensor that the others do not have; the first that is found counts.
_FAMILIES = (
    ("CaiT", r"blocks_token_only\.0\.", ("cait",)),
    ("PVT v2", r"(stages\.0\.blocks\.0|block1\.0)\.attn\.kv\.", ("pvt_v2",)),
    ("Swin v2", r"layers\.0\.blocks\.0\.attn\.logit_scale", ("swin_transformer_v2",)),
    ("Swin", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table", ("swin_transformer",)),
    ("BEiT", r"(blocks\.0\.attn|rel_pos_bias)\.relative_position_bias_table", ("beit",)),
    ("EVA or DINOv3", r"storage_tokens|blocks\.0\.(mlp\.(fc1_g|w1)|attn\.(q_proj|q_bias))|rope", ("eva",)),
    (
        "EVA or DINOv3",
        r"blocks\.0\.gamma_1",
        ("eva", "deit", "beit"),
    ),  # DINOv3 as timm keeps it, and DeiT III as released
    ("ViT", r"blocks\.0\.attn\.qkv\.weight", ("deit", "vision_transformer", "eva")),
)
_STEMS = ("patch_embed.proj.weight", "patch_embed1.proj.weight")
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
    stem = next((state[name] for name in _STEMS if name in state), None)
    if stem is None or stem.ndim != 4:
        return None
    for family, pattern, modules in _FAMILIES:
        if any(re.match(pattern, name) for name in state):
            return Recognized(family, modules, stem.shape[0], _depths(state), stem.shape[-1])
    return None


def guess_architecture(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return timm's names of all architectures that a checkpoint fits exactly, the likeliest first.

    A name that occurs in the file's name comes first, then those whose usual image size it has, then those that the
    file's name begins like, then those of the catalogue.

    Raises:
        ModelError: None fits; the message says what was recognized.
    """
    found = recognize(checkpoint.state)
    if found is None:
        shown = ", ".join(name[:60] for name in list(checkpoint.state)[:3])
        raise ModelError(
            f"the architecture of {checkpoint.path} cannot be guessed: its names ({shown}, ...) are those of no vision "
            "transformer that is recognized; name the architecture"
        )
    fitting = {}
    for name in list(_candidates(found, checkpoint))[:MOST_CANDIDATES]:
        arguments = _fitting_arguments(name, found, checkpoint)
        if arguments is not None:
            fitting[name] = arguments
    if not fitting:
        raise ModelError(
            f"{checkpoint.path} looks like a {found.words}, but no architecture of timm has exactly its tensors; name "
            "the architecture to see what differs"
        )
    stem = checkpoint.path.name.lower().replace("-", "_")
    catalogued = {entry.name.split(".")[0] for entry in CATALOGUE}

    def rank(name: str) -> tuple[Any, ...]:
        in_file_name = len(name) if name in stem else 0
        unusual_sizes = len({"img_size", "window_size"} & set(fitting[name]))
        return -in_file_name, unusual_sizes, -_common_start(name, stem), name not in catalogued

    return tuple(_with_tag(name, checkpoint.path.name) for name in sorted(fitting, key=rank))


def _fitting_arguments(name: str, found: Recognized, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the arguments by which an architecture fits exactly, None if none do.

    Most are ruled out by a model of one block (per stage), because building all blocks takes long.
    """
    state = checkpoint.on_meta()
    first = {tensor: value for tensor, value in state.items() if not _LATER_BLOCK.match(tensor)}
    try:
        module = on_meta(name, {"depths": (1,) * len(found.depths)} if len(found.depths) > 1 else {"depth": 1})
        heads = tuple(f"{head}." for head in classifiers(module))
        expected = {tensor for tensor in module.state_dict() if not tensor.startswith(heads)}
        if expected != {tensor for tensor in in_timm_names(first, module) if not tensor.startswith(heads)}:
            return None
        arguments = arguments_of(module, checkpoint)
        module = on_meta(name, arguments)
    except ModelError:
        return None
    return None if differences(module, in_timm_names(state, module), state) else arguments


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
    except OSError:
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
