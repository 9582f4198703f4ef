"""Explanations of evaluation images as plain arrays, the latest ones remembered."""

import operator
import threading
from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from mixqvit.errors import ImageError, MixQViTError
from mixqvit.images.images import Images
from mixqvit.network.graph import Graph
from mixqvit.relevance.explanation import explain
from mixqvit.relevance.records import ImageRelevance
from mixqvit.relevance.rules import RULE_SETS

__all__ = ["Explanations"]

REMEMBERED = 64
"""Explanations that are kept; an image of DeiT-Tiny takes about 1.2 MB."""


class Explanations:
    """What single decisions of a model rest on. One object can serve several threads."""

    def __init__(self, graph: Graph, images: Images) -> None:
        """Explain these images by a graph in double precision; nothing is computed yet."""
        self._graph = graph
        self._images = images
        self._lock = threading.Lock()

    def image(self, index: int, target: int | None, rules: str) -> ImageRelevance:
        """Explain one image, for the predicted class if `target` is None; errors as in `Study.image_relevance`."""
        try:
            index, target = operator.index(index), None if target is None else operator.index(target)
        except TypeError as error:
            raise MixQViTError(f"Images and classes are whole numbers, not {index!r} and {target!r}.") from error
        if not 0 <= index < len(self._images):
            raise ImageError(f"There is no evaluation image {index}; they are numbered 0 to {len(self._images) - 1}.")
        self._graph.task.question(target, 1)  # refuses what there is not
        if rules not in RULE_SETS:
            raise MixQViTError(f"There is no rule set {rules!r}; choose one of {', '.join(RULE_SETS)}.")
        with self._lock:
            return self._explained(index, target, rules)

    @cached_property
    def _explained(self) -> Callable[[int, int | None, str], ImageRelevance]:
        return lru_cache(REMEMBERED)(self._explain)

    def _explain(self, index: int, target: int | None, rules: str) -> ImageRelevance:
        pixels = self._images.pixels[index : index + 1].double()
        with torch.no_grad():
            logits = self._graph(pixels)
        task = self._graph.task
        predicted = int(task.explained(logits, None))
        if target is None:
            return self._explained(index, predicted, rules)
        found = explain(self._graph, pixels, target, rules=rules)
        relevance = found.relevance
        grids = {f"block {block}": tokens for block, tokens in relevance.tokens.items() if tokens.ndim == 3}
        if relevance.patches is not None:
            grids = {"patches": relevance.patches, **grids}
        attribution = attribution_heads = None
        if found.attribution is not None:
            grid = relevance.patches.shape[1:]
            attribution = _own(found.attribution[0].reshape(grid))
            attribution_heads = {
                block: _own(heads[0].unflatten(1, grid)) for block, heads in found.attribution_heads.items()
            }
        return ImageRelevance(
            image=_own(self._images.display(index, index + 1)[0]),
            name=self._images.names[index],
            label=None if self._images.labels is None else int(self._images.labels[index]),
            predicted=predicted,
            target=target,
            rules=rules,
            probabilities=_own(task.probabilities(logits)[0]),
            pixels=_own(relevance.pixels[0]),
            tokens={stage: _own(tokens[0]) for stage, tokens in grids.items()},
            heads={block: _own(heads[0]) for block, heads in found.heads.items()},
            attribution=attribution,
            attribution_heads=attribution_heads,
            left={reason: float(amount[0]) for reason, amount in relevance.exits.items()},
        )


def _own(values: Tensor) -> np.ndarray:
    """Return an array that does not keep a larger tensor alive, such as whole attention matrices."""
    return values.numpy().copy()
