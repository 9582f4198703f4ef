"""The preprocessing that is taken for a checkpoint which does not tell its own, in a sentence."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import get_arch_pretrained_cfgs

from mixqvit.models.preprocessing import Preprocessing

__all__ = ["per_channel", "preprocessing_note"]

_ASSUMED = ("mean", "std", "interpolation", "crop_pct")
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
    """Return in words which preprocessing is assumed, and how to choose another: a likely one is the example.

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
    values = {key: getattr(preprocessing, key) for key in _ASSUMED if key not in known}
    stated = " ".join(_written(key, value) for key, value in values.items())
    example = next(_other_normalizations(preprocessing, (name, *others), known))
    choice = " ".join(f"--preprocessing {_written(key, value)}" for key, value in example.items())
    return f"The preprocessing is assumed, as of {name}: {stated}. If it differs, e.g. {choice}."


def _other_normalizations(
    preprocessing: Preprocessing, names: Sequence[str], known: Collection[str]
) -> Iterator[dict[str, tuple[float, ...]]]:
    """Yield what differs in mean and std: in timm's variants with the same tensors, then in what is usual."""
    variants = (
        {"mean": config.mean, "std": config.std}
        for architecture in dict.fromkeys(full.partition(".")[0] for full in names)
        for config in get_arch_pretrained_cfgs(architecture).values()
    )
    for pair in (*variants, *_USUAL):
        possible = {key: per_channel(numbers, len(getattr(preprocessing, key))) for key, numbers in pair.items()}
        changes = {
            key: value for key, value in possible.items() if key not in known and value != getattr(preprocessing, key)
        }
        if changes:
            yield changes


def _written(name: str, value: Any) -> str:
    """Return a value as `--preprocessing` takes it."""
    text = ",".join(f"{number:.4g}" for number in value) if isinstance(value, tuple) else str(value)
    return f"{name}={text}"
