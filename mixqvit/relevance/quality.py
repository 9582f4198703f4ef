"""How good is an attribution of the pixels? Captum's infidelity and maximum sensitivity (Yeh et al. 2019)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.errors import MixQViTError
from mixqvit.network.devices import in_parts
from mixqvit.network.graph import Graph
from mixqvit.relevance.methods import METHODS, find_method
from mixqvit.relevance.propagation import BATCH_SIZE, in_precision, propagate
from mixqvit.relevance.rules import RULE_SETS

# Captum is imported where it is called: it loads matplotlib, which nothing else here needs.

__all__ = [
    "REMOVALS",
    "SHIFTS",
    "SHIFT_RADIUS",
    "STEPS",
    "AttributionQuality",
    "attribution_quality",
    "attribution_quality_steps",
    "pixel_attribution",
]

STEPS = 16
"""Points of Gauss-Legendre quadrature between the mean image and the image for integrated gradients."""
REMOVALS = 32
"""Squares removed from every image, one at a time, for its infidelity."""
SHIFTS = 8
"""Slightly changed copies of every image for its maximum sensitivity."""
SHIFT_RADIUS = 0.02
"""The most a pixel is changed by for maximum sensitivity, in standard deviations (normalized pixels)."""


@dataclass(frozen=True)
class AttributionQuality:
    """How good the attributions of N images are; less is better for both.

    Attributes:
        infidelity: `[N]`, in squared units of the class score (logit).
        max_sensitivity: `[N]`, relative to the norm of the attribution.
    """

    infidelity: Tensor
    max_sensitivity: Tensor


def attribution_quality(
    graph: Graph, pixels: Tensor, targets: Tensor | int | None = None, *, method: str, seed: int = 0
) -> AttributionQuality:
    """Score the attribution of the pixels by a method, with two measures of Yeh et al. 2019 (arXiv 1901.09392).

    Infidelity is the mean squared difference between what the attribution says a part of the image contributes and
    what the class score loses without it. The parts are `REMOVALS` random squares with sides from an eighth to half
    of the image's, replaced by the mean image (zero after normalization). Every image's attribution is first scaled
    by the best factor, because relevance sums to 1 and gradient methods to a score: what is compared is where an
    attribution lies. An attribution that says nothing has the mean square of the losses themselves.

    Maximum sensitivity is the most that the attribution of the same class moves, relative to its own norm, when every
    pixel moves by at most `SHIFT_RADIUS`, over `SHIFTS` random tries.

    Squares and tries depend on the seed alone: they are the same for every method and every image. Neither the global
    random state nor the graph nor anybody's gradients are touched.

    Args:
        graph: The traced model.
        pixels: Images `[N, C, H, W]`.
        targets: The explained class of every image `[N]`, one class for all, or None for the predicted classes.
        method: One of `METHODS` that explains pixels.
        seed: Chooses the squares and the tries.

    Returns:
        Both measures of every image.

    Raises:
        UnsupportedOperationError: The model contains an operation that has no relevance rule.
        ImageError: The images do not have the shape the model was traced with.
        MixQViTError: An argument is outside what it can be, or the method explains layers only.
    """
    parts = list(attribution_quality_steps(graph, pixels, targets, method=method, seed=seed))
    return AttributionQuality(
        torch.cat([part.infidelity for part in parts]), torch.cat([part.max_sensitivity for part in parts])
    )


def attribution_quality_steps(
    graph: Graph, pixels: Tensor, targets: Tensor | int | None = None, *, method: str, seed: int = 0
) -> Iterator[AttributionQuality]:
    """Do the work of `attribution_quality` one image at a time; arguments are checked when this is called."""
    if not find_method(method).explains_pixels:
        able = ", ".join(name for name, other in METHODS.items() if other.explains_pixels)
        raise MixQViTError(f"The method {method!r} attributes to layers only; of pixels there are {able}.")
    if len(pixels) == 0:
        raise MixQViTError("There is no image to explain; give at least one.")
    next(graph.walk(pixels[:1], [graph.nodes[0].name]))  # stops before the first operation: only checks the shape
    classes = graph.task.question(targets, len(pixels))
    if find_method(method).double_precision:
        graph = in_precision(graph, torch.float64)
    squares, shifts = _perturbations(graph.input_shape, seed)

    def run(part: slice) -> AttributionQuality:
        chosen = None if classes is None else classes[part]
        # Inside a function, so that the caller's gradient mode is back before the image is handed over.
        return _quality(graph, pixels[part], chosen, method, squares, shifts)

    return in_parts(run, len(pixels), 1, graph.device, "measurement of attribution quality")


def pixel_attribution(graph: Graph, pixels: Tensor, targets: Tensor, *, method: str) -> Tensor:
    """Return what a method attributes to every pixel and colour channel.

    - Relevance rule sets: the relevance of the pixels.
    - `gradient x activation`: the pixels times the gradient of the class score (Captum's InputXGradient).
    - `integrated gradients`: from the mean image, with `STEPS` points (Captum's IntegratedGradients).

    Args:
        graph: The traced model.
        pixels: Images `[N, C, H, W]`, in the precision of the graph's parameters.
        targets: The explained class of every image `[N]`.
        method: One of `METHODS` that explains pixels.

    Returns:
        The attribution `[N, C, H, W]`.
    """
    from captum.attr import InputXGradient, IntegratedGradients

    if method in RULE_SETS:
        name = graph.nodes[0].name
        return propagate(graph, pixels, targets, rules=method, keep=[name]).outputs[name]
    with torch.inference_mode(False):
        images, classes = pixels.detach().clone().requires_grad_(), targets.clone()
        if method == "gradient x activation":
            return InputXGradient(_scores(graph)).attribute(images, additional_forward_args=classes).detach()
        at_once = max(len(images), BATCH_SIZE)
        captum = IntegratedGradients(_scores(graph))
        return captum.attribute(
            images, 0.0, additional_forward_args=classes, n_steps=STEPS, internal_batch_size=at_once
        )


def _scores(graph: Graph) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what computes the explained scores `[N]` of images for targets `[N]`: Captum knows nothing of outputs."""
    return lambda images, targets: graph.task.score(graph(images), targets)


def _quality(
    graph: Graph, pixels: Tensor, targets: Tensor | None, method: str, squares: Tensor, shifts: Tensor
) -> AttributionQuality:
    """Score the attribution of one image `[1, C, H, W]`."""
    from captum.metrics import infidelity, sensitivity_max

    def remove(images: Tensor) -> tuple[Tensor, Tensor]:
        removed = torch.stack([next(remaining) for _ in images]).to(images).expand_as(images)
        return removed, images * (1 - removed)

    def shift(images: Tensor) -> Tensor:
        return images + shifts.to(images)

    def explain(images: Tensor | tuple[Tensor], target: Tensor) -> Tensor | tuple[Tensor]:
        if isinstance(images, tuple):  # Captum wants back what it gives
            return (explain(images[0], target),)
        return pixel_attribution(graph, images, target.expand(len(images)), method=method)

    with torch.inference_mode(False), torch.no_grad():
        image = pixels.detach().clone().to(next(graph.module.parameters()))
        target = graph.task.explained(graph(image), targets)
        remaining = iter(squares)  # Captum asks for some of them at a time
        return AttributionQuality(
            infidelity(
                _scores(graph),
                remove,
                image,
                explain(image, target),
                additional_forward_args=target,
                n_perturb_samples=REMOVALS,
                max_examples_per_batch=BATCH_SIZE,
                normalize=True,
            ),
            sensitivity_max(explain, image, shift, n_perturb_samples=SHIFTS, target=target),
        )


def _perturbations(shape: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Return the removed squares as masks `[REMOVALS, 1, H, W]` and the shifts `[SHIFTS, C, H, W]`."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(REMOVALS, 1, *shape[1:])
    for mask in masks:
        fraction, top, left = torch.rand(3, generator=generator).tolist()
        sides = [max(1, round(extent * (1 + 3 * fraction) / 8)) for extent in shape[1:]]
        corner = [int(at * (extent - side + 1)) for at, extent, side in zip((top, left), shape[1:], sides, strict=True)]
        mask[0, corner[0] : corner[0] + sides[0], corner[1] : corner[1] + sides[1]] = 1
    shifts = (2 * torch.rand(SHIFTS, *shape, generator=generator) - 1) * SHIFT_RADIUS
    return masks, shifts
