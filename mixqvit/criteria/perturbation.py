"""How far quantization moves the weight and the activation operands of a layer: ‖Ŵ - W‖² and ‖x̂ - x‖²."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.criteria.shared import tied_bits
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.network.devices import halving, images_at_once
from mixqvit.network.layers import Layer
from mixqvit.quantization.calibration import Calibration, prepare_weight
from mixqvit.quantization.calls import layer_operands
from mixqvit.quantization.operands import roles
from mixqvit.quantization.quantizers import ActivationQuantizer, ReparameterizedQuantizer

__all__ = ["Perturbation", "squared_perturbations"]

IMAGES_AT_ONCE = 64
"""Images in one run, where memory allows; of the others what later layers still need is held."""


@dataclass(frozen=True)
class Perturbation:
    """Squared perturbations of one layer by quantization, summed over elements, in the coordinates of W and x.

    Attributes:
        layer: Name of the layer.
        weight: ‖Ŵ - W‖² by weight bits; None for an attention product.
        operands: For each activation operand the mean over images of ‖x̂ - x‖² by bits.
    """

    layer: str
    weight: Mapping[int, float] | None
    operands: tuple[Mapping[int, float], ...]


def squared_perturbations(
    calibration: Calibration,
    pixels: Tensor,
    bit_widths: Sequence[int] = BIT_WIDTHS,
    finished: Collection[str] = (),
) -> Iterator[Perturbation]:
    """Measure the squared perturbations of every layer, in network order, in one pass over the images.

    The patch embedding's input has 8 bits only. A reparameterized weight W' = W · diag(r) depends on the bits of its
    input through r: it is taken at the same bits for both, as a tied allocation has it, and its error is divided by r.

    Args:
        calibration: Fitted quantizers.
        pixels: Calibration images `[N, C, H, W]`. At most `IMAGES_AT_ONCE` run at once, paused before the same layer;
            fewer where memory runs out.
        bit_widths: Bit-widths to measure.
        finished: Names of layers that are known already.

    Yields:
        Each layer as soon as it is done.

    Raises:
        CalibrationError: The calibration does not serve these bits.
        ImageError: The images do not fit the model.
        MixQViTError: Memory does not suffice for a single image at once.
    """
    graph, known = calibration.graph, set(finished)
    most = images_at_once(graph, min(IMAGES_AT_ONCE, len(pixels)))
    steps = lambda at_once: _layers(calibration, pixels.split(at_once), bit_widths, known)  # noqa: E731
    for found in halving(steps, most, graph.device, "measurement of perturbations"):
        known.add(found.layer)
        yield found


@torch.no_grad()
def _layers(
    calibration: Calibration, batches: Sequence[Tensor], bit_widths: Sequence[int], finished: Collection[str]
) -> Iterator[Perturbation]:
    graph = calibration.graph
    layers = [layer for layer in graph.layers if layer.name not in finished]
    images = sum(map(len, batches))
    for paused in zip(*(layer_operands(graph, batch, layers) for batch in batches), strict=True) if layers else ():
        layer = paused[0][0]
        operands: list[dict[int, float]] = [{} for _ in roles(layer)]
        weight: dict[int, float] = {}
        for bits in tied_bits(layer, bit_widths):
            if not layer.is_matmul:
                weight[bits[0]] = _squared_norm(_weight_error(calibration, layer, bits))
            pieces = zip(operands, layer.activation_bits(bits), calibration.quantizers(layer, bits), strict=True)
            for index, (found, width, quantizer) in enumerate(pieces):
                if width not in found:
                    values = (held[index] for _, held in paused)
                    found[width] = sum(_squared_norm(_operand_error(quantizer, own)) for own in values) / images
        yield Perturbation(layer.name, None if layer.is_matmul else weight, tuple(operands))


def _weight_error(calibration: Calibration, layer: Layer, bits: tuple[int, int]) -> Tensor:
    weight = calibration.graph.weight(layer)
    prepared = prepare_weight(calibration, layer, bits)
    quantizer, *_ = calibration.quantizers(layer, bits)
    if not isinstance(quantizer, ReparameterizedQuantizer):
        return prepared.weight - weight
    # A ratio that underflows to zero makes a zero column without error.
    ratio = quantizer.ratio.clamp(min=torch.finfo(weight.dtype).tiny)
    return (prepared.weight - weight * quantizer.ratio) / ratio


def _operand_error(quantizer: ActivationQuantizer, values: Tensor) -> Tensor:
    if isinstance(quantizer, ReparameterizedQuantizer):
        quantizer = quantizer.per_channel
    return quantizer(values) - values


def _squared_norm(error: Tensor) -> float:
    return float(error.double().square().sum())
