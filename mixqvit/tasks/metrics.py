"""How harm becomes a number: what quantization did to every image, and the metrics that read it.

A sweep saves what happened per image, so that every metric and its interval follow without running anything again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, log10

import numpy as np

from mixqvit.errors import ImageError

__all__ = ["Effect", "Metric"]

Effect = Mapping[str, np.ndarray | None]
"""What a change did to every image: the quantities of a task by name, `[N]` each; None where labels are missing."""

RESAMPLES = 1000
"""Bootstrap resamples of the images behind an interval."""

_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Metric:
    """One way to make an `Effect` a harm; more is worse.

    Attributes:
        name: Unique among the metrics of a task.
        title: What is measured, in two or three words.
        unit: Behind a number; empty for none.
        description: In one plain sentence.
        quantity: Name of the quantity whose mean over the images is the harm.
        needs_labels: Whether it is undefined without labels.
        relative_to: Name of a power by whose mean it is divided, so that it is noise to signal; None for none.
        counts_images: Whether it is a fraction of the images, so that few images give few values.
    """

    name: str
    title: str
    unit: str
    description: str
    quantity: str
    needs_labels: bool = False
    relative_to: str | None = None
    counts_images: bool = False

    @property
    def heading(self) -> str:
        """Its title with the unit, for an axis."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def harm(self, effect: Effect) -> float:
        """Return the harm Λ.

        Raises:
            ImageError: The metric needs labels and there are none.
        """
        values = self._per_image(effect)
        if self.relative_to is None:
            return float(values.mean())
        whole = effect[self.relative_to].sum()
        return float(values.sum() / whole) if whole > 0 else 0.0

    def intervals(self, effects: Sequence[Effect]) -> list[tuple[float, float]]:
        """Return the 95 % bootstrap interval of every harm: its images drawn again `RESAMPLES` times, seeded.

        Percentile intervals (Efron 1979). All effects must be of the same number of images.

        Raises:
            ImageError: The metric needs labels and there are none.
        """
        if not effects:
            return []
        per_image = np.stack([self._per_image(effect) for effect in effects])
        draws = _draws(per_image.shape[1])
        values = per_image @ draws
        if self.relative_to is not None:
            sizes = np.stack([effect[self.relative_to] for effect in effects]) @ draws
            values = np.divide(values, sizes, out=np.zeros_like(values), where=sizes > 0)
        low, high = np.quantile(values, _QUANTILES, axis=1)
        return list(zip(low.tolist(), high.tolist(), strict=True))

    def in_words(self, harm: float, digits: int = 3) -> str:
        """Write a harm with its unit: a fraction of images in percent, noise to signal also as SQNR in decibels."""
        if self.counts_images:
            return f"{100 * harm:.{digits}g}\u00a0% of the images"
        text = f"{harm:.{digits}g}" + (f"\u00a0{self.unit}" if self.unit else "")
        decibels = self.decibels(harm)
        return text if decibels is None else f"{text} (SQNR {decibels:.1f}\u00a0dB)"

    def decibels(self, harm: float) -> float | None:
        """Return noise to signal as SQNR in decibels; None for a metric that is something else."""
        if self.relative_to is None:
            return None
        return -10 * log10(harm) if harm > 0 else inf

    def without_labels(self) -> str:
        """Say that this metric needs labels and there are none."""
        return f"The metric {self.name} compares with labels, and these images have none. Choose one that needs none"

    def _per_image(self, effect: Effect) -> np.ndarray:
        values = effect[self.quantity]
        if values is None:
            raise ImageError(f"{self.without_labels()}.")
        return values


@lru_cache(maxsize=8)
def _draws(images: int) -> np.ndarray:
    """Return how much each image weighs in each resample, `[images, RESAMPLES]`; every column sums to 1."""
    random = np.random.default_rng(0)
    return random.multinomial(images, np.full(images, 1 / images), RESAMPLES).T / images
