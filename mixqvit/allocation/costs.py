"""What an allocation costs: model size in bytes, BitOps, average bits (METHOD.md, "Quantized layers").

The size is that of the packed file (`mixqvit.packing`), to the byte: a constant and a sum over layers of what each
one's bits take. So it is known before anything is calibrated, and can be a ceiling of the allocation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from mixqvit.network.bits import FULL_PRECISION, NUMBER_FORMATS, Bits, input_bits, kept_input_bits
from mixqvit.network.layers import Layer
from mixqvit.quantization.roles import ChannelParameters, operand_channels, roles

__all__ = [
    "OPERAND_BYTES",
    "Cost",
    "Storage",
    "activation_parameter_bytes",
    "bitops",
    "bits_of_uniform_bitops",
    "code_bytes",
    "cost",
    "full_precision_weight_bytes",
    "layer_bytes",
    "scale_bytes",
    "uniform_bitops",
]

OPERAND_BYTES = 16
"""Bytes kept for the numbers of any per-tensor activation quantizer: float32 for tensors, float64 for settings."""

_FLOAT32 = 4
_SCALE_AND_ZERO_POINT = 5  # bytes of one output channel: a float32 scale and a one-byte zero point


@dataclass(frozen=True)
class Storage:
    """What the size of a model's file depends on beside its layers and their bits.

    Attributes:
        channel_parameters: What the quantizers of activation operands store for every channel, by role (one of `ROLES`)
            of those whose channels have parameters of their own: `Recipe.stored`.
        full_precision_bytes: Parameters in float32 that are never quantized: biases, norms, embeddings.
        container_bytes: The file's header and table of bits; they have the same size whatever the bits are.
        full_precision_macs: Multiply-accumulates for one image of operations with weights that are no layers.
    """

    channel_parameters: Mapping[str, ChannelParameters]
    full_precision_bytes: int
    container_bytes: int
    full_precision_macs: int = 0

    @property
    def full_precision_bitops(self) -> int:
        """BitOps for one image that are there whatever the bits are."""
        return self.full_precision_macs * FULL_PRECISION * FULL_PRECISION


@dataclass(frozen=True)
class Cost:
    """The cost of one allocation; the bytes are those of the packed file.

    Attributes:
        weight_bytes: Codes of the quantized weights, packed at their true width.
        scale_bytes: Scales and zero points of weights, parameters of activation quantizers, and biases that
            reparameterization creates.
        full_precision_bytes: What is kept in float32: biases, norms, embeddings, weights that are not quantized.
        container_bytes: The file's header and table of bits.
        bitops: Sum over layers of MACs times weight bits times activation bits, for one image; what is no layer counts
            with 32 bits.
        average_bits: Weight bits per quantized weight, averaged over weights.
    """

    weight_bytes: int
    scale_bytes: int
    full_precision_bytes: int
    container_bytes: int
    bitops: int
    average_bits: float

    @property
    def size_bytes(self) -> int:
        """Model size in bytes: that of the packed file."""
        return self.weight_bytes + self.scale_bytes + self.full_precision_bytes + self.container_bytes


def code_bytes(layer: Layer, weight_bits: int) -> int:
    """Bytes of the layer's weight codes, packed at their true width up to a full byte; none in full precision."""
    stored = NUMBER_FORMATS[weight_bits]
    return -(-layer.parameters * stored.bits // 8) if stored.is_quantized else 0


def full_precision_weight_bytes(layer: Layer, weight_bits: int) -> int:
    """Bytes of the layer's weight where it is not quantized."""
    stored = NUMBER_FORMATS[weight_bits]
    return 0 if stored.is_quantized else layer.parameters * stored.bits // 8


def activation_parameter_bytes(layer: Layer, place: int, storage: Storage) -> int:
    """Bytes of the parameters of one quantized activation operand.

    Args:
        layer: The layer.
        place: 0 for the input of a layer with a weight; 0 or 1 for the factors of an attention product.
        storage: What its quantizer stores.
    """
    stored = storage.channel_parameters.get(roles(layer)[place])
    return OPERAND_BYTES + (0 if stored is None else stored.bytes * operand_channels(layer, place))


def scale_bytes(layer: Layer, bits: Bits, storage: Storage) -> int:
    """Bytes of the layer's scales and zero points, one per output channel, and of its activation quantizers.

    A moved input gives a layer without a bias one, in float32; it is counted here.
    """
    is_quantized = [NUMBER_FORMATS[width].is_quantized for width in bits]
    if layer.is_matmul:
        return sum(activation_parameter_bytes(layer, place, storage) for place, has in enumerate(is_quantized) if has)
    total = _SCALE_AND_ZERO_POINT * layer.channels if is_quantized[0] else 0
    if is_quantized[1]:
        total += activation_parameter_bytes(layer, 0, storage) * len(layer.nodes)
        stored = storage.channel_parameters.get(roles(layer)[0])
        total += _FLOAT32 * layer.channels if stored is not None and stored.moves_input and not layer.has_bias else 0
    return total


def layer_bytes(layer: Layer, bits: Bits, storage: Storage) -> int:
    """Bytes of the packed file that depend on the layer's bits."""
    weight_bits = bits[0]
    return (
        code_bytes(layer, weight_bits)
        + full_precision_weight_bytes(layer, weight_bits)
        + scale_bytes(layer, bits, storage)
    )


def bitops(layer: Layer, bits: Bits) -> int:
    """BitOps of the layer for one image."""
    return layer.macs * NUMBER_FORMATS[bits[0]].bits * NUMBER_FORMATS[bits[1]].bits


def uniform_bitops(layers: Sequence[Layer], average_bits: float) -> float:
    """BitOps of uniform `average_bits`, which may be fractional; the patch embedding's input keeps its 8 bits."""
    return sum(layer.macs * average_bits * input_bits(layer, average_bits) for layer in layers)


def bits_of_uniform_bitops(layers: Sequence[Layer], most_bitops: float) -> float:
    """Return the uniform bits, which may be fractional, that take so many BitOps."""
    # Where the input keeps its bits, BitOps grow with the bits, elsewhere with their square.
    linear = sum(layer.macs * (kept_input_bits(layer) or 0) for layer in layers)
    square = sum(layer.macs for layer in layers if kept_input_bits(layer) is None)
    if square == 0:
        return most_bitops / linear if linear else 0.0
    return (sqrt(linear**2 + 4.0 * square * most_bitops) - linear) / (2.0 * square)


def cost(layers: Sequence[Layer], bits: Mapping[str, Bits], storage: Storage) -> Cost:
    """Return what an allocation costs.

    Args:
        layers: The table of layers.
        bits: (weight bits, activation bits) for every layer.
        storage: What the size depends on beside the layers.
    """
    parameters = sum(layer.parameters for layer in layers)
    float_weights = sum(full_precision_weight_bytes(layer, bits[layer.name][0]) for layer in layers)
    return Cost(
        weight_bytes=sum(code_bytes(layer, bits[layer.name][0]) for layer in layers),
        scale_bytes=sum(scale_bytes(layer, bits[layer.name], storage) for layer in layers),
        full_precision_bytes=storage.full_precision_bytes + float_weights,
        container_bytes=storage.container_bytes,
        bitops=storage.full_precision_bitops + sum(bitops(layer, bits[layer.name]) for layer in layers),
        average_bits=sum(layer.parameters * bits[layer.name][0] for layer in layers) / parameters,
    )
