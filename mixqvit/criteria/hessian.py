"""Mean Hessian traces, which HAWQ-V2 scores layers by (Dong et al. 2020, arXiv 1911.03852).

They are Hutchinson's estimates with random signs v: E vᵀHv = Tr(H), for the weights and (ours) for the activation
operands, so that the attention products have a score too. One backward pass makes the gradients of all of them, then
each gets a second one of its own. Signs for all at once are unbiased too and a twentieth of the work, but what couples
the tensors is then noise: on digits_vit the spread is 5 times (weights) and 40 times (operands) as large, and at equal
work the ranks of the layers' scores correlate 0.79 instead of 0.97 with those of many probes.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, inf, prod, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mixqvit.criteria.shared import batch_size, batch_starts, covered, part_of, random_signs
from mixqvit.network.devices import images_at_once, in_parts
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.network.operations import convolution_arguments
from mixqvit.stages.context import Context
from mixqvit.stages.items import ImageRanges
from mixqvit.stages.stage import Stage, registered

__all__ = ["HessianTraces", "LayerTraces", "Trace", "TraceBatch", "hessian_trace_steps", "mean_traces"]

PROBES = 1
"""Each batch of images has signs of its own, so that more images serve better than more probes.

With one probe and 32 images of digits_vit the scores of layers at 4 bits spread by 15 % (median over layers), with two
probes by 9 %; but 32 other images change them by 46 %.
"""

IMAGE_PASSES = 110
"""Full-precision passes that an image takes (DeiT-Tiny)."""

_COPIES = 5  # tensors like each operand and output that a double backward pass keeps: 3 to 4 were measured
_MOST_IMAGES = 8  # more do not make a pass faster, and batches tell the spread


@dataclass(frozen=True)
class TraceBatch:
    """Estimated mean traces vᵀHv / n over a few images, n the number of elements (for activations: of one image).

    Attributes:
        start: Position of the first image.
        images: Number of images.
        weights: For each layer with a weight one estimate per probe.
        operands: For each layer and activation operand one estimate per probe, averaged over the images.
    """

    start: int
    images: int
    weights: Mapping[str, tuple[float, ...]]
    operands: Mapping[str, tuple[tuple[float, ...], ...]]


@dataclass(frozen=True)
class Trace:
    """A mean Hessian trace Tr(H) / n, averaged over images; can be negative, as H is not a Gauss-Newton matrix.

    Attributes:
        mean: The estimate.
        standard_error: Of the estimate over batches of images, probes included; over probes for a single image, and
            infinite if there was one.
    """

    mean: float
    standard_error: float


@dataclass(frozen=True)
class LayerTraces:
    """The traces of a layer: of its weight (None for an attention product) and of each activation operand."""

    weight: Trace | None
    operands: tuple[Trace, ...]


def hessian_trace_steps(
    graph: Graph,
    pixels: Tensor,
    labels: Tensor | None = None,
    *,
    probes: int = PROBES,
    seed: int = 0,
    finished: Collection[int] = (),
) -> Iterator[TraceBatch]:
    """Estimate the mean Hessian traces of the cross-entropy loss for all weights and activation operands.

    A weight's Hessian is that of the mean loss over images, an activation's is that of its own image's loss.
    At most 8 images are a batch, fewer so that about 0.5 GB holds what their double backward pass keeps (one image
    always runs), beside two tensors like every weight. Where memory runs out, a batch runs in parts.

    Args:
        graph: The traced model.
        pixels: Calibration images `[N, C, H, W]`.
        labels: Class per image `[N]`; None takes the class that the model predicts.
        probes: Sign vectors per tensor and batch of images. Each costs about two passes of the network per tensor.
        seed: Of the signs.
        finished: `start` of the batches that are known already.

    Yields:
        Each batch as soon as it is done; `mean_traces` merges them.

    Raises:
        ImageError: The images do not fit the model.
        MixQViTError: Memory does not suffice for a single image.
    """
    # At least two batches, where there are two images, tell how far estimates spread.
    size = min(_MOST_IMAGES, ceil(len(pixels) / 2), batch_size(graph, _COPIES))
    for start, own_seed in batch_starts(len(pixels), size, seed):
        if start not in finished:
            batch = slice(start, start + size)
            yield _batch(graph, start, pixels[batch], None if labels is None else labels[batch], probes, own_seed)


def _batch(graph: Graph, start: int, pixels: Tensor, labels: Tensor | None, probes: int, seed: int) -> TraceBatch:
    images = len(pixels)
    shapes = graph.shapes(images)
    wholes = {
        layer.name: [shapes[name] for node in layer.nodes for name in graph.operand_nodes(layer, node)]
        for layer in graph.layers
    }
    for layer in graph.layers:
        if not layer.is_matmul:
            wholes[layer.name].append(tuple(graph.weight(layer).shape))
    flat = [shape for own in wholes.values() for shape in own]

    def run(part: slice) -> list[list[float]]:
        return _part_products(graph, pixels, labels, probes, seed, part, flat)

    most = images_at_once(graph, images, _COPIES * graph.layer_bytes)
    parts = list(in_parts(run, images, most, graph.device, "estimate of Hessian traces"))
    # A Hessian is a sum over images, and so are the products with the same signs.
    sums = iter([[sum(values) for values in zip(*of_tensor, strict=True)] for of_tensor in zip(*parts, strict=True)])
    weights, operands = {}, {}
    for layer in graph.layers:
        own = [(prod(shape), next(sums)) for shape in wholes[layer.name]]
        if not layer.is_matmul:
            count, products = own.pop()
            # The loss is a sum over images: its mean has a Hessian as many times smaller.
            weights[layer.name] = tuple(product / (count * images) for product in products)
        # n is of one image and the products are sums over images, so that the number of images cancels.
        operands[layer.name] = tuple(tuple(product / count for product in products) for count, products in own)
    return TraceBatch(start, images, weights, operands)


def _part_products(
    graph: Graph,
    pixels: Tensor,
    labels: Tensor | None,
    probes: int,
    seed: int,
    part: slice,
    wholes: Sequence[tuple[int, ...]],
) -> list[list[float]]:
    """Return vᵀHv of some images of a batch for each tensor and probe, v the part of the whole batch's random signs."""
    seen: dict[str, list[Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        weights = {l.name: graph.weight(l).detach().requires_grad_() for l in graph.layers if not l.is_matmul}
        operations = {
            node: _recorded(graph, layer, weights.get(layer.name), seen) for node, layer in graph.layer_of().items()
        }
        logits = graph.run(pixels[part], operations)[0]
        loss = graph.task.loss(logits, None if labels is None else labels[part])
        for name, weight in weights.items():
            seen[name].append(weight)
        tensors = [tensor for layer in graph.layers for tensor in seen[layer.name]]
        gradients = torch.autograd.grad(loss, tensors, create_graph=True)
        found = []
        for tensor, gradient, whole in zip(tensors, gradients, wholes, strict=True):
            products = []
            for _ in range(probes):
                signs = part_of(random_signs(whole, generator, tensor), part, len(pixels), tensor.shape)
                (curved,) = torch.autograd.grad(gradient, tensor, signs, retain_graph=True)
                products.append(float((signs * curved).sum(dtype=torch.float64)))
            found.append(products)
    return found


def _recorded(
    graph: Graph, layer: Layer, weight: Tensor | None, seen: dict[str, list[Tensor]]
) -> Callable[..., Tensor]:
    """Return the layer's operation with this weight; it remembers the operands of every call, as tensors of its own."""

    def operation(*operands: Tensor) -> Tensor:
        # A view, because layers that read the same value are quantized one by one.
        operands = tuple(o.view_as(o) if o.requires_grad else o.detach().requires_grad_() for o in operands)
        seen.setdefault(layer.name, []).extend(operands)
        if weight is None:
            return torch.matmul(*operands)
        convolution = convolution_arguments(graph, layer)
        if convolution is None:
            return functional.linear(*operands, weight, graph.bias(layer))
        return functional.conv2d(*operands, weight, graph.bias(layer), **convolution)

    return operation


def mean_traces(batches: Iterable[TraceBatch]) -> dict[str, LayerTraces]:
    """Merge the batches of `hessian_trace_steps`, in any order, into mean traces by layer name."""
    batches = sorted(batches, key=lambda batch: batch.start)
    images = [batch.images for batch in batches]
    found = {}
    for layer, operands in batches[0].operands.items():
        has_weight = layer in batches[0].weights
        found[layer] = LayerTraces(
            _merged(images, [batch.weights[layer] for batch in batches]) if has_weight else None,
            tuple(_merged(images, [batch.operands[layer][i] for batch in batches]) for i in range(len(operands))),
        )
    return found


def _merged(images: Sequence[int], estimates: Sequence[Sequence[float]]) -> Trace:
    if len(estimates) == 1:
        estimates, images = [(value,) for value in estimates[0]], [1] * len(estimates[0])
    shares = [count / sum(images) for count in images]
    means = [sum(values) / len(values) for values in estimates]
    mean = sum(share * value for share, value in zip(shares, means, strict=True))
    if len(means) == 1:
        return Trace(mean, inf)
    squares = sum((share * (value - mean)) ** 2 for share, value in zip(shares, means, strict=True))
    return Trace(mean, sqrt(squares * len(means) / (len(means) - 1)))


@registered
@dataclass(frozen=True)
class HessianTraces(Stage[TraceBatch, dict[str, LayerTraces]]):
    """Mean Hessian traces on the calibration images."""

    name = "Hessian traces"
    version = 1

    def depends_on(self, study: Context) -> Sequence[int]:
        """Return the number of images."""
        return [len(study.analysis_images)]

    def items(self, study: Context) -> ImageRanges:
        """Return the images."""
        return ImageRanges(len(study.analysis_images), "Hessian traces of {done} of {total} images")

    def seconds_left(self, study: Context) -> float:
        """Return about how long the missing images take."""
        missing = sum(map(len, self.items(study).missing(list(study.saved(self)))))
        return IMAGE_PASSES * missing * study.seconds_per_image() if missing else 0.0

    def compute(self, study: Context, missing: Sequence[range]) -> Iterator[tuple[range, TraceBatch]]:
        """Yield the batches in order."""
        images = study.analysis_images
        finished = covered(len(images), missing)
        steps = hessian_trace_steps(study.precise_graph, images.pixels, images.labels, finished=finished)
        return ((range(batch.start, batch.start + batch.images), batch) for batch in steps)

    def written(self, piece: TraceBatch) -> dict[str, Any]:
        """Return the batch."""
        return asdict(piece)

    def read(self, name: str, written: Mapping[str, Any]) -> TraceBatch:
        """Return the batch."""
        weights = {name: tuple(values) for name, values in written["weights"].items()}
        operands = {name: tuple(tuple(values) for values in found) for name, found in written["operands"].items()}
        return TraceBatch(written["start"], written["images"], weights, operands)

    def join(self, study: Context, pieces: Mapping[str, TraceBatch]) -> dict[str, LayerTraces]:
        """Return the traces."""
        return mean_traces(pieces[name] for name in self.items(study).in_order(pieces))
