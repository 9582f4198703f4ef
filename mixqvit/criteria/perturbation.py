"""How far quantization moves the weight and the activation operands of a layer: ‖Ŵ - W‖² and ‖x̂ - x‖²."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixqvit.network.bits import BIT_WIDTHS, tied_bits
from mixqvit.network.devices import halving, images_at_once
from mixqvit.network.layers import Layer
from mixqvit.quantization.calibration import Calibration, prepare_weight
from mixqvit.quantization.calls import layer_operands
from mixqvit.quantization.fidelity_stage import checked_calibration, trusted_calibration
from mixqvit.quantization.quantizers.base import Quantizer
from mixqvit.quantization.roles import roles
from mixqvit.stages.context import Context
from mixqvit.stages.items import Named
from mixqvit.stages.stage import Stage, registered

__all__ = ["Perturbation", "Perturbations", "squared_perturbations"]

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
    error, _ = quantizer.unfold(prepared.weight - quantizer.fold(weight, None)[0], None)
    return error


def _operand_error(quantizer: Quantizer, values: Tensor) -> Tensor:
    return quantizer.unmoved(values) - values


def _squared_norm(error: Tensor) -> float:
    return float(error.double().square().sum())


@registered
@dataclass(frozen=True)
class Perturbations(Stage[Perturbation, list[Perturbation]]):
    """Squared perturbations of all layers on the calibration images."""

    name = "perturbations"
    version = 1

    def needs(self, study: Context) -> tuple[Stage, ...]:
        """Return the calibration and its check."""
        return checked_calibration(study)

    def depends_on(self, study: Context) -> Sequence[int]:
        """Return the number of images."""
        return [len(study.analysis_images)]

    def items(self, study: Context) -> Named:
        """Return the layers."""
        return Named(tuple(layer.name for layer in study.layers), "perturbation of {name}")

    def compute(self, study: Context, missing: Sequence[str]) -> Iterator[tuple[str, Perturbation]]:
        """Yield the layers in network order."""
        calibration, known = trusted_calibration(study), set(self.items(study).names).difference(missing)
        steps = squared_perturbations(calibration, study.analysis_images.pixels, finished=known)
        return ((found.layer, found) for found in steps)

    def written(self, piece: Perturbation) -> dict[str, Any]:
        """Return the squares by bits."""
        return {
            "weight": piece.weight and list(piece.weight.items()),
            "operands": [list(squares.items()) for squares in piece.operands],
        }

    def read(self, name: str, written: Mapping[str, Any]) -> Perturbation:
        """Return the squares of a layer."""
        operands = tuple(dict(found) for found in written["operands"])
        return Perturbation(name, written["weight"] and dict(written["weight"]), operands)

    def join(self, study: Context, pieces: Mapping[str, Perturbation]) -> list[Perturbation]:
        """Return the layers in network order."""
        return [pieces[layer.name] for layer in study.layers]
