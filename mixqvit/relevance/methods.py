"""All kinds of layer importance by name, through one call."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from mixqvit.errors import MixQViTError
from mixqvit.network.graph import Graph
from mixqvit.relevance import captum_methods, propagation
from mixqvit.relevance.captum_methods import STEPS, layer_attribution_steps
from mixqvit.relevance.propagation import propagate_steps
from mixqvit.relevance.result import LayerTotals
from mixqvit.relevance.rules import RULE_SETS

__all__ = ["METHODS", "Method", "find_method", "importance_steps"]


@dataclass(frozen=True)
class Method:
    """A kind of layer importance.

    Attributes:
        name: What it is called everywhere.
        description: One sentence, with the paper it comes from.
        measure: The measure (`MEASURES`) that suits it. Under rules with signed shares, and for gradients, what a
            layer gets cancels between tokens and channels, so that the sum says little: there it is `absolute`.
        images: The most images it is worth averaging over for what an image costs; None for no bound. Callers choose
            their images by it: `pixels[: METHODS[name].images]`.
        steps: Steps from the baseline image to the image, None for methods without a baseline.
        explains_pixels: Whether it also attributes the pixels, see `mixqvit.relevance.quality`.
        double_precision: Whether it computes in double precision whatever the graph's parameters have, on a converted
            copy of the graph unless it gets a graph in double precision.
    """

    name: str
    description: str
    measure: str = "absolute"
    images: int | None = None
    steps: int | None = None
    explains_pixels: bool = False
    double_precision: bool = False


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        *(
            Method(
                rule_set.name,
                rule_set.description,
                measure="absolute" if rule_set.signed else "share",
                explains_pixels=True,
                double_precision=True,
            )
            for rule_set in RULE_SETS.values()
        ),
        Method(
            "gradient x relevance",
            "The positive part of the relevance at a layer's output times the gradient of the class score there, as "
            "Chefer, Gur & Wolf 2021 (arXiv 2012.09838, eq. 13) take it at the attention.",
            double_precision=True,
        ),
        Method(
            "gradient x activation",
            "A layer's output times the gradient of the class score there (Shrikumar et al. 2016, arXiv 1605.01713; "
            "Captum).",
            explains_pixels=True,
        ),
        Method(
            "conductance",
            "What the changes of a layer's output add to the class score while the mean image turns into the image "
            "(Dhamdhere, Sundararajan & Yan 2019, arXiv 1805.12233; Captum).",
            images=16,
            steps=STEPS["conductance"],
        ),
        Method(
            "integrated gradients",
            "The change of a layer's output from the mean image to the image times the class score's mean gradient "
            "on the way (Sundararajan, Taly & Yan 2017, arXiv 1703.01365; Captum).",
            images=8,
            steps=STEPS["integrated gradients"],
            explains_pixels=True,
        ),
    )
}
"""All methods by name, the default first."""


def find_method(name: str) -> Method:
    """Return the method of this name.

    Raises:
        MixQViTError: There is none; the message lists the names.
    """
    if name not in METHODS:
        raise MixQViTError(f"There is no importance method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def importance_steps(
    graph: Graph,
    pixels: Tensor,
    targets: Tensor | int | None = None,
    *,
    method: str = "chefer",
    measure: str | None = None,
    batch_size: int | None = None,
) -> Iterator[LayerTotals]:
    """Compute layer importance by any method, some images at a time.

    The graph and everybody's gradients are left as they are, and images do not influence each other. Arguments are
    checked when this is called, the work happens while it is iterated.

    Args:
        graph: The traced model.
        pixels: Images `[N, C, H, W]`; all of them are explained, whatever the method's bound on images.
        targets: The explained class of every image `[N]`, one class for all, or None for the predicted classes.
        method: One of `METHODS`.
        measure: What a layer's attribution counts as, one of `MEASURES`; None for what suits the method.
        batch_size: Images in memory at once, every step counted, where memory allows; None for what suits the method.

    Returns:
        An iterator over the totals of the finished images in order; a `Relevance` each for relevance rule sets.

    Raises:
        UnsupportedOperationError: The model contains an operation that has no relevance rule.
        ImageError: The images do not have the shape the model was traced with.
        MixQViTError: An argument is outside what it can be.
    """
    measure = measure or find_method(method).measure
    if method in RULE_SETS:
        at_once = propagation.BATCH_SIZE if batch_size is None else batch_size
        return propagate_steps(graph, pixels, targets, rules=method, measure=measure, keep=(), batch_size=at_once)
    at_once = captum_methods.BATCH_SIZE if batch_size is None else batch_size
    return layer_attribution_steps(graph, pixels, targets, method=method, measure=measure, batch_size=at_once)
