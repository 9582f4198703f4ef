"""What an activation operand is, and what its quantizer stores for every channel; free of torch, as pages must be."""

from collections.abc import Mapping
from dataclasses import dataclass

from mixqvit.network.layers import Layer

__all__ = ["ROLES", "ChannelParameters", "operand_channels", "roles"]

ROLES: Mapping[str, str] = {
    "image": "image",
    "query": "queries Q",
    "key": "keys K",
    "probabilities": "attention A, after softmax",
    "value": "values V",
    "post_layer_norm": "input, after LayerNorm",
    "attention_output": "input, the output of attention",
    "post_gelu": "input, after GELU",
    "input": "input",
}
"""What people call each role of an operand, for each of which a recipe chooses a quantizer.

`input` is any other input of a Linear or convolution.
"""

_MATMUL_ROLES = {"matmul1": ("query", "key"), "matmul2": ("probabilities", "value")}
_INPUT_ROLES = {"patch_embed": "image", "proj": "attention_output", "fc2": "post_gelu"}


@dataclass(frozen=True)
class ChannelParameters:
    """What a quantizer stores for every channel of its operand, beside the numbers that serve the whole tensor.

    Attributes:
        bytes: Bytes of one channel.
        moves_input: Whether the quantized input is a moved one, which weight and bias have to undo: a layer without a
            bias gets one.
    """

    bytes: int
    moves_input: bool = False


def roles(layer: Layer) -> tuple[str, ...]:
    """Return the role of each of `Layer.activations`."""
    if layer.is_matmul:
        return _MATMUL_ROLES[layer.kind]
    role = "post_layer_norm" if layer.is_reparameterized else _INPUT_ROLES.get(layer.kind, "input")
    # Channels may move into the weight, which can be done for one input of it only.
    if layer.more_nodes and role == "attention_output":
        role = "input"
    return (role,) * len(layer.nodes)


def operand_channels(layer: Layer, place: int) -> int:
    """Return how many channels an activation operand has that may have parameters of their own.

    Those of an attention product are counted over all heads; a product of other operands than `[B, heads, N, C]` has
    none.

    Args:
        layer: The layer.
        place: 0 for the input of a layer with a weight; 0 or 1 for the factors of an attention product.
    """
    if not layer.is_matmul:
        return layer.input_shape[-1]
    # The channels of V are those of the product; queries and keys share theirs.
    shape = layer.output_shape if roles(layer)[place] == "value" else layer.input_shape
    return shape[1] * shape[3] if len(shape) == 4 else 0
