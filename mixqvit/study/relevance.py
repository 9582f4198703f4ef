"""Relevance in a study: layer importance by any method, explained images, quality of attributions."""

from collections.abc import Iterator

import torch

from mixqvit.engines.progress import Progress
from mixqvit.relevance.methods import METHODS, find_method
from mixqvit.relevance.records import ImageRelevance, Importance
from mixqvit.relevance.rules import RULE_SETS
from mixqvit.relevance.stages import AttributionScores, LayerImportance, own_importance
from mixqvit.stages import runner
from mixqvit.study.explanations import Explanations
from mixqvit.study.part import Part

__all__ = ["Relevances"]


class Relevances(Part):
    """Layer importance and explanations."""

    def methods(self) -> dict[str, str]:
        """Return descriptions of all kinds of layer importance by name."""
        return {name: method.description for name, method in METHODS.items()}

    def rules(self) -> dict[str, str]:
        """Return descriptions of the relevance rule sets by name."""
        return {name: rule_set.description for name, rule_set in RULE_SETS.items()}

    def steps(self, method: str | None = None) -> Iterator[Progress]:
        """Compute layer importance, a batch of images at a time; the last result is the `Importance`.

        Args:
            method: One of `importance_methods`; the settings' own by default. Some are averaged over fewer images than
                the settings say, because they cost more.

        Raises:
            MixQViTError: The method is unknown.
            UnsupportedOperationError: The model contains an operation that has no rule.
        """
        return runner.steps(self.study, self.stage(method))

    def progress(self, method: str | None = None) -> Progress:
        """Return how many images have their relevance computed and saved, by a method as in `steps`."""
        return runner.progress(self.study, self.stage(method))

    def importance(self, method: str | None = None) -> Importance:
        """Return layer importance Ω, computing what is missing; arguments and errors as in `relevance_steps`."""
        return self.study.result(self.stage(method))

    def stage(self, method: str | None = None) -> LayerImportance:
        """Return the stage that computes it."""
        return own_importance(self.study, method)

    def image(self, index: int, target: int | None = None, rules: str = "chefer") -> ImageRelevance:
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
        study = self.study
        explanations = study.remembered(
            "explanations",
            lambda: Explanations(study.double_precision_graph.on(torch.device("cpu")), study.evaluation_images),
        )
        return explanations.image(index, target, rules)

    def quality_steps(self, method: str) -> Iterator[Progress]:
        """Score the attribution of the pixels by Captum's measures, an image at a time.

        The last `result` is the mean infidelity and the mean maximum sensitivity, both None where a method explains
        layers only (`mixqvit.relevance.quality`).
        """
        if find_method(method).explains_pixels:
            yield from runner.steps(self.study, AttributionScores(method))
        else:
            yield Progress(1, 1, "nothing to score", (None, None), AttributionScores.name)
