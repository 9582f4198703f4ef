"""MPQCO (Chen et al. 2021, arXiv 2110.06554): the second-order loss change ½ Δᵀ H Δ from calibration gradients.

The paper takes the perturbation of the weights. Here it is the change Δo of the layer's output, which is the same for a
weight (g_W · ΔW = g_o · ΔW x) and counts activation operands and attention products too. H is the Gauss-Newton matrix
Jᵀ (diag p - p pᵀ) J of the cross-entropy loss, J the Jacobian of the logits: with B = diag √p - p √pᵀ, whose B Bᵀ is
the middle factor, Δᵀ H Δ = Σ_u (g_u · Δo)² with g_u = Jᵀ B u over the unit vectors u, one for each class, or in
expectation over random signs u.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixqvit.criteria.shared import batch_size, batch_starts, covered, random_signs
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, Bits, possible_bits, tied_bits
from mixqvit.network.devices import images_at_once, in_parts
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.quantization.calibration import Calibration, layer_operations
from mixqvit.quantization.fidelity_stage import checked_calibration, trusted_calibration
from mixqvit.stages.context import Context
from mixqvit.stages.items import ImageRanges
from mixqvit.stages.stage import Stage, registered

__all__ = ["LossChangeBatch", "LossChanges", "loss_change_steps", "mean_loss_changes"]

EXACT_CLASSES = 16
"""Up to so many classes the sum over unit vectors is taken, one backward pass each; beyond, random signs."""

PROBES = 8
"""Random sign vectors per image: with 32 images of digits_vit they leave an error of 9 % (median over layers)."""


@dataclass(frozen=True)
class LossChangeBatch:
    """Second-order loss changes on a few images.

    Attributes:
        start: Position of the first image.
        images: Number of images.
        harms: By layer name and (weight bits, activation bits), mean over the images, in nats.
    """

    start: int
    images: int
    harms: Mapping[str, Mapping[Bits, float]]


def loss_change_steps(
    calibration: Calibration,
    pixels: Tensor,
    bits_of: Callable[[Layer], Sequence[Bits]] = tied_bits,
    *,
    seed: int = 0,
    finished: Collection[int] = (),
) -> Iterator[LossChangeBatch]:
    """Predict the harm of quantizing each layer alone from gradients at its output.

    One forward pass, one backward pass per class (up to `EXACT_CLASSES`) or probe, and the layer's own operation at
    each of its bits. A batch is a few images, so that about 0.5 GB holds their gradients (one image always runs); where
    memory runs out, it runs in parts.

    Args:
        calibration: Fitted quantizers.
        pixels: Calibration images `[N, C, H, W]`.
        bits_of: From a layer to the bits to score, with 32 for an operand that stays in full precision; by default the
            same bits for both operands.
        seed: Of the random signs.
        finished: `start` of the batches that are known already.

    Yields:
        Each batch of images as soon as it is done; `mean_loss_changes` merges them.

    Raises:
        CalibrationError: The calibration does not serve these bits.
        ImageError: The images do not fit the model.
        MixQViTError: Memory does not suffice for a single image.
    """
    graph = calibration.graph
    directions = graph.classes if graph.classes <= EXACT_CLASSES else PROBES
    size = batch_size(graph, directions + 1)
    for start, own_seed in batch_starts(len(pixels), size, seed):
        if start not in finished:
            yield _batch(calibration, start, pixels[start : start + size], bits_of, directions, own_seed)


def _batch(
    calibration: Calibration,
    start: int,
    pixels: Tensor,
    bits_of: Callable[[Layer], Sequence[Bits]],
    directions: int,
    seed: int,
) -> LossChangeBatch:
    graph, images = calibration.graph, len(pixels)

    def run(part: slice) -> dict[str, dict[Bits, float]]:
        recorded, gradients = _gradients(graph, pixels, part, seed)
        with torch.no_grad():
            return {
                layer.name: _harms(calibration, layer, recorded, gradients, bits_of(layer)) for layer in graph.layers
            }

    most = images_at_once(graph, images, (directions + 1) * graph.layer_bytes)
    first, *others = in_parts(run, images, most, graph.device, "prediction of loss changes")
    harms = {
        layer: {bits: (harm + sum(other[layer][bits] for other in others)) / images for bits, harm in own.items()}
        for layer, own in first.items()
    }
    return LossChangeBatch(start, images, harms)


def _gradients(
    graph: Graph, pixels: Tensor, part: slice, seed: int
) -> tuple[dict[str, tuple[tuple[Tensor, ...], Tensor]], dict[str, Tensor]]:
    """Return operands and output of each operation of a layer by node, and the gradients at the output.

    The gradients are `[images, directions, elements]`. Of some images of a batch, with their part of the whole batch's
    random signs.
    """
    seen: dict[str, tuple[tuple[Tensor, ...], Tensor]] = {}
    with torch.enable_grad():
        nodes = graph.layer_of()
        operations = {node: _recorded(graph, layer, node, seen) for node, layer in nodes.items()}
        logits = graph.run(pixels[part].clone().requires_grad_(), operations)[0]
        root, generator = graph.task.curvature_root(logits), torch.Generator().manual_seed(seed)
        directions = _directions(root, logits.detach(), part, len(pixels), generator)
        outputs = [seen[node][1] for node in nodes]
        # One list per layer, so that the pieces can be freed as soon as they are put together.
        pieces: list[list[Tensor]] = [[] for _ in outputs]
        for index, direction in enumerate(directions):
            found = torch.autograd.grad(logits, outputs, direction, retain_graph=index < len(directions) - 1)
            for own, gradient in zip(pieces, found, strict=True):
                own.append(gradient.reshape(len(logits), -1))
    recorded = {
        name: (tuple(o.detach() for o in operands), output.detach()) for name, (operands, output) in seen.items()
    }
    gradients = {}
    for node, own in zip(nodes, pieces, strict=True):
        gradients[node] = torch.stack(own, dim=1)
        own.clear()
    return recorded, gradients


def _directions(
    root: Callable[[Tensor], Tensor], logits: Tensor, part: slice, images: int, generator: torch.Generator
) -> list[Tensor]:
    """Return B u `[part, classes]` for every u; the mean over random signs is made a sum by scaling them."""
    classes, like = logits.shape[1], logits.double()
    if classes <= EXACT_CLASSES:
        units = [unit.expand_as(like) for unit in torch.eye(classes).to(like)]
    else:
        whole = (images, classes)
        units = [random_signs(whole, generator, like)[part] / PROBES**0.5 for _ in range(PROBES)]
    return [root(unit) for unit in units]


def _recorded(
    graph: Graph, layer: Layer, node: str, seen: dict[str, tuple[tuple[Tensor, ...], Tensor]]
) -> Callable[..., Tensor]:
    def operation(*operands: Tensor) -> Tensor:
        output = torch.matmul(*operands) if layer.is_matmul else graph.operation(layer).forward(*operands)
        seen[node] = (operands, output)
        return output

    return operation


def _harms(
    calibration: Calibration,
    layer: Layer,
    recorded: Mapping[str, tuple[tuple[Tensor, ...], Tensor]],
    gradients: Mapping[str, Tensor],
    choices: Sequence[Bits],
) -> dict[Bits, float]:
    """Return the harms by bits, summed over the images; the changes of all calls of the layer add up."""
    harms = {}
    for bits in choices:
        operations = layer_operations(calibration, layer, bits)
        if not operations:
            harms[bits] = 0.0
            continue
        moved = 0
        for node in layer.nodes:
            operands, output = recorded[node]
            change = (operations[node](*operands) - output).reshape(len(gradients[node]), 1, -1)
            # The change comes first: a product with a column is ten times slower than one with a row.
            moved = moved + torch.bmm(change, gradients[node].mT).double()
        harms[bits] = float(0.5 * moved.square().sum())
    return harms


def mean_loss_changes(batches: Iterable[LossChangeBatch]) -> dict[str, dict[Bits, float]]:
    """Merge the batches of `loss_change_steps`, in any order: mean ½ Δᵀ H Δ per image, in nats, by layer and bits."""
    batches = sorted(batches, key=lambda batch: batch.start)
    images = sum(batch.images for batch in batches)
    return {
        layer: {bits: sum(batch.images * batch.harms[layer][bits] for batch in batches) / images for bits in harms}
        for layer, harms in batches[0].harms.items()
    }


@registered
@dataclass(frozen=True)
class LossChanges(Stage[LossChangeBatch, dict[str, dict[Bits, float]]]):
    """Second-order loss changes on the calibration images.

    Attributes:
        tied: Whether both operands share their bits; otherwise weights and activations are scored alone, the other one
            in full precision.
    """

    name = "loss changes"
    version = 1

    tied: bool = True

    def needs(self, study: Context) -> tuple[Stage, ...]:
        """Return the calibration and its check."""
        return checked_calibration(study)

    def depends_on(self, study: Context) -> Sequence[int]:
        """Return the number of images."""
        return [len(study.analysis_images)]

    def items(self, study: Context) -> ImageRanges:
        """Return the images."""
        return ImageRanges(len(study.analysis_images), "loss changes of {done} of {total} images")

    def compute(self, study: Context, missing: Sequence[range]) -> Iterator[tuple[range, LossChangeBatch]]:
        """Yield the batches in order."""
        calibration, pixels = trusted_calibration(study), study.analysis_images.pixels
        bits_of = tied_bits if self.tied else _operands_alone
        steps = loss_change_steps(calibration, pixels, bits_of, finished=covered(len(pixels), missing))
        return ((range(batch.start, batch.start + batch.images), batch) for batch in steps)

    def written(self, piece: LossChangeBatch) -> dict[str, Any]:
        """Return the harms as lists of weight bits, activation bits and harm."""
        harms = {layer: [[*bits, harm] for bits, harm in row.items()] for layer, row in piece.harms.items()}
        return {"start": piece.start, "images": piece.images, "harms": harms}

    def read(self, name: str, written: Mapping[str, Any]) -> LossChangeBatch:
        """Return the batch."""
        harms = {layer: {(w, a): harm for w, a, harm in row} for layer, row in written["harms"].items()}
        return LossChangeBatch(written["start"], written["images"], harms)

    def join(self, study: Context, pieces: Mapping[str, LossChangeBatch]) -> dict[str, dict[Bits, float]]:
        """Return the mean over the images by layer and bits."""
        return mean_loss_changes(pieces[name] for name in self.items(study).in_order(pieces))


def _operands_alone(layer: Layer) -> tuple[Bits, ...]:
    """Return bits with only the weights or only the activations quantized."""
    if layer.is_matmul:
        return tied_bits(layer)
    inputs = sorted({bits for _, bits in possible_bits(layer, tied=False)})
    return (*((bits, FULL_PRECISION) for bits in BIT_WIDTHS), *((FULL_PRECISION, bits) for bits in inputs))
