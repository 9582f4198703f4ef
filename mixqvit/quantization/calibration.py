"""Calibration: quantizers fitted to a few images, once, for whatever bits are asked for later."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixqvit.errors import CalibrationError
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, Bits, kept_input_bits
from mixqvit.network.devices import moved, named_out_of_memory
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.network.operations import convolution_arguments
from mixqvit.quantization.calls import layer_operands
from mixqvit.quantization.fisher import Fisher, fisher_diagonals
from mixqvit.quantization.operands import operands_of
from mixqvit.quantization.operations import (
    PreparedWeight,
    QuantizedLayer,
    QuantizedMatmul,
    QuantizedOperation,
)
from mixqvit.quantization.quantizers.base import OperandQuantizers, Quantizer
from mixqvit.quantization.recipes import Recipe, find_recipe

__all__ = ["Calibration", "LayerCalibration", "calibrate", "calibrate_steps", "layer_operations", "prepare_weight"]

PREPARED_WEIGHT_BYTES = 256 * 2**20
"""Bytes of prepared weights that one calibration keeps; the least recently used are dropped beyond that."""


@dataclass(frozen=True)
class LayerCalibration:
    """The fitted activation quantizers of one layer.

    Attributes:
        layer: Name of the layer.
        operands: For each of `Layer.activations` the quantizers by bit-width.
        token_weights: For error compensation, how much an error counts at each token of an image's output; None
            where the recipe does not know.
    """

    layer: str
    operands: tuple[OperandQuantizers, ...]
    token_weights: Tensor | None = None


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
        pixels: The calibration images `[N, C, H, W]`, for error compensation.
        bits: The only (weight bits, activation bits) it serves; None if it serves any.
    """

    graph: Graph
    recipe: str
    layers: Mapping[str, LayerCalibration]
    pixels: Tensor
    bits: Bits | None = None
    _prepared: _PreparedWeights = field(
        default_factory=lambda: _PreparedWeights(PREPARED_WEIGHT_BYTES), repr=False, compare=False
    )

    def quantizers(self, layer: Layer, bits: Bits) -> tuple[Quantizer | None, ...]:
        """Return the quantizers of `Layer.activations` at these bits, None where they stay in full precision.

        Raises:
            CalibrationError: The recipe was calibrated for other bits.
        """
        operands = self.layers[layer.name].operands
        if self.bits is not None and not layer.is_matmul and bits[0] not in (self.bits[0], FULL_PRECISION):
            raise self._wrong_bits(layer, bits)
        chosen: list[Quantizer | None] = []
        for quantizers, width in zip(operands, layer.activation_bits(bits), strict=True):
            if width == FULL_PRECISION:
                chosen.append(None)
            elif width in quantizers:
                chosen.append(quantizers[width])
            else:
                raise self._wrong_bits(layer, bits)
        return tuple(chosen)

    def on(self, device: torch.device) -> "Calibration":
        """Return the same calibration with graph and quantizers on a device: itself where they are there already."""
        graph = self.graph.on(device)
        if graph is self.graph:
            return self
        return Calibration(graph, self.recipe, moved(self.layers, device), self.pixels, self.bits)

    def _wrong_bits(self, layer: Layer, bits: Bits) -> CalibrationError:
        return CalibrationError(
            f"Recipe {self.recipe} was calibrated for weight and activation bits {self.bits} and cannot run "
            f"{layer.name} at {bits}. Calibrate again with these bits, or with recipe mix-qvit for any."
        )


def calibrate(
    graph: Graph,
    pixels: Tensor,
    recipe: str = "mix-qvit",
    bits: Bits | None = None,
    bit_widths: Sequence[int] = BIT_WIDTHS,
) -> Calibration:
    """Fit the activation quantizers of all layers to calibration images.

    Args:
        graph: The traced model.
        pixels: Calibration images `[N, C, H, W]`; the papers use 32.
        recipe: One of `RECIPES`.
        bits: (weight bits, activation bits) for `repq-vit`, which is calibrated for one setting, else None.
        bit_widths: Bit-widths to calibrate for, where any can be asked for later; the patch embedding's input always
            gets 8 too.

    Returns:
        The calibration; give it to `quantize` with any bits it serves.

    Raises:
        CalibrationError: Unknown recipe, bits missing or not wanted, no images, or values that are not finite.
        ImageError: The images do not fit the model.
    """
    layers = {piece.layer: piece for piece in calibrate_steps(graph, pixels, recipe, bits, bit_widths)}
    return Calibration(graph, recipe, layers, pixels, bits)


def calibrate_steps(
    graph: Graph,
    pixels: Tensor,
    recipe: str = "mix-qvit",
    bits: Bits | None = None,
    bit_widths: Sequence[int] = BIT_WIDTHS,
    finished: Mapping[str, LayerCalibration] | None = None,
) -> Iterator[LayerCalibration]:
    """Do the work of `calibrate` layer by layer, in network order; layers in `finished` are not fitted again.

    Yields:
        Each newly calibrated layer as soon as it is done, on the device of the graph.

    Raises:
        CalibrationError: As in `calibrate`.
        ImageError: The images do not fit the model.
        MixQViTError: Memory does not suffice for all images at once, which ranges are taken from.
    """
    chosen = _checked_recipe(recipe, bits)
    if not len(pixels):
        raise CalibrationError("Calibration needs at least one image; 32 are usual.")
    if not torch.isfinite(pixels).all():
        raise CalibrationError("The calibration images contain values that are not finite (NaN or infinity).")
    pieces = _calibrated(graph, pixels, chosen, bits, bit_widths, finished or {})
    while True:
        with named_out_of_memory(graph.device, f"calibration, which needs all {len(pixels)} images at once"):
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


def _calibrated(
    graph: Graph,
    pixels: Tensor,
    recipe: Recipe,
    bits: Bits | None,
    bit_widths: Sequence[int],
    finished: Mapping[str, LayerCalibration],
) -> Iterator[LayerCalibration]:
    operations: dict[str, QuantizedOperation] = {}
    fisher: Mapping[str, Fisher] = {}
    for layer, operands in _paused(graph, pixels, operations):
        piece = finished.get(layer.name)
        if piece is None:
            _check_finite(layer, operands)
            if recipe.needs_fisher and not fisher:
                fisher = fisher_diagonals(graph, pixels)
            with torch.no_grad():
                piece = _fitted(graph, layer, operands, len(pixels), recipe, bits, bit_widths, fisher.get(layer.name))
        if recipe.one_setting:
            # Of a layer that is called several times the earlier calls have run already, in full precision.
            operations |= _initialisation_operations(graph, layer, piece, recipe, bits)
        if layer.name not in finished:
            yield piece


def _paused(
    graph: Graph, pixels: Tensor, operations: Mapping[str, QuantizedOperation]
) -> Iterator[tuple[Layer, tuple[Tensor, ...]]]:
    """Walk without gradients, and only while walking: a generator must not leave them off for its caller."""
    walk = layer_operands(graph, pixels, replace=operations)
    while True:
        with torch.no_grad():
            stop = next(walk, None)
        if stop is None:
            return
        yield stop


def _check_finite(layer: Layer, operands: tuple[Tensor, ...]) -> None:
    for operand in operands:
        # Infinities and NaN show in the extremes, which are faster to find.
        if not torch.stack(torch.aminmax(operand)).isfinite().all():
            raise CalibrationError(
                f"An input of layer {layer.name} is not finite (NaN or infinity) on the calibration images. "
                "Check the checkpoint and the images."
            )


def _fitted(
    graph: Graph,
    layer: Layer,
    values: tuple[Tensor, ...],
    images: int,
    recipe: Recipe,
    bits: Bits | None,
    bit_widths: Sequence[int],
    fisher: Fisher | None,
) -> LayerCalibration:
    operands = operands_of(graph, layer, values, images, fisher)
    if recipe.one_setting:
        return LayerCalibration(layer.name, recipe.one_setting(operands, bits))
    kept = kept_input_bits(layer)
    widths = bit_widths if kept is None else sorted({*bit_widths, kept})
    quantizers = tuple(recipe.activations[operand.role](operand, widths) for operand in operands)
    return LayerCalibration(layer.name, quantizers, fisher.tokens if fisher else None)


def _checked_recipe(recipe: str, bits: Bits | None) -> Recipe:
    chosen = find_recipe(recipe)
    if chosen.one_setting and bits is None:
        raise CalibrationError(f"Recipe {recipe} is calibrated for one bit setting: give bits=(weight, activation).")
    if not chosen.one_setting and bits is not None:
        raise CalibrationError(f"Recipe {recipe} serves any bits: leave out bits=, and give them to quantize().")
    return chosen


def _initialisation_operations(
    graph: Graph, layer: Layer, piece: LayerCalibration, recipe: Recipe, bits: Bits
) -> dict[str, QuantizedOperation]:
    """How the published code runs a layer while later ones are calibrated: quantized, but not yet reparameterized."""
    quantizers = [next(iter(by_bits.values())) for by_bits in piece.operands]
    if layer.is_matmul:
        return {layer.node: QuantizedMatmul(*quantizers)}
    weight = graph.weight(layer)
    fitted = recipe.fit_weight(weight, bits[0])
    prepared = PreparedWeight(fitted(weight), graph.bias(layer), fitted)
    convolution = convolution_arguments(graph, layer)
    return {
        node: QuantizedLayer(prepared, own.unmoved, convolution)
        for node, own in zip(layer.nodes, quantizers, strict=True)
    }


def prepare_weight(calibration: Calibration, layer: Layer, bits: Bits) -> PreparedWeight:
    """Return the layer's weight at these bits, reparameterized if its input is; made once and cached.

    Args:
        calibration: The fitted activation quantizers.
        layer: A layer with a weight.
        bits: (weight bits, activation bits).
    """
    quantizer, *_ = calibration.quantizers(layer, bits)
    moves_input = quantizer is not None and quantizer.moves_input
    key = (layer.name, bits[0], bits[1] if moves_input else None)

    def make() -> PreparedWeight:
        weight, bias = calibration.graph.weight(layer), calibration.graph.bias(layer)
        if moves_input:
            weight, bias = quantizer.fold(weight, bias)
        fitted = None
        if bits[0] != FULL_PRECISION:
            fitted = find_recipe(calibration.recipe).fit_weight(weight, bits[0])
            weight = fitted(weight)
        return PreparedWeight(weight, bias, fitted)

    return calibration._prepared.get(key, make)


def layer_operations(calibration: Calibration, layer: Layer, bits: Bits) -> dict[str, QuantizedOperation]:
    """Return what to run instead of the layer at these bits by node; nothing where all operands stay as they are."""
    if bits == (FULL_PRECISION, FULL_PRECISION):
        return {}
    quantizers = calibration.quantizers(layer, bits)
    if layer.is_matmul:
        return {layer.node: QuantizedMatmul(*quantizers)}
    with torch.no_grad():
        prepared = prepare_weight(calibration, layer, bits)
    convolution = convolution_arguments(calibration.graph, layer)
    return {n: QuantizedLayer(prepared, q, convolution) for n, q in zip(layer.nodes, quantizers, strict=True)}
