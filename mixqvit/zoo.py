"""Models: the embedded ones, timm's by name, and timm architectures with weights from a local file."""

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mixqvit.cards import ASSETS, EMBEDDED, ModelSummary, checkpoint_path, list_models, read_card
from mixqvit.errors import ModelError

__all__ = ["Model", "ModelSummary", "list_models", "load_embedded", "load_model"]

ARCHITECTURES = {cls.__name__: cls for cls in (VisionTransformer, VisionTransformerDistilled, SwinTransformer)}
PROBE_SECONDS = 5


@dataclass(frozen=True, eq=False)
class Model:
    """A classifier in evaluation mode, with what is needed to feed it. Nothing may change its module.

    Attributes:
        name: The embedded model's or timm's name.
        module: The timm module, in evaluation mode, parameters without gradients.
        input_size: Channels, height and width of an image.
        mean: Per channel, what normalization subtracts.
        std: Per channel, what normalization divides by.
        class_names: One per output.
        images: The images that belong to it (`digits` for the embedded models), or None.
        card: The embedded model's JSON card, otherwise empty.
    """

    name: str
    module: nn.Module
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    images: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the architecture and every stored tensor."""
        kind = type(self.module)
        digest = hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}\n{self.module}\n".encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def load_model(name: str, checkpoint: str | Path | None = None) -> Model:
    """Loads a model with its weights.

    Args:
        name: An embedded model (see `list_models`) or any model name of timm.
        checkpoint: Weights under timm's names, `.safetensors`, or `.pth` and `.pt` read with `weights_only=True`.
            Without it the embedded weights are used, or timm downloads its pretrained ones.

    Raises:
        ModelError: Unknown name, weights that cannot be downloaded, or a file that is missing, damaged or of
            another architecture.
    """
    if name in EMBEDDED:
        return load_embedded(name) if checkpoint is None else _embedded_from(name, Path(checkpoint))
    if not timm.is_model(name):
        raise ModelError(_unknown(name))
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ModelError(f"unknown model {name!r}: timm knows {name.split('.')[0]}, but not this tag of it") from error
    module = _download(name) if checkpoint is None else _filled(timm.create_model(name), Path(checkpoint), name)
    classes = module.num_classes
    if classes < 1:
        raise ModelError(f"{name} has no classifier head, so it has no classes to keep; choose a classification model")
    if classes == 1000:
        class_names = tuple(timm.data.ImageNetInfo().label_descriptions())
    else:
        class_names = tuple(f"class {index}" for index in range(classes))
    config = timm.data.resolve_model_data_config(module)
    return Model(name, _frozen(module), config["input_size"], config["mean"], config["std"], class_names)


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
    return _embedded(name, card, _filled(build_architecture(card["architecture"]), path, name), card)


def build_architecture(architecture: Mapping[str, Any]) -> nn.Module:
    """Builds the timm module a card describes by `class` and `arguments`, with fresh weights.

    Raises:
        ModelError: The class is none that embedded models use.
    """
    if architecture["class"] not in ARCHITECTURES:
        raise ModelError(
            f"unknown architecture {architecture['class']!r}; it must be one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture["class"]](**architecture["arguments"])


def _embedded_from(name: str, checkpoint: Path) -> Model:
    """Other weights in an embedded architecture: the card's accuracy is not theirs, so they carry no card."""
    card = read_card(name)
    return _embedded(name, card, _filled(build_architecture(card["architecture"]), checkpoint, name), {})


def _embedded(name: str, card: Mapping[str, Any], module: nn.Module, own_card: Mapping[str, Any]) -> Model:
    preprocessing = card["preprocessing"]
    size, mean, std = (tuple(preprocessing[key]) for key in ("input_size", "mean", "std"))
    return Model(name, _frozen(module), size, mean, std, tuple(card["class_names"]), card["images"], own_card)


def _frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


def _unknown(name: str) -> str:
    names = [*EMBEDDED, *timm.list_models()]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"embedded are {', '.join(EMBEDDED)}; others are timm's names"
    )
    return f"unknown model {name!r}; {hint}"


def _download(name: str) -> nn.Module:
    """The pretrained model of timm, from the local cache where it is there, otherwise over the network."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise ModelError(f"timm has no pretrained weights for {name}; give a file of your own: checkpoint=FILE")
    overlay = None
    if config.hf_hub_id:
        cached = _cached_weights(config)
        if cached:
            overlay = {"file": cached}
        else:
            _probe_hub(name)
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"the pretrained weights of {name} could not be loaded ({_first_line(error)}); check the network, "
            "or give a downloaded file: checkpoint=FILE"
        ) from error


def _cached_weights(config: Any) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    if config.hf_hub_filename or config.custom_load:
        return None
    cached = try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    return cached if isinstance(cached, str) else None


def _probe_hub(name: str) -> None:
    """Asks the hub once. Its own client would retry for the better part of a minute where there is no network."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # the client's library, and so its errors, differ between versions of the hub
        raise ModelError(
            f"the pretrained weights of {name} must be downloaded, but {constants.ENDPOINT} cannot be reached "
            f"({_first_line(error)}); connect to the network, or give a downloaded file: checkpoint=FILE"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _filled(module: nn.Module, path: Path, name: str) -> nn.Module:
    """The module with the weights of a file, every one present, of the right shape and finite."""
    state = _read_state(path)
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    surplus = [key for key in state if key not in expected]
    if missing or surplus:
        parts = [
            f"{len(keys)} {word} ({keys[0]}, ...)"
            for keys, word in ((missing, "missing"), (surplus, "unknown"))
            if keys
        ]
        raise ModelError(
            f"{path} does not hold the weights of {name}: tensors {' and '.join(parts)}; choose the model it is of"
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise ModelError(
                f"{path} does not hold the weights of {name}: {key} has shape {tuple(tensor.shape)} instead of "
                f"{tuple(expected[key].shape)}; choose the model it is of"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(f"{path} holds values in {key} that are not finite; use an undamaged checkpoint")
    module.load_state_dict(state)
    return module


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"the checkpoint {path} does not exist; give the path of a .safetensors, .pth or .pt file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix not in (".pth", ".pt"):
            raise ModelError(f"the checkpoint {path} is of an unknown kind; give a .safetensors, .pth or .pt file")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except SafetensorError as error:
        raise ModelError(
            f"the checkpoint {path} is damaged or no safetensors file ({error}); download it again"
        ) from error
    except Exception as error:  # torch.load raises whatever its zip and pickle readers meet
        raise ModelError(
            f"the checkpoint {path} cannot be read as plain weights ({_first_line(error)}); "
            "download it again, or save its state dict as safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(
            f"the checkpoint {path} is no plain state dict (names to tensors); save the model's state_dict()"
        )
    return state
