"""One row of the table of quantized layers, free of torch so that pages can show the table before it loads."""

from dataclasses import dataclass

__all__ = ["KINDS", "Layer"]

KINDS = ("patch_embed", "qkv", "matmul1", "matmul2", "proj", "fc1", "fc2", "reduction", "head", "other")
"""Layer kinds in the order of METHOD.md, "Quantized layers"."""


@dataclass(frozen=True)
class Layer:
    """One operation with quantized operands.

    Attributes:
        name: timm's module name; `<attention>.matmul1` and `.matmul2` for the attention products.
        kind: One of `KINDS`.
        block: Index of the transformer block, None outside of blocks.
        parameters: Weight elements without the bias; 0 for attention products.
        channels: Output channels of the weight, each with its own scale; 0 for attention products.
        macs: Multiply-accumulate operations for one image.
        input_shape: Shape of the (first) input for one image, leading dimension included.
        output_shape: Shape of the output for one image, leading dimension included.
        node: Name of the operation in the graph.
        norm: Name of the LayerNorm node that feeds the input, None where no LayerNorm does.
        has_bias: Whether the layer has a bias.
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

    @property
    def is_matmul(self) -> bool:
        """Whether this is an attention product: both operands are activations."""
        return self.kind in ("matmul1", "matmul2")

    @property
    def is_reparameterized(self) -> bool:
        """Whether the input is post-LayerNorm and its outlier channels are folded into the weight (METHOD.md)."""
        return self.norm is not None and self.kind in ("qkv", "fc1", "reduction")
