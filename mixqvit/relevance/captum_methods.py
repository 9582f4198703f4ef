"""Importance of the layers by gradients: Captum's layer methods, and gradient × relevance.

Captum reads and replaces the outputs of modules through hooks. Attention products are no modules, and a graph that
several threads share must not be hooked. So every layer gets a module of its own for the time of one call, also the
attention products; the graph runs these instead of its own operations, with the parameters it has.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from mixqvit.errors import MixQViTError
from mixqvit.network.devices import halving, images_at_once
from mixqvit.network.graph import Graph, Layer
from mixqvit.relevance.propagation import in_precision, propagate_steps, refuse_repeated_layers
from mixqvit.relevance.result import MEASURES, LayerTotals

# Captum is imported where it is called: it loads matplotlib, which nothing else here needs.

__all__ = ["BATCH_SIZE", "LAYER_METHODS", "STEPS", "layer_attribution_steps"]

STEPS: Mapping[str, int] = {"conductance": 64, "integrated gradients": 8}
"""Steps that a method divides the way from the mean image to the image into.

Against many more steps they move at most 1 % of Ω between the layers of the digits ViT and Swin. DeiT-Tiny's class
score turns sharply close to the mean image: conductance moves 13 % of the `share` and 2 % of the `absolute` Ω there
(two photographs), integrated gradients miss half of the patch embedding's `share`, a third of an early layer's, and
less than 1 % from the middle on (one photograph, every sixth layer).
"""

BATCH_SIZE = 8
"""Images in memory at once, where memory allows, every step counted: each takes up to 170 MB for DeiT-Tiny at 224."""

_COPIES = 4  # tensors like each layer's operands and output that an image takes: 170 MB of 44 for DeiT-Tiny


def layer_attribution_steps(
    graph: Graph,
    pixels: Tensor,
    targets: Tensor | int | None = None,
    *,
    method: str,
    measure: str = "share",
    batch_size: int = BATCH_SIZE,
) -> Iterator[LayerTotals]:
    """Attribute the score (logit) of the explained class to the outputs of all layers, some images at a time.

    - `gradient x activation`: o ⊙ ∂y_c/∂o at the output o of every layer (Captum's LayerGradientXActivation).
    - `conductance`: Σ ∂y_c/∂o · Δo along the straight line from the baseline image to the image (Dhamdhere,
      Sundararajan & Yan 2019, arXiv 1805.12233; Captum's LayerConductance), in `STEPS` equal steps.
    - `integrated gradients`: (o − o′) ⊙ ∫ ∂y_c/∂o along the straight line from the layer's output o′ for the baseline
      image to its output o for the image, everything before and beside the layer as for the image (Sundararajan,
      Taly & Yan 2017, arXiv 1703.01365, at a layer; Captum's LayerIntegratedGradients), `STEPS` points of
      Gauss-Legendre quadrature. It goes through the network once per layer and step.
    - `gradient x relevance`: max(0, ∂y_c/∂o ⊙ R_o) with the relevance R_o of Chefer et al., which their eq. 13 takes
      at the attention, here at the output of every layer. All measures are equal for it.

    The baseline image is zero after normalization: every pixel has the mean colour of the training data. Captum
    computes in the precision of the graph's parameters; nothing is divided, so that single precision does. Relevance
    is propagated in double precision (see `propagate`).

    In passes of one image through DeiT-Tiny an image costs 3, 160, 960 and 18, in the order above.

    The graph, its modules and everybody's gradients are left as they are; one graph can serve several threads. Images
    do not influence each other. Arguments are checked when this is called, the work happens while it is iterated.

    Args:
        graph: The traced model.
        pixels: Images `[N, C, H, W]`.
        targets: The explained class of every image `[N]`, one class for all, or None for the predicted classes.
        method: One of `LAYER_METHODS`.
        measure: What a layer's attribution counts as, one of `MEASURES`.
        batch_size: Images in memory at once, every step counted (for conductance two at least), where memory allows;
            changes nothing but the time.

    Returns:
        An iterator over the totals of the finished images, in order.

    Raises:
        UnsupportedOperationError: The model calls a layer several times, or contains an operation that has no relevance
            rule (`gradient x relevance`).
        ImageError: The images do not have the shape the model was traced with.
        MixQViTError: An argument is outside what it can be.
    """
    if method not in LAYER_METHODS:
        raise MixQViTError(f"There is no layer method {method!r}; choose one of {', '.join(LAYER_METHODS)}.")
    refuse_repeated_layers(graph)
    if method == "gradient x relevance":
        return _gradient_x_relevance(graph, pixels, targets, measure, batch_size)
    if measure not in MEASURES:
        raise MixQViTError(f"There is no measure {measure!r}; choose one of {', '.join(MEASURES)}.")
    if batch_size < 1:
        raise MixQViTError(f"The batch size must be at least 1, not {batch_size}.")
    if len(pixels) == 0:
        raise MixQViTError("There is no image to explain; give at least one.")
    next(graph.walk(pixels[:1], [graph.nodes[0].name]))  # stops before the first operation: only checks the shape
    classes = graph.task.question(targets, len(pixels))
    return _batches(graph, pixels, classes, method, measure, batch_size)


class _Layer(nn.Module):
    """One layer as a module to hook. It puts out one image per row, windows (Swin) along the second dimension."""

    # What nn.Module.__call__ does; torch.fx replaces that one in all threads while one of them traces.
    __call__ = nn.Module._call_impl

    def __init__(self, graph: Graph, layer: Layer) -> None:
        super().__init__()
        self._operate = torch.matmul if layer.is_matmul else graph.operation(layer).forward
        self._windows = layer.output_shape[0]

    def forward(self, *operands: Tensor) -> Tensor:
        return self._operate(*operands).unflatten(0, (-1, self._windows))


class _Reader(nn.Module):
    """Reads the outputs of all layers on the way to the end: hooked, it serves all layers with one pass."""

    __call__ = nn.Module._call_impl

    def forward(self, *outputs: Tensor, end: Tensor) -> Tensor:
        return end


class _Model:
    """The network with private modules as its layers, for one call; what it returns are the explained scores."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.layers = {layer.node: _Layer(graph, layer) for layer in graph.layers}
        self.reader = _Reader()

    def __call__(self, pixels: Tensor, targets: Tensor) -> Tensor:
        outputs: list[Tensor] = []

        def run(layer: _Layer, *operands: Tensor) -> Tensor:
            outputs.append(layer(*operands))
            return outputs[-1].flatten(0, 1)

        replace = {node: partial(run, layer) for node, layer in self.layers.items()}
        end = self._graph.run(pixels, replace)[0]
        return self._graph.task.score(self.reader(*outputs, end=end), targets)


# Of every method: the images `[n, C, H, W]`, their targets `[n]`, and how many images Captum may hold at once. The
# targets are arguments of the model, so that the task reads its outputs, and not Captum.


def _gradient_x_activation(model: _Model, pixels: Tensor, targets: Tensor, at_once: int) -> Iterator[Tensor]:
    from captum.attr import LayerGradientXActivation

    captum = LayerGradientXActivation(model, model.reader)
    images = pixels.requires_grad_()
    yield from _each(captum.attribute(images, additional_forward_args=targets, attribute_to_layer_input=True))


def _conductance(model: _Model, pixels: Tensor, targets: Tensor, at_once: int) -> Iterator[Tensor]:
    from captum.attr import LayerConductance

    found = LayerConductance(model, model.reader).attribute(
        pixels,
        0.0,
        additional_forward_args=targets,
        n_steps=STEPS["conductance"],
        method="riemann_trapezoid",  # equal steps that include both ends, so that the changes add up to o − o′
        internal_batch_size=max(2 * len(pixels), at_once),  # a change takes two points
        attribute_to_layer_input=True,
    )
    yield from _each(found)


def _integrated_gradients(model: _Model, pixels: Tensor, targets: Tensor, at_once: int) -> Iterator[Tensor]:
    from captum.attr import LayerIntegratedGradients

    for layer in model.layers.values():
        yield LayerIntegratedGradients(model, layer).attribute(
            pixels,
            0.0,
            additional_forward_args=targets,
            n_steps=STEPS["integrated gradients"],
            internal_batch_size=max(len(pixels), at_once),
        )


def _each(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Captum gives a single tensor where a module reads a single one."""
    return found if isinstance(found, tuple) else (found,)


_CAPTUM: Mapping[str, Callable[[_Model, Tensor, Tensor, int], Iterator[Tensor]]] = {
    "gradient x activation": _gradient_x_activation,
    "conductance": _conductance,
    "integrated gradients": _integrated_gradients,
}

LAYER_METHODS = ("gradient x relevance", *_CAPTUM)
"""Methods of `layer_attribution_steps`."""


def _batches(
    graph: Graph, pixels: Tensor, targets: Tensor | None, method: str, measure: str, batch_size: int
) -> Iterator[LayerTotals]:
    done = 0

    def steps(at_once: int) -> Iterator[LayerTotals]:
        nonlocal done
        images = max(1, at_once // STEPS.get(method, 1))
        while done < len(pixels):
            batch = slice(done, done + images)
            classes = None if targets is None else targets[batch]
            # Inside a function, so that the caller's gradient mode is back before the batch is handed over.
            found = _batch(graph, pixels[batch], classes, method, measure, at_once)
            done += images
            yield found

    most = images_at_once(graph, batch_size, _COPIES * graph.layer_bytes)
    yield from halving(steps, most, graph.device, method)


def _batch(
    graph: Graph, pixels: Tensor, targets: Tensor | None, method: str, measure: str, at_once: int
) -> LayerTotals:
    with torch.inference_mode(False), torch.no_grad():
        images = pixels.detach().clone().to(next(graph.module.parameters()))
        classes = graph.task.explained(graph(images), targets)
        attributions = _CAPTUM[method](_Model(graph), images, classes, at_once)
        return _totals(graph, attributions, len(images), measure)


def _gradient_x_relevance(
    graph: Graph, pixels: Tensor, targets: Tensor | int | None, measure: str, batch_size: int
) -> Iterator[LayerTotals]:
    double = in_precision(graph, torch.float64)
    propagate_steps(double, pixels, targets, measure=measure, batch_size=batch_size)  # checks the arguments now
    classes = graph.task.question(targets, len(pixels))
    return _gradient_x_relevance_batches(double, pixels, classes, measure, batch_size)


def _gradient_x_relevance_batches(
    graph: Graph, pixels: Tensor, targets: Tensor | None, measure: str, batch_size: int
) -> Iterator[LayerTotals]:
    done = 0

    def steps(at_once: int) -> Iterator[LayerTotals]:
        nonlocal done
        images = at_once // 2 or at_once  # relevance and gradients of all layers take the memory of two images
        rest = None if targets is None else targets[done:]
        for relevance in propagate_steps(graph, pixels[done:], rest, measure=measure, batch_size=images):
            batch = slice(done, done + len(relevance.targets))
            gradients = _gradients(graph, pixels[batch], relevance.targets)
            products = (
                (gradient.reshape(relevance.outputs[layer.name].shape) * relevance.outputs[layer.name]).clamp(min=0)
                for layer, gradient in zip(graph.layers, gradients, strict=True)
            )
            found = _totals(graph, products, len(relevance.targets), measure)
            done = batch.stop
            yield found

    most = images_at_once(graph, batch_size, graph.layer_bytes)
    yield from halving(steps, most, graph.device, "gradient x relevance")


def _gradients(graph: Graph, pixels: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return ∂y_c/∂o of every layer in network order."""
    nodes = [layer.node for layer in graph.layers]
    with torch.inference_mode(False), torch.enable_grad():
        images = pixels.detach().clone().to(next(graph.module.parameters())).requires_grad_()
        logits, outputs = graph.run(images, keep=nodes)
        explained = graph.task.score(logits, targets).sum()
        return torch.autograd.grad(explained, [outputs[node] for node in nodes])


def _totals(graph: Graph, attributions: Iterable[Tensor], images: int, measure: str) -> LayerTotals:
    totals: dict[str, dict[str, Tensor]] = {name: {} for name in MEASURES}
    for layer, attribution in zip(graph.layers, attributions, strict=True):
        for name, reduce in MEASURES.items():
            totals[name][layer.name] = reduce(attribution.detach().reshape(images, -1))
    return LayerTotals(totals=totals, measure=measure)
