"""What runs instead of a layer: its operation on quantized operands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixqvit.network.operations import linear_map
from mixqvit.quantization.quantizers.base import Quantizer
from mixqvit.quantization.quantizers.uniform import UniformQuantizer

__all__ = ["PreparedWeight", "QuantizedLayer", "QuantizedMatmul", "QuantizedOperation"]


@dataclass(frozen=True)
class PreparedWeight:
    """A weight ready to run: reparameterized where the input is, quantized, with the bias that goes with it.

    Attributes:
        weight: The values that the codes stand for, `[out, in]` or `[out, in, kh, kw]`.
        bias: `[out]`, or None.
        quantizer: Scale and zero point per output channel, broadcastable to the weight; None in full precision.
            The integer code of a value is value / scale + zero_point.
    """

    weight: Tensor
    bias: Tensor | None
    quantizer: UniformQuantizer | None

    @property
    def bytes(self) -> int:
        """Bytes that the tensors take in memory."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True)
class QuantizedLayer:
    """A Linear or convolution on a quantized input with a prepared weight.

    Attributes:
        prepared: Weight and bias.
        input_quantizer: Quantizer of the input, None where it stays in full precision.
        convolution: Stride, padding, dilation and groups; None for a Linear.
    """

    prepared: PreparedWeight
    input_quantizer: Quantizer | None
    convolution: Mapping[str, Any] | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Return the layer's output for its full-precision input."""
        if self.input_quantizer is not None:
            values = self.input_quantizer(values)
        return linear_map(values, self.prepared.weight, self.prepared.bias, self.convolution)


@dataclass(frozen=True)
class QuantizedMatmul:
    """An attention product of two quantized operands, each None where it stays in full precision."""

    first: Quantizer | None
    second: Quantizer | None

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the product of the two full-precision factors after quantization."""
        if self.first is not None:
            left = self.first(left)
        if self.second is not None:
            right = self.second(right)
        return torch.matmul(left, right)


QuantizedOperation = QuantizedLayer | QuantizedMatmul
