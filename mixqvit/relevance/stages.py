"""The stages of relevance: layer importance by any method, and the quality of attributions of the pixels."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mixqvit.network.graph import Graph
from mixqvit.relevance.methods import find_method, importance_steps
from mixqvit.relevance.quality import attribution_quality_steps
from mixqvit.relevance.records import BranchShare, Importance
from mixqvit.relevance.result import LayerTotals, Relevance
from mixqvit.stages.context import Context
from mixqvit.stages.items import ImageRanges, Named
from mixqvit.stages.stage import Stage, registered

__all__ = ["AttributionScores", "ImportanceBatch", "LayerImportance", "own_importance"]

QUALITY_IMAGES = 8
"""Images that the quality of attributions is measured on."""


@dataclass(frozen=True)
class ImportanceBatch:
    """The importance of the layers for some images, a row of numbers per image.

    Attributes:
        shares: By image and layer.
        branches: By image and branch.
        places: Block and branch of each column of `branches`; none for methods that follow no residual sums.
        seconds: Computing time.
    """

    shares: list[list[float]]
    branches: list[list[float]]
    places: list[tuple[int, str]]
    seconds: float


@registered
@dataclass(frozen=True)
class LayerImportance(Stage[ImportanceBatch, Importance]):
    """Layer importance Ω.

    Attributes:
        method: One of `METHODS`. Some are averaged over fewer images than there are, because they cost more.
        measure: How what is attributed to a layer becomes one number, one of `MEASURES`.
    """

    name = "relevance"
    version = 1
    libraries = ("captum",)

    method: str
    measure: str

    def depends_on(self, study: Context) -> Sequence[int]:
        """Return the number of images."""
        return [self._images(study)]

    def items(self, study: Context) -> ImageRanges:
        """Return the images."""
        return ImageRanges(self._images(study), f"{self.method} of {{done}} of {{total}} images")

    def compute(self, study: Context, missing: Sequence[range]) -> Iterator[tuple[range, ImportanceBatch]]:
        """Yield the images in order, some at a time."""
        graph = _graph_for(study, self.method)
        for gap in missing:
            start, pixels = gap.start, study.analysis_images.pixels[gap.start : gap.stop]
            began = time.perf_counter()
            for found in importance_steps(graph, pixels, method=self.method, measure=self.measure):
                batch = _batch(found, time.perf_counter() - began)
                yield range(start, start + len(batch.shares)), batch
                start += len(batch.shares)
                began = time.perf_counter()

    def written(self, piece: ImportanceBatch) -> dict[str, Any]:
        """Return the rows of numbers."""
        return asdict(piece)

    def read(self, name: str, written: Mapping[str, Any]) -> ImportanceBatch:
        """Return the batch."""
        return ImportanceBatch(**written)

    def join(self, study: Context, pieces: Mapping[str, ImportanceBatch]) -> Importance:
        """Return the mean over the images, and every image's shares."""
        batches = [pieces[name] for name in self.items(study).in_order(pieces)]
        by_layer = np.array([values for batch in batches for values in batch.shares])
        branches = [values for batch in batches for values in batch.branches]
        names = [layer.name for layer in study.layers]
        return Importance(
            dict(zip(names, by_layer.mean(axis=0).tolist(), strict=True)),
            dict(zip(names, by_layer.T.tolist(), strict=True)),
            tuple(
                BranchShare(block, branch, list(values))
                for (block, branch), values in zip(batches[-1].places, zip(*branches, strict=True), strict=True)
            ),
            sum(batch.seconds for batch in batches) / len(by_layer),
        )

    def _images(self, study: Context) -> int:
        return len(study.analysis_images.pixels[: find_method(self.method).images])


def own_importance(study: Context, method: str | None = None) -> LayerImportance:
    """Return the importance by a method, by default the one that a study computes with."""
    method = method or study.importance
    return LayerImportance(method, study.measure(method))


@registered
@dataclass(frozen=True)
class AttributionScores(Stage[tuple[float, float], tuple[float, float]]):
    """Captum's infidelity and maximum sensitivity of a method's attribution of the pixels.

    Attributes:
        method: One of `METHODS` that explains pixels.
    """

    name = "attribution quality"
    version = 1
    libraries = ("captum",)

    method: str

    def items(self, study: Context) -> Named:
        """Return the images."""
        count = min(QUALITY_IMAGES, len(study.analysis_images))
        return Named(tuple(f"image {number}" for number in range(count)), "quality on {name}")

    def compute(self, study: Context, missing: Sequence[str]) -> Iterator[tuple[str, tuple[float, float]]]:
        """Yield the scores of one image after the other."""
        pixels = study.analysis_images.pixels[[int(name.removeprefix("image ")) for name in missing]]
        steps = attribution_quality_steps(_graph_for(study, self.method), pixels, method=self.method)
        for name, step in zip(missing, steps, strict=True):
            yield name, (float(step.infidelity), float(step.max_sensitivity))

    def join(self, study: Context, pieces: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
        """Return the means over the images."""
        infidelity, max_sensitivity = np.mean([pieces[name] for name in self.items(study).names], axis=0).tolist()
        return infidelity, max_sensitivity


def _graph_for(study: Context, method: str) -> Graph:
    return study.double_precision_graph if find_method(method).double_precision else study.precise_graph


def _batch(found: LayerTotals, seconds: float) -> ImportanceBatch:
    branches = found.branches if isinstance(found, Relevance) else {}
    rows = [values.tolist() for values in branches.values()]
    return ImportanceBatch(
        torch.stack(list(found.shares.values()), dim=1).tolist(),
        [list(values) for values in zip(*rows, strict=True)],
        list(branches),
        seconds,
    )
