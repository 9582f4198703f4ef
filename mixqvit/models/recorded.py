"""What a training script wrote about the model beside its weights: architecture, arguments, preprocessing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm

from mixqvit.models.preprocessing import CROP_MODES, INTERPOLATIONS

__all__ = ["Recorded", "is_same", "recorded_in"]

# timm writes `arch` and `args`, DeiT and MAE `args`, Lightning `hyper_parameters` (older versions `hparams`)
_SETTINGS = ("args", "hyper_parameters", "hparams", "config")
_NAMES = ("model", "model_name", "arch", "architecture", "backbone")
_CLASSES = ("num_classes", "nb_classes")
_PLAIN = str | int | float | list | tuple
_MOST_CHANNELS = 64
_LARGEST_SIDE = 100_000


@dataclass(frozen=True)
class Recorded:
    """What a file says about its model, as far as it is sound; nothing of it is executed.

    Attributes:
        architecture: timm's name, with its pretrained tag where that is given; None if none is said.
        source: Where it stands in the file, such as `args.model`.
        arguments: With which the training script built the architecture (timm's `model_kwargs` and `gp`).
        num_classes: As stated.
        image_size: Side in pixels, as stated.
        data_config: `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`, as `timm.data.resolve_data_config` takes
            them.
        is_preprocessing_known: Whether mean and std are stated, or left to timm's for the architecture.
        notes: Sentences about what is said but cannot be used.
    """

    architecture: str | None = None
    source: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    image_size: int | None = None
    data_config: Mapping[str, Any] = field(default_factory=dict)
    is_preprocessing_known: bool = False
    notes: tuple[str, ...] = ()


def recorded_in(levels: Iterable[Any]) -> Recorded:
    """Return what the mappings around a state dict say, the outermost first."""
    said: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for level in levels:
        for key in _SETTINGS:
            inside = level.get(key)
            values = inside if isinstance(inside, Mapping) else getattr(inside, "__dict__", {})
            for name in _NAMES:
                said.setdefault(f"{key}.{name}", values.get(name))
            settings = dict(values) | settings
        said.setdefault("arch", level.get("arch"))
    names = {source: name for source, name in said.items() if isinstance(name, str) and name}
    known = {source: found for source, name in names.items() if (found := _architecture(name))}
    source = next(iter(known), "")
    notes = []
    if names and not known:
        first = next(iter(names))
        notes.append(f"The file says {first} = {names[first][:60]!r}, which is no architecture of timm.")
    data_config, unusable = _data_config(settings)
    notes += [f"The file says {name} = {str(settings[name])[:60]}, which cannot be used." for name in unusable]
    return Recorded(
        known.get(source),
        source,
        _arguments(settings) if source else {},
        next((settings[key] for key in _CLASSES if _is_count(settings.get(key))), None),
        _image_size(settings),
        data_config,
        {"mean", "std"} <= (settings.keys() if source.startswith("args.") else data_config.keys()) - set(unusable),
        tuple(notes),
    )


def is_same(name: str, other: str) -> bool:
    """Return whether two of timm's names are one architecture, whatever their pretrained tags are."""
    return name.partition(".")[0] == other.partition(".")[0]


def _architecture(name: str) -> str | None:
    """Return timm's name for what was written; without its tag where this version of timm has not that one."""
    if not timm.is_model(name):
        return None
    base = name.partition(".")[0]
    return name if name == base or name in timm.list_models(f"{base}.*", pretrained=True) else base


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    given = settings.get("model_kwargs")
    arguments = dict(given) if isinstance(given, Mapping) and all(isinstance(key, str) for key in given) else {}
    pooling = settings.get("gp")
    return {"global_pool": pooling, **arguments} if isinstance(pooling, str) and pooling else arguments


def _image_size(settings: Mapping[str, Any]) -> int | None:
    """Return the side of a square image: timm has `img_size` and `input_size` (three numbers), DeiT one number."""
    whole = settings.get("input_size")
    if isinstance(whole, list | tuple) and len(whole) == 3 and whole[1] == whole[2]:
        whole = whole[1]
    return next((side for side in (whole, settings.get("img_size")) if _is_count(side)), None)


def _data_config(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what is stated of the preprocessing, and the names of what is stated but impossible."""
    checks = {
        "mean": lambda values: _is_per_channel(values, -_LARGEST_SIDE),
        "std": lambda values: _is_per_channel(values, 1e-9),
        "interpolation": INTERPOLATIONS.__contains__,
        "crop_pct": lambda part: isinstance(part, float | int) and 0 < part <= 1,
        "crop_mode": CROP_MODES.__contains__,
    }
    stated = {name: value for name in checks if isinstance(value := settings.get(name), _PLAIN) and value != ""}
    unusable = [name for name, value in stated.items() if not checks[name](value)]
    return {name: value for name, value in stated.items() if name not in unusable}, unusable


def _is_per_channel(values: Any, least: float) -> bool:
    return (
        isinstance(values, list | tuple)
        and 0 < len(values) <= _MOST_CHANNELS
        and all(isinstance(value, float | int) and least <= value <= _LARGEST_SIDE for value in values)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_SIDE
