"""What an allocation costs: model size in bytes, BitOps, average bits (METHOD.md, "Quantized layers")."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixqvit.bits import FULL_PRECISION, PATCH_EMBED_INPUT_BITS, Bits
from mixqvit.layers import Layer

__all__ = ["Cost", "bitops", "code_bytes", "cost", "scale_bytes", "uniform_bitops"]

_SCALE_AND_ZERO_POINT = 5  # bytes: a float32 scale and a one-byte zero point


@dataclass(frozen=True)
class Cost:
    """The cost of one allocation.

    Attributes:
        weight_bytes: Codes of the quantized weights; float32 for weights in full precision.
        scale_bytes: Scales and zero points of weights and activations, and biases that reparameterization creates.
        full_precision_bytes: What is never quantized: biases, norms, embeddings.
        bitops: Sum over layers of MACs times weight bits times activation bits, for one image.
        average_bits: Weight bits per quantized weight, averaged over weights.
    """

    weight_bytes: int
    scale_bytes: int
    full_precision_bytes: int
    bitops: int
    average_bits: float

    @property
    def size_bytes(self) -> int:
        """Model size in bytes: codes, scales and what stays in full precision."""
        return self.weight_bytes + self.scale_bytes + self.full_precision_bytes


def code_bytes(layer: Layer, weight_bits: int) -> int:
    """Bytes of the layer's weight codes, packed at their true width."""
    return -(-layer.parameters * weight_bits // 8)


def scale_bytes(layer: Layer, bits: Bits) -> int:
    """Bytes of the layer's scales and zero points: one per output channel, one per activation operand.

    Reparameterization gives a layer without a bias one, in float32; it is counted here.
    """
    weight_bits, activation_bits = bits
    if layer.is_matmul:
        return _SCALE_AND_ZERO_POINT * sum(width != FULL_PRECISION for width in bits)
    channels = layer.channels if weight_bits != FULL_PRECISION else 0
    quantizes_input = activation_bits != FULL_PRECISION
    created_bias = 4 * layer.channels if quantizes_input and layer.is_reparameterized and not layer.has_bias else 0
    return _SCALE_AND_ZERO_POINT * (channels + quantizes_input) + created_bias


def bitops(layer: Layer, bits: Bits) -> int:
    """BitOps of the layer for one image."""
    return layer.macs * bits[0] * bits[1]


def uniform_bitops(layers: Sequence[Layer], average_bits: float) -> float:
    """BitOps of uniform `average_bits`, which may be fractional; the patch embedding's input keeps its 8 bits."""
    return sum(
        layer.macs * average_bits * (PATCH_EMBED_INPUT_BITS if layer.kind == "patch_embed" else average_bits)
        for layer in layers
    )


def cost(layers: Sequence[Layer], bits: Mapping[str, Bits], full_precision_parameters: int) -> Cost:
    """Return what an allocation costs.

    Args:
        layers: The table of layers.
        bits: (weight bits, activation bits) for every layer.
        full_precision_parameters: Parameter elements outside the quantized weights.
    """
    parameters = sum(layer.parameters for layer in layers)
    return Cost(
        weight_bytes=sum(code_bytes(layer, bits[layer.name][0]) for layer in layers),
        scale_bytes=sum(scale_bytes(layer, bits[layer.name]) for layer in layers),
        full_precision_bytes=4 * full_precision_parameters,
        bitops=sum(bitops(layer, bits[layer.name]) for layer in layers),
        average_bits=sum(layer.parameters * bits[layer.name][0] for layer in layers) / parameters,
    )
