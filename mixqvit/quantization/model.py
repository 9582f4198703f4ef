"""The quantized model: quantization simulated in floating-point arithmetic at any bits per layer."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.bits import Bits, BitsPerLayer, resolve_bits
from mixqvit.graph import Graph
from mixqvit.quantization.calibration import Calibration, layer_operation
from mixqvit.quantization.operations import QuantizedOperation

__all__ = ["QuantizedModel", "quantize"]


@dataclass(frozen=True)
class QuantizedModel:
    """A model whose layers run on quantized operands.

    Attributes:
        graph: The traced model underneath.
        bits: (weight bits, activation bits) per layer, 32 for full precision.
        operations: What runs instead of each quantized layer, by graph node.
    """

    graph: Graph
    bits: BitsPerLayer
    operations: Mapping[str, QuantizedOperation]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits `[B, classes]` of images `[B, C, H, W]`."""
        with torch.no_grad():
            return self.graph.run(pixels, self.operations)[0]


def quantize(calibration: Calibration, bits: int | Mapping[str, int | Bits]) -> QuantizedModel:
    """Return the model at the given bits.

    Args:
        calibration: What `calibrate` returned.
        bits: One bit-width for all layers (2 to 8; the patch embedding's input then keeps 8), or a mapping from
            layer name to (weight bits, activation bits) or one number for both; layers left out stay in full
            precision, as does an operand with 32.

    Raises:
        BitWidthError: A bit-width or layer name is not possible.
        CalibrationError: The calibration serves other bits only.
    """
    resolved = resolve_bits(calibration.graph.layers, bits)
    operations = {}
    for layer in calibration.graph.layers:
        operation = layer_operation(calibration, layer, resolved[layer.name])
        if operation is not None:
            operations[layer.node] = operation
    return QuantizedModel(calibration.graph, resolved, operations)
