"""One row of the table of quantized layers, free of torch so that pages can show the table before it loads.

A weight is one row however often it runs: a module that is called again, and modules that share their weight, have one
choice of bits and one set of codes. Their inputs are quantized at each call by its own range, at the same bits.
"""

from dataclasses import dataclass

__all__ = ["KINDS", "Layer"]

KINDS = ("patch_embed", "qkv", "matmul1", "matmul2", "proj", "fc1", "fc2", "reduction", "head", "other")
"""Layer kinds in the order of METHOD.md, "Quantized layers"."""


@dataclass(frozen=True)
class Layer:
    """One weight, or one attention product, with quantized operands.

    Attributes:
        name: timm's module name; `<attention>.matmul1` and `.matmul2` for the attention products, counted on where the
            attention is called again.
        kind: One of `KINDS`.
        block: Index of the transformer block, None outside of blocks.
        parameters: Weight elements without the bias; 0 for attention products.
        channels: Output channels of the weight, each with its own scale; 0 for attention products.
        macs: Multiply-accumulate operations for one image, all calls together.
        input_shape: Shape of the (first) input of the first call for one image, leading dimension included.
        output_shape: Shape of the output of the first call for one image, leading dimension included.
        node: Name of the operation in the graph, the first where there are more.
        norm: Name of the LayerNorm node that feeds the input, None where no LayerNorm does or the layer is called at
            several places.
        has_bias: Whether the layer has a bias.
        more_nodes: Names of the later operations that run the same weight.
    """

    name: str
    kind: str
    block: int | None
    parameters: int
    channels: int
    macs: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    node: str
    norm: str | None
    has_bias: bool = True
    more_nodes: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of all operations in the graph that run this layer, in the order in which they do."""
        return (self.node, *self.more_nodes)

    @property
    def is_matmul(self) -> bool:
        """Whether this is an attention product: both operands are activations."""
        return self.kind in ("matmul1", "matmul2")

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of the activation operands: the factors of a product, otherwise the input of every call."""
        if self.is_matmul:
            return ("first", "second")
        return ("input", *(f"input {call}" for call in range(2, len(self.nodes) + 1)))

    def activation_bits(self, bits: tuple[int, int]) -> tuple[int, ...]:
        """Return the bit-width of each of `activations` at (weight bits, activation bits)."""
        return bits if self.is_matmul else bits[1:] * len(self.nodes)

    @property
    def is_reparameterized(self) -> bool:
        """Whether the input is post-LayerNorm and its outlier channels are folded into the weight (METHOD.md)."""
        return self.norm is not None and self.kind in ("qkv", "fc1", "reduction")
