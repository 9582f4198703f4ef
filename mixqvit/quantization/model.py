"""The quantized model: quantization simulated in floating-point arithmetic at any bits per layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.bits import Bits, BitsPerLayer, resolve_bits
from mixqvit.graph import Graph
from mixqvit.quantization.calibration import Calibration, layer_operation

__all__ = ["QuantizedModel", "quantize"]


@dataclass(frozen=True)
class QuantizedModel:
    """A model whose layers run on quantized operands.

    Attributes:
        graph: The traced model underneath.
        bits: (weight bits, activation bits) per layer, 32 for full precision.
        replacements: The quantized operation of each layer by graph node.
    """

    graph: Graph
    bits: BitsPerLayer
    replacements: Mapping[str, Callable[..., Tensor]]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits `[B, classes]` of images `[B, C, H, W]`."""
        with torch.no_grad():
            return self.graph.run(pixels, self.replacements)[0]


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
    replacements = {}
    for layer in calibration.graph.layers:
        operation = layer_operation(calibration, layer, resolved[layer.name])
        if operation is not None:
            replacements[layer.node] = operation
    return QuantizedModel(calibration.graph, resolved, replacements)
