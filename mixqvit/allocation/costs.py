"""What an allocation costs: model size in bytes, BitOps, average bits (METHOD.md, "Quantized layers").

The size is that of the packed file (`mixqvit.packing`), to the byte: a constant and a sum over layers of what each
one's bits take. So it is known before anything is calibrated, and can be a ceiling of the allocation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixqvit.errors import CalibrationError
from mixqvit.network.bits import FULL_PRECISION, PATCH_EMBED_INPUT_BITS, Bits
from mixqvit.network.layers import Layer

__all__ = [
    "OPERAND_BYTES",
    "Cost",
    "Storage",
    "activation_parameter_bytes",
    "bitops",
    "channel_count",
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
_REPARAMETERIZED = 8  # bytes of one input channel: float32 scale and zero point, from which ratio and shift follow

# Bytes per channel of an operand whose channels have parameters, beside the numbers of its per-tensor quantizer.
_CHANNEL_BYTES = {
    "min-max": 0,
    "fq-vit": 1,  # the exponent of a power-of-two factor
    "ptq4vit": 0,
    "repq-vit": _REPARAMETERIZED,
    "adalog": _REPARAMETERIZED,
    "mix-qvit": _REPARAMETERIZED,
    "lsq": 0,
    "ofq": 0,
}


@dataclass(frozen=True)
class Storage:
    """What the size of a model's file depends on beside its layers and their bits.

    Attributes:
        recipe: Quantization recipe: it says how many parameters the activation quantizers have.
        full_precision_bytes: Parameters in float32 that are never quantized: biases, norms, embeddings.
        container_bytes: The file's header and table of bits; they have the same size whatever the bits are.
        full_precision_macs: Multiply-accumulates for one image of operations with weights that are no layers.
    """

    recipe: str
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
    return 0 if weight_bits == FULL_PRECISION else -(-layer.parameters * weight_bits // 8)


def full_precision_weight_bytes(layer: Layer, weight_bits: int) -> int:
    """Bytes of the layer's weight where it is not quantized."""
    return _FLOAT32 * layer.parameters if weight_bits == FULL_PRECISION else 0


def activation_parameter_bytes(layer: Layer, operand: int, recipe: str) -> int:
    """Bytes of the parameters of one quantized activation operand.

    Args:
        layer: The layer.
        operand: 0 for the input of a layer with a weight; 0 or 1 for the factors of an attention product.
        recipe: Quantization recipe.
    """
    return OPERAND_BYTES + _channel_bytes(recipe) * channel_count(layer, operand, recipe)


def channel_count(layer: Layer, operand: int, recipe: str) -> int:
    """Number of channels of an activation operand that have parameters of their own.

    Those of a post-LayerNorm input; `mix-qvit` gives some also to the input of `proj`, which is the output of an
    attention product, and to the values of attention, channel by channel of every head.
    """
    if layer.is_matmul:
        has_heads = len(layer.output_shape) == 4
        is_value = layer.kind == "matmul2" and operand == 1
        return layer.output_shape[1] * layer.output_shape[3] if recipe == "mix-qvit" and is_value and has_heads else 0
    return layer.input_shape[-1] if _is_moved(layer, recipe) else 0


def _is_moved(layer: Layer, recipe: str) -> bool:
    """Whether the layer's input has parameters per channel."""
    return layer.is_reparameterized or (recipe == "mix-qvit" and layer.kind == "proj" and not layer.more_nodes)


def _channel_bytes(recipe: str) -> int:
    if recipe not in _CHANNEL_BYTES:
        raise CalibrationError(f"The size of recipe {recipe!r} is not known; use one of {', '.join(_CHANNEL_BYTES)}.")
    return _CHANNEL_BYTES[recipe]


def scale_bytes(layer: Layer, bits: Bits, recipe: str) -> int:
    """Bytes of the layer's scales and zero points, one per output channel, and of its activation quantizers.

    Reparameterization gives a layer without a bias one, in float32; it is counted here.
    """
    weight_bits, activation_bits = bits
    if layer.is_matmul:
        return sum(
            activation_parameter_bytes(layer, operand, recipe)
            for operand, width in enumerate(bits)
            if width != FULL_PRECISION
        )
    total = 0 if weight_bits == FULL_PRECISION else _SCALE_AND_ZERO_POINT * layer.channels
    if activation_bits != FULL_PRECISION:
        total += activation_parameter_bytes(layer, 0, recipe) * len(layer.nodes)
        folds = _is_moved(layer, recipe) and _channel_bytes(recipe) == _REPARAMETERIZED
        total += _FLOAT32 * layer.channels if folds and not layer.has_bias else 0
    return total


def layer_bytes(layer: Layer, bits: Bits, recipe: str) -> int:
    """Bytes of the packed file that depend on the layer's bits."""
    weight_bits = bits[0]
    return (
        code_bytes(layer, weight_bits)
        + full_precision_weight_bytes(layer, weight_bits)
        + scale_bytes(layer, bits, recipe)
    )


def bitops(layer: Layer, bits: Bits) -> int:
    """BitOps of the layer for one image."""
    return layer.macs * bits[0] * bits[1]


def uniform_bitops(layers: Sequence[Layer], average_bits: float) -> float:
    """BitOps of uniform `average_bits`, which may be fractional; the patch embedding's input keeps its 8 bits."""
    return sum(
        layer.macs * average_bits * (PATCH_EMBED_INPUT_BITS if layer.kind == "patch_embed" else average_bits)
        for layer in layers
    )


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
        scale_bytes=sum(scale_bytes(layer, bits[layer.name], storage.recipe) for layer in layers),
        full_precision_bytes=storage.full_precision_bytes + float_weights,
        container_bytes=storage.container_bytes,
        bitops=storage.full_precision_bitops + sum(bitops(layer, bits[layer.name]) for layer in layers),
        average_bits=sum(layer.parameters * bits[layer.name][0] for layer in layers) / parameters,
    )
