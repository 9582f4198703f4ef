"""What layers compute of their operands, which quantized ones run too, and the check that the model computes it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mixqvit.errors import ModelError
from mixqvit.network.graph import Graph, Operation
from mixqvit.network.layers import Layer

__all__ = ["check_operations", "convolution_arguments", "is_close", "linear_map"]

_TOLERANCE = 1e-3  # fused and plain attention round differently, so exact equality is not asked for


def linear_map(values: Tensor, weight: Tensor, bias: Tensor | None, convolution: Mapping[str, Any] | None) -> Tensor:
    """Return what a Linear or a convolution makes of its input.

    Args:
        values: Its input.
        weight: `[out, in]` or `[out, in, kh, kw]`.
        bias: `[out]`, or None.
        convolution: From `convolution_arguments`.
    """
    if convolution is None:
        return functional.linear(values, weight, bias)
    return functional.conv2d(values, weight, bias, **convolution)


def convolution_arguments(graph: Graph, layer: Layer) -> Mapping[str, Any] | None:
    """Return stride, padding, dilation and groups of a layer that is a convolution, None for a Linear."""
    module = graph.operation(layer)
    if graph.weight(layer).dim() == 2:
        return None
    return {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}


def is_close(expected: Tensor, found: Tensor) -> bool:
    """Return whether two results are the same but for rounding, relative to the largest of the expected values."""
    tolerance = _TOLERANCE * float(expected.abs().max())
    return expected.shape == found.shape and torch.allclose(expected, found, rtol=_TOLERANCE, atol=tolerance)


def check_operations(graph: Graph, pixels: Tensor, expected: Tensor) -> None:
    """Make sure that the operations that can be quantized compute what the model computes.

    Args:
        graph: The traced model.
        pixels: Images `[N, C, H, W]`.
        expected: The model's own logits `[N, classes]`.

    Raises:
        ModelError: They do not; the message names the first layer that differs from its own module, if one does.
    """
    found, _ = graph.run(pixels, {node: _operation(graph, layer) for node, layer in graph.layer_of().items()})
    if is_close(expected, found):
        return
    wrong = _first_difference(graph, pixels)
    if wrong is not None:
        kind = "matrix product" if wrong.is_matmul else type(graph.operation(wrong)).__name__
        raise ModelError(
            f"The layer {wrong.name} ({kind}) does not compute what can be quantized: with its weight and input in "
            "full precision its output is another one. Only plain linear maps and convolutions can be quantized."
        )
    raise ModelError(f"On {len(pixels)} image(s) the graph of the model does not compute what the model computes.")


def _operation(graph: Graph, layer: Layer) -> Operation:
    if layer.is_matmul:
        return torch.matmul
    weight, bias, convolution = graph.weight(layer), graph.bias(layer), convolution_arguments(graph, layer)
    return lambda values: linear_map(values, weight, bias, convolution)


def _first_difference(graph: Graph, pixels: Tensor) -> Layer | None:
    layers = graph.layer_of()
    nodes = {node.name: node for node in graph.nodes}
    for name, values in graph.walk(pixels, list(layers)):
        layer = layers[name]
        operands = graph.operands(layer, values, name)
        if not is_close(graph.compute(nodes[name], values), _operation(graph, layer)(*operands)):
            return layer
    return None
