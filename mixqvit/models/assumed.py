"""The preprocessing that is taken for a checkpoint which does not tell its own, in a sentence."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import get_arch_pretrained_cfgs

from mixqvit.models.preprocessing import Preprocessing

__all__ = ["per_channel", "preprocessing_note"]

_MOST_SHOWN = 4
_USUAL = (
    {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD},
    {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD},
)


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel: the given ones, or where their number is another, their average for each."""
    numbers = tuple(float(value) for value in values)
    return numbers if len(numbers) == channels else (sum(numbers) / len(numbers),) * channels


def preprocessing_note(
    preprocessing: Preprocessing, name: str, others: Sequence[str], known: Collection[str]
) -> str | None:
    """Return in words which preprocessing is assumed and which others timm has for the same tensors.

    Args:
        preprocessing: What is used.
        name: The architecture whose preprocessing it is.
        others: Further architectures that the tensors fit.
        known: Names of its values that a file or a person stated.

    Returns:
        None where mean and std are known: a slightly other crop costs little, another normalization everything.
    """
    if {"mean", "std"} <= set(known):
        return None
    values = _values(preprocessing, known)
    stated = ", ".join(_written(key, value) for key, value in values.items())
    variants = list(_variants(preprocessing, name, others, known))
    example = next((changes for changes, _ in variants if "mean" in changes or "std" in changes), None)
    if example is None:
        channels = len(preprocessing.mean)
        usual = [{key: per_channel(numbers, channels) for key, numbers in pair.items()} for pair in _USUAL]
        other = next(pair for pair in usual if pair != {key: getattr(preprocessing, key) for key in pair})
        example = {key: numbers for key, numbers in other.items() if key not in known}
    choice = " ".join(f"--preprocessing {_written(key, value)}" for key, value in example.items())
    sentences = [f"The preprocessing is assumed, for the file does not tell it: {stated}, that of {name}."]
    if variants:
        shown = "; ".join(
            f"{' '.join(_written(key, value) for key, value in changes.items())} ({variant})"
            for changes, variant in variants[:_MOST_SHOWN]
        )
        more = f"; and {len(variants) - _MOST_SHOWN} more" if len(variants) > _MOST_SHOWN else ""
        sentences.append(f"Variants of timm with the same tensors have others: {shown}{more}.")
    sentences.append(f"If the model was trained otherwise, its accuracy suffers: choose, e.g. {choice}.")
    return " ".join(sentences)


def _variants(
    preprocessing: Preprocessing, name: str, others: Sequence[str], known: Collection[str]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield what differs and whose it is, once each, other normalizations first."""
    own = _values(preprocessing, known)
    found: dict[tuple[Any, ...], tuple[dict[str, Any], str]] = {}
    for architecture in dict.fromkeys(full.partition(".")[0] for full in (name, *others)):
        for variant, config in get_arch_pretrained_cfgs(architecture).items():
            possible = {
                "mean": per_channel(config.mean, len(preprocessing.mean)),
                "std": per_channel(config.std, len(preprocessing.std)),
                "interpolation": config.interpolation,
                "crop_pct": config.crop_pct,
            }
            changes = {key: value for key, value in possible.items() if key in own and value != own[key]}
            if changes:
                found.setdefault(tuple(changes.items()), (changes, variant))
    return iter(sorted(found.values(), key=lambda pair: not {"mean", "std"} & pair[0].keys()))


def _values(preprocessing: Preprocessing, known: Collection[str]) -> dict[str, Any]:
    names = ("mean", "std", "interpolation", "crop_pct")
    return {name: getattr(preprocessing, name) for name in names if name not in known}


def _written(name: str, value: Any) -> str:
    """Return a value as `--preprocessing` takes it."""
    text = ",".join(f"{number:.4g}" for number in value) if isinstance(value, tuple) else str(value)
    return f"{name}={text}"
