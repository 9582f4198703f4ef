"""The relevance stage of a study: layer importance by any method, explained images, quality of attributions."""

import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixqvit.network.graph import Graph
from mixqvit.progress import Progress
from mixqvit.relevance.methods import METHODS, find_method, importance_steps
from mixqvit.relevance.quality import attribution_quality_steps
from mixqvit.relevance.records import BranchShare, ImageRelevance, Importance
from mixqvit.relevance.result import LayerTotals, Relevance
from mixqvit.relevance.rules import RULE_SETS
from mixqvit.study.base import StudyBase
from mixqvit.study.claims import once
from mixqvit.study.explanations import Explanations

__all__ = ["RelevanceStages"]

# Images that the quality of attributions is measured on.
QUALITY_IMAGES = 8


class RelevanceStages(StudyBase):
    """Layer importance and explanations."""

    @property
    def importance_methods(self) -> dict[str, str]:
        """Descriptions of all kinds of layer importance by name."""
        return {name: method.description for name, method in METHODS.items()}

    @property
    def relevance_rules(self) -> dict[str, str]:
        """Descriptions of the relevance rule sets by name."""
        return {name: rule_set.description for name, rule_set in RULE_SETS.items()}

    def measure(self, method: str | None = None) -> str:
        """Return how what a method attributes to a layer becomes one number: `share`, `absolute` or `positive`."""
        return self.settings.measure or find_method(method or self.settings.importance).measure

    def relevance_steps(self, method: str | None = None) -> Iterator[Progress]:
        """Compute layer importance, a batch of images at a time.

        Args:
            method: One of `importance_methods`; the settings' own by default. Some are averaged over fewer images than
                the settings say, because they cost more.

        Raises:
            MixQViTError: The method is unknown.
            UnsupportedOperationError: The model contains an operation that has no rule.
        """
        method = method or self.settings.importance
        pixels, measure, key = self._relevance_plan(method)
        total = len(pixels)

        def progress() -> Progress:
            return self.relevance_progress(method)

        def run() -> Iterator[Progress]:
            done = progress().done
            started = time.perf_counter()
            for batch in importance_steps(self._graph_for(method), pixels[done:], method=method, measure=measure):
                row = _importance_row(batch, time.perf_counter() - started)
                self.store.put(key, f"images from {done}", row)
                done += len(row["shares"])
                yield Progress(done, total, f"{method} of {done} of {total} images")
                started = time.perf_counter()

        if ("importance", method) in self.memory:
            yield Progress(total, total, "relevance", self.memory["importance", method])
            return
        yield from once(self.store, key, progress, run)
        rows = self._saved_importance(key)
        shares = [values for row in rows for values in row["shares"]]
        branches = [values for row in rows for values in row["branches"]]
        places = rows[-1]["places"]
        seconds = sum(row["seconds"] for row in rows)
        by_layer = np.array(shares)
        names = [layer.name for layer in self.layers]
        importance = Importance(
            dict(zip(names, by_layer.mean(axis=0).tolist(), strict=True)),
            dict(zip(names, by_layer.T.tolist(), strict=True)),
            tuple(
                BranchShare(block, branch, list(values))
                for (block, branch), values in zip(places, zip(*branches, strict=True), strict=True)
            ),
            seconds / total,
        )
        self.memory["importance", method] = importance
        yield Progress(total, total, "relevance", importance)

    def relevance_progress(self, method: str | None = None) -> Progress:
        """Return how many images have their relevance computed and saved, by a method as in `relevance_steps`."""
        method = method or self.settings.importance
        pixels, _, key = self._relevance_plan(method)
        return Progress(sum(len(row["shares"]) for row in self._saved_importance(key)), len(pixels), method)

    def _relevance_plan(self, method: str) -> tuple[Tensor, str, str]:
        """Return the images of a method, what its relevance counts as, and what it is saved under."""
        pixels, measure = self.analysis_images.pixels[: find_method(method).images], self.measure(method)
        return pixels, measure, self._key("relevance", method, measure, len(pixels))

    def _saved_importance(self, key: str) -> list[dict[str, Any]]:
        """Return the saved batches of a relevance stage, as far as they cover its images without a gap."""
        saved = self.store.rows(key)
        found: list[dict[str, Any]] = []
        images = 0
        while (batch := saved.get(f"images from {images}")) is not None:
            found.append(batch)
            images += len(batch["shares"])
        return found

    def relevance(self, method: str | None = None) -> Importance:
        """Return layer importance Ω, computing what is missing; arguments and errors as in `relevance_steps`."""
        method = method or self.settings.importance
        return self._finished(("importance", method), lambda: self.relevance_steps(method))

    def image_relevance(self, index: int, target: int | None = None, rules: str = "chefer") -> ImageRelevance:
        """Explain one evaluation image.

        Args:
            index: Position among the evaluation images.
            target: Class to explain; the predicted one by default.
            rules: One of `relevance_rules`.

        Raises:
            ImageError: There is no such image.
            MixQViTError: There is no such class or rule set.
            UnsupportedOperationError: The model contains an operation that has no rule.
        """
        return self._explanations.image(index, target, rules)

    def attribution_quality_steps(self, method: str) -> Iterator[Progress]:
        """Score the attribution of the pixels by Captum's measures, an image at a time.

        The last `result` is the mean infidelity and the mean maximum sensitivity, both None where a method explains
        layers only (`mixqvit.relevance.quality`).
        """
        if not find_method(method).explains_pixels:
            yield Progress(1, 1, "quality", (None, None))
            return
        pixels = self.analysis_images.pixels[:QUALITY_IMAGES]
        key = self._key("relevance", "quality", method)
        saved = self.store.rows(key)
        scores = []
        while (score := saved.get(f"image {len(scores)}")) is not None and len(scores) < len(pixels):
            scores.append(score)
        if len(scores) < len(pixels):
            steps = attribution_quality_steps(self._graph_for(method), pixels[len(scores) :], method=method)
            for step in steps:
                score = [float(step.infidelity), float(step.max_sensitivity)]
                self.store.put(key, f"image {len(scores)}", score)
                scores.append(score)
                yield Progress(len(scores), len(pixels), f"quality on {len(scores)} of {len(pixels)} images")
        infidelity, max_sensitivity = np.mean(scores, axis=0).tolist()
        yield Progress(len(pixels), len(pixels), "quality", (infidelity, max_sensitivity))

    def _graph_for(self, method: str) -> Graph:
        precise = find_method(method).double_precision
        return self.double_precision_graph if precise else self.precise_graph

    @cached_property
    def _explanations(self) -> Explanations:
        return Explanations(self.double_precision_graph.on(torch.device("cpu")), self.evaluation_images)


def _importance_row(batch: LayerTotals, seconds: float) -> dict[str, Any]:
    """Return what is saved of a batch of images: a row of numbers per image."""
    branches = batch.branches if isinstance(batch, Relevance) else {}
    rows = [values.tolist() for values in branches.values()]
    return {
        "shares": torch.stack(list(batch.shares.values()), dim=1).tolist(),
        "branches": [list(values) for values in zip(*rows, strict=True)],
        "places": list(branches),
        "seconds": seconds,
    }
