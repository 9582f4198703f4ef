"""How harm is measured: what quantization did to every image, and the metrics that make it one number.

A sweep saves what happened per image, so that every metric and its interval follow without running anything again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy

from mixqvit.errors import ImageError, MixQViTError
from mixqvit.tasks.evaluation import kl_divergence

__all__ = ["METRICS", "Effect", "Metric", "effect", "find_metric", "harm", "intervals"]

RESAMPLES = 1000
"""Bootstrap resamples of the images behind an interval."""

_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class Effect:
    """What a change did to the logits of every image, all arrays `[N]`.

    Attributes:
        kl: KL(full precision ‖ changed) of the class probabilities, in nats.
        squared_error: Mean over the classes of the squared change of the logits.
        signal: Mean over the classes of the squared full-precision logits.
        cross_entropy: Increase of the cross-entropy with the label, in nats; None without labels.
        top1_drop: 1 where an image was classified as labelled and is no more, -1 the other way round, else 0; None
            without labels.
    """

    kl: np.ndarray
    squared_error: np.ndarray
    signal: np.ndarray
    cross_entropy: np.ndarray | None = None
    top1_drop: np.ndarray | None = None


def effect(reference: Tensor, logits: Tensor, labels: Tensor | None) -> Effect:
    """Return what separates logits from those of full precision.

    Args:
        reference: Full-precision logits `[N, classes]`.
        logits: Logits of the changed model `[N, classes]`.
        labels: Class per image `[N]`, or None.
    """
    # On the CPU: not every device has double precision, and the numbers end there.
    reference, logits = reference.cpu().double(), logits.cpu().double()
    increase = drop = None
    if labels is not None:
        labels = labels.cpu()
        before, after = (cross_entropy(values, labels, reduction="none") for values in (reference, logits))
        right, still_right = (values.argmax(dim=1) == labels for values in (reference, logits))
        increase, drop = (after - before).numpy(), (right.int() - still_right.int()).double().numpy()
    return Effect(
        kl_divergence(reference, logits).numpy(),
        (logits - reference).square().mean(dim=1).numpy(),
        reference.square().mean(dim=1).numpy(),
        increase,
        drop,
    )


@dataclass(frozen=True)
class Metric:
    """One way to make an `Effect` a harm.

    Attributes:
        name: As in `METRICS`.
        title: For axes, with the unit.
        description: In one plain sentence.
        needs_labels: Whether it is undefined without labels.
        per_image: The quantity whose mean over the images is the harm.
        relative_to: A quantity by whose mean it is divided, None for none.
        is_coarse: Whether on few images it takes few values only.
    """

    name: str
    title: str
    description: str
    needs_labels: bool
    per_image: Callable[[Effect], np.ndarray | None]
    relative_to: Callable[[Effect], np.ndarray] | None = None
    is_coarse: bool = False


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "kl",
            "KL divergence (nats)",
            "KL(full precision ‖ quantized) of the class probabilities, mean per image; needs no labels (Mix-QViT).",
            False,
            lambda found: found.kl,
        ),
        Metric(
            "cross-entropy",
            "cross-entropy increase (nats)",
            "How much the cross-entropy with the labels rises, mean per image; below zero where it falls.",
            True,
            lambda found: found.cross_entropy,
        ),
        Metric(
            "top1-drop",
            "top-1 drop (fraction of images)",
            "The fraction of images that are not classified as labelled any more, less those that are now: coarse on "
            "few images.",
            True,
            lambda found: found.top1_drop,
            is_coarse=True,
        ),
        Metric(
            "mse",
            "logit mean-squared error",
            "The squared change of the logits, mean over classes and images, in squared logits.",
            False,
            lambda found: found.squared_error,
        ),
        Metric(
            "sqnr",
            "noise to signal, 1 / SQNR",
            "Power of the change of the logits over the power of the logits; SQNR in decibels is -10 log₁₀ of it.",
            False,
            lambda found: found.squared_error,
            lambda found: found.signal,
        ),
    )
}
"""All metrics by name. Of each, more is worse."""


def find_metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        MixQViTError: There is none of this name.
    """
    if name not in METRICS:
        raise MixQViTError(f"There is no metric {name!r} of sensitivity; choose one of {', '.join(METRICS)}.")
    return METRICS[name]


def harm(metric: Metric, found: Effect) -> float:
    """Return the harm Λ by one metric.

    Raises:
        ImageError: The metric needs labels and there are none.
    """
    values = _per_image(metric, found)
    if metric.relative_to is None:
        return float(values.mean())
    return _ratio(values.sum(), metric.relative_to(found).sum())


def intervals(metric: Metric, effects: Sequence[Effect]) -> list[tuple[float, float]]:
    """Return the 95 % bootstrap interval of every harm: its images drawn again `RESAMPLES` times, seeded.

    Percentile intervals (Efron 1979). All effects must be of the same number of images.

    Raises:
        ImageError: The metric needs labels and there are none.
    """
    if not effects:
        return []
    draws = _draws(len(effects[0].kl))
    values = np.stack([_per_image(metric, found) for found in effects]) @ draws
    if metric.relative_to is not None:
        sizes = np.stack([metric.relative_to(found) for found in effects]) @ draws
        values = np.divide(values, sizes, out=np.zeros_like(values), where=sizes > 0)
    low, high = np.quantile(values, _QUANTILES, axis=1)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _per_image(metric: Metric, found: Effect) -> np.ndarray:
    values = metric.per_image(found)
    if values is None:
        raise ImageError(
            f"The metric {metric.name} compares with labels, and these images have none. Use one that needs none: "
            + ", ".join(other.name for other in METRICS.values() if not other.needs_labels)
            + "."
        )
    return values


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0


@lru_cache(maxsize=8)
def _draws(images: int) -> np.ndarray:
    """Return how much each image weighs in each resample, `[images, RESAMPLES]`; every column sums to 1."""
    random = np.random.default_rng(0)
    return random.multinomial(images, np.full(images, 1 / images), RESAMPLES).T / images
