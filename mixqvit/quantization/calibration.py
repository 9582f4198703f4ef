"""Calibration: quantizers fitted to a few images, once, for whatever bits are asked for later."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixqvit.bits import FULL_PRECISION, Bits
from mixqvit.errors import CalibrationError
from mixqvit.graph import Graph
from mixqvit.layers import Layer
from mixqvit.quantization.operations import (
    PreparedWeight,
    QuantizedLayer,
    QuantizedMatmul,
    QuantizedOperation,
    convolution_arguments,
)
from mixqvit.quantization.quantizers import ActivationQuantizer, ReparameterizedQuantizer
from mixqvit.quantization.ranges import fit_weight
from mixqvit.quantization.recipes import OperandQuantizers, Recipe, find_recipe
from mixqvit.quantization.reparameterization import fold

__all__ = ["Calibration", "LayerCalibration", "calibrate", "calibrate_steps", "layer_operation", "prepare_weight"]

PREPARED_WEIGHT_BYTES = 256 * 2**20
"""Bytes of prepared weights that one calibration keeps; the least recently used are dropped beyond that."""


@dataclass(frozen=True)
class LayerCalibration:
    """The fitted activation quantizers of one layer.

    Attributes:
        layer: Name of the layer.
        operands: For each activation operand the quantizers by bit-width: one operand for a layer with a weight,
            two for an attention product.
    """

    layer: str
    operands: tuple[OperandQuantizers, ...]


class _PreparedWeights:
    """A bounded cache of prepared weights, safe to share between threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._weights: OrderedDict[Any, PreparedWeight] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], PreparedWeight]) -> PreparedWeight:
        with self._lock:
            if key in self._weights:
                self._weights.move_to_end(key)
                return self._weights[key]
        prepared = make()
        with self._lock:
            if key not in self._weights:
                self._weights[key] = prepared
                self._bytes += prepared.bytes
            while self._bytes > self._limit and len(self._weights) > 1:
                self._bytes -= self._weights.popitem(last=False)[1].bytes
        return prepared


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate`.

    Attributes:
        graph: The model it belongs to.
        recipe: Name of the recipe.
        layers: Fitted quantizers by layer name.
        bits: The only (weight bits, activation bits) it serves; None if it serves any.
    """

    graph: Graph
    recipe: str
    layers: Mapping[str, LayerCalibration]
    bits: Bits | None = None
    _prepared: _PreparedWeights = field(
        default_factory=lambda: _PreparedWeights(PREPARED_WEIGHT_BYTES), repr=False, compare=False
    )

    def quantizers(self, layer: Layer, bits: Bits) -> tuple[ActivationQuantizer | None, ...]:
        """Return the quantizer of each activation operand at these bits, None where it stays in full precision.

        Raises:
            CalibrationError: The recipe was calibrated for other bits.
        """
        operands = self.layers[layer.name].operands
        widths = bits if layer.is_matmul else bits[1:]
        if self.bits is not None and not layer.is_matmul and bits[0] not in (self.bits[0], FULL_PRECISION):
            raise self._wrong_bits(layer, bits)
        chosen: list[ActivationQuantizer | None] = []
        for quantizers, width in zip(operands, widths, strict=True):
            if width == FULL_PRECISION:
                chosen.append(None)
            elif width in quantizers:
                chosen.append(quantizers[width])
            else:
                raise self._wrong_bits(layer, bits)
        return tuple(chosen)

    def _wrong_bits(self, layer: Layer, bits: Bits) -> CalibrationError:
        return CalibrationError(
            f"Recipe {self.recipe} was calibrated for weight and activation bits {self.bits} and cannot run "
            f"{layer.name} at {bits}. Calibrate again with these bits, or use recipe mix-qvit, which serves any."
        )


def calibrate(graph: Graph, pixels: Tensor, recipe: str = "mix-qvit", bits: Bits | None = None) -> Calibration:
    """Fit the activation quantizers of all layers to calibration images.

    Args:
        graph: The traced model.
        pixels: Calibration images `[N, C, H, W]`; the papers use 32.
        recipe: `mix-qvit` (any bits later) or `repq-vit` (the published algorithm, for one bit setting).
        bits: (weight bits, activation bits) for recipes that are calibrated for one setting, else None.

    Returns:
        The calibration; give it to `quantize` with any bits it serves.

    Raises:
        CalibrationError: Unknown recipe, bits missing or not wanted, no images, or values that are not finite.
        ImageError: The images do not fit the model.
    """
    layers = {piece.layer: piece for piece in calibrate_steps(graph, pixels, recipe, bits)}
    return Calibration(graph, recipe, layers, bits)


def calibrate_steps(
    graph: Graph,
    pixels: Tensor,
    recipe: str = "mix-qvit",
    bits: Bits | None = None,
    finished: Mapping[str, LayerCalibration] | None = None,
) -> Iterator[LayerCalibration]:
    """Do the work of `calibrate` layer by layer, in network order; layers in `finished` are not fitted again.

    Yields:
        Each newly calibrated layer as soon as it is done.
    """
    chosen = _checked_recipe(recipe, bits)
    if not len(pixels):
        raise CalibrationError("Calibration needs at least one image; 32 are usual.")
    if not torch.isfinite(pixels).all():
        raise CalibrationError("The calibration images contain values that are not finite (NaN or infinity).")
    finished = finished or {}
    replace: dict[str, Callable[..., Tensor]] = {}
    layers = {layer.node: layer for layer in graph.layers}
    with torch.no_grad():
        for node, values in graph.walk(pixels, list(layers), replace):
            layer = layers[node]
            piece = finished.get(layer.name)
            if piece is None:
                operands = graph.operands(layer, values)
                for operand in operands:
                    if not torch.isfinite(operand).all():
                        raise CalibrationError(
                            f"An input of layer {layer.name} is not finite (NaN or infinity) on the calibration "
                            "images. Check the checkpoint and the images."
                        )
                piece = LayerCalibration(layer.name, chosen.fit(graph, layer, operands, bits))
            if chosen.one_setting:
                replace[node] = _initialisation_operation(graph, layer, piece, bits)
            if layer.name not in finished:
                yield piece


def _checked_recipe(recipe: str, bits: Bits | None) -> Recipe:
    chosen = find_recipe(recipe)
    if chosen.one_setting and bits is None:
        raise CalibrationError(f"Recipe {recipe} is calibrated for one bit setting: give bits=(weight, activation).")
    if not chosen.one_setting and bits is not None:
        raise CalibrationError(f"Recipe {recipe} serves any bits: leave out bits=, and give them to quantize().")
    return chosen


def _initialisation_operation(graph: Graph, layer: Layer, piece: LayerCalibration, bits: Bits) -> QuantizedOperation:
    """How the published code runs a layer while later ones are calibrated: quantized, but not yet reparameterized."""
    quantizers = [next(iter(by_bits.values())) for by_bits in piece.operands]
    if layer.is_matmul:
        return QuantizedMatmul(*quantizers)
    (quantizer,) = quantizers
    weight = graph.weight(layer)
    fitted = fit_weight(weight, bits[0])
    prepared = PreparedWeight(fitted(weight), graph.bias(layer), fitted)
    if isinstance(quantizer, ReparameterizedQuantizer):
        quantizer = quantizer.per_channel
    return QuantizedLayer(prepared, quantizer, convolution_arguments(graph, layer))


def prepare_weight(calibration: Calibration, layer: Layer, bits: Bits) -> PreparedWeight:
    """Return the layer's weight at these bits, reparameterized if its input is; made once and cached.

    Args:
        calibration: The fitted activation quantizers.
        layer: A layer with a weight.
        bits: (weight bits, activation bits).
    """
    (quantizer,) = calibration.quantizers(layer, bits)
    reparameterized = isinstance(quantizer, ReparameterizedQuantizer)
    key = (layer.name, bits[0], bits[1] if reparameterized else None)

    def make() -> PreparedWeight:
        weight, bias = calibration.graph.weight(layer), calibration.graph.bias(layer)
        if reparameterized:
            weight, bias = fold(weight, bias, quantizer)
        fitted = None
        if bits[0] != FULL_PRECISION:
            fitted = fit_weight(weight, bits[0])
            weight = fitted(weight)
        return PreparedWeight(weight, bias, fitted)

    return calibration._prepared.get(key, make)


def layer_operation(calibration: Calibration, layer: Layer, bits: Bits) -> QuantizedOperation | None:
    """Return what to run instead of the layer at these bits, None where all its operands stay in full precision."""
    if bits == (FULL_PRECISION, FULL_PRECISION):
        return None
    quantizers = calibration.quantizers(layer, bits)
    if layer.is_matmul:
        return QuantizedMatmul(*quantizers)
    with torch.no_grad():
        prepared = prepare_weight(calibration, layer, bits)
    return QuantizedLayer(prepared, quantizers[0], convolution_arguments(calibration.graph, layer))
