"""Quantization sensitivity: the harm of quantizing one layer alone (METHOD.md, "Quantization sensitivity Λ")."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.bits import BIT_WIDTHS, FULL_PRECISION, PATCH_EMBED_INPUT_BITS, Bits
from mixqvit.evaluation import kl_divergence
from mixqvit.layers import Layer
from mixqvit.quantization.calibration import Calibration, layer_operation

__all__ = ["OPERANDS", "SensitivityCell", "cell_bits", "sensitivity_steps"]

OPERANDS = ("both", "weights", "activations")
"""Which operands of a layer a sweep quantizes."""


@dataclass(frozen=True)
class SensitivityCell:
    """One measured cell of a sweep.

    Attributes:
        layer: Name of the layer that was quantized alone.
        operands: Which of its operands were, one of `OPERANDS`.
        bits: The swept bit-width.
        harm: Λ: KL(full precision ‖ quantized) of the class probabilities, mean per image, in nats.
    """

    layer: str
    operands: str
    bits: int
    harm: float


def cell_bits(layer: Layer, operands: str, bits: int) -> Bits | None:
    """Return the layer's (weight bits, activation bits) in a sweep, None where the sweep leaves the layer alone.

    Both operands share the bit-width, except that the input of the patch embedding keeps 8 bits as it does in every
    allocation. With the weights alone quantized, a post-LayerNorm input is not reparameterized and neither is W.
    """
    if operands == "both":
        return (bits, PATCH_EMBED_INPUT_BITS if layer.kind == "patch_embed" else bits)
    if operands == "weights":
        return None if layer.is_matmul else (bits, FULL_PRECISION)
    return (bits, bits) if layer.is_matmul else (FULL_PRECISION, bits)


def sensitivity_steps(
    calibration: Calibration,
    pixels: Tensor,
    operands: str = "both",
    bit_widths: Sequence[int] = BIT_WIDTHS,
    finished: Collection[tuple[str, int]] = (),
) -> Iterator[SensitivityCell]:
    """Measure the sensitivity of every layer at every bit-width, against full precision.

    The network runs once up to each layer; every cell of the layer then runs only from there on.

    Args:
        calibration: Fitted quantizers.
        pixels: Calibration images `[N, C, H, W]`; one batch, whose intermediate values are held in memory.
        operands: Which operands to quantize, one of `OPERANDS`.
        bit_widths: Bit-widths to sweep.
        finished: (layer, bits) that are known already and are not measured again.

    Yields:
        Each cell as soon as it is measured, in network order.

    Raises:
        CalibrationError: The calibration does not serve these bits.
        ImageError: The images do not fit the model.
    """
    graph = calibration.graph
    todo = {
        layer.node: [bits for bits in bit_widths if (layer.name, bits) not in finished]
        for layer in graph.layers
        if cell_bits(layer, operands, bit_widths[0]) is not None
    }
    stops = [node for node, bits in todo.items() if bits]
    if not stops:
        return
    layers = {layer.node: layer for layer in graph.layers}
    with torch.no_grad():
        reference = graph(pixels)
        for node, values in graph.walk(pixels, stops):
            layer = layers[node]
            for bits in todo[node]:
                operation = layer_operation(calibration, layer, cell_bits(layer, operands, bits))
                logits = graph.resume(values, node, {node: operation})
                harm = float(kl_divergence(reference, logits).mean())
                yield SensitivityCell(layer.name, operands, bits, harm)
