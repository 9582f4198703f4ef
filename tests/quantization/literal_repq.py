"""The tests' oracle: RepQ-ViT (Li et al. 2023, arXiv 2212.08254, and the code published with it) spelled out.

Slow on purpose: one quantizer at a time, one channel at a time, one quantile at a time, whole tensors, in the floating
type of the model. Steps, in the order in which the published code takes them:

1. One pass over the calibration images. Each quantizer is fitted to the first tensor it sees, with everything before
   it, in its own layer too, quantized already.
2. Inputs of `qkv`, `fc1` and `reduction` were fitted per channel. Each LayerNorm before them and the layer after it
   are rewritten so that the mean scale and the mean zero point, left fractional, serve all channels.
3. A second pass over the same images fits the weight quantizers of the rewritten layers again, and nothing else.
"""

import copy
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, fx
from torch.nn import functional

from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer

PERCENTILES = (0.999, 0.9999, 0.99999)


@dataclass
class Uniform:
    """Fitted to the first tensor it sees; `axis` is the one that has a scale for each channel, None for one scale."""

    bits: int
    axis: int | None = None
    delta: Tensor | None = None
    zero_point: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        if self.delta is None:
            self._fit(values)
        return uniform(values, self.delta, self.zero_point, self.bits)

    def _fit(self, values: Tensor) -> None:
        if self.axis is None:
            self.delta, self.zero_point = search_uniform(values, self.bits)
            return
        fitted = [search_uniform(channel, self.bits) for channel in values.unbind(self.axis)]
        shape = [1] * values.dim()
        shape[self.axis] = -1
        self.delta = torch.stack([delta for delta, _ in fitted]).reshape(shape)
        self.zero_point = torch.stack([zero_point for _, zero_point in fitted]).reshape(shape)


@dataclass
class LogSqrt2:
    """Fitted to the first tensor it sees."""

    bits: int
    delta: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        if self.delta is None:
            self.delta = search_log_sqrt2(values, self.bits)
        return log_sqrt2(values, self.delta, self.bits)


def uniform(values: Tensor, delta: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    codes = (torch.round(values / delta) + zero_point).clamp(0, 2**bits - 1)
    return (codes - zero_point) * delta


def log_sqrt2(values: Tensor, delta: Tensor, bits: int) -> Tensor:
    exponents = torch.round(-1 * (values / delta).log2() * 2)
    codes = exponents.clamp(0, 2**bits - 1)
    is_odd = codes % 2
    powers = 2 ** (-torch.ceil(codes / 2)) * (is_odd * (sqrt(2) - 1) + 1) * delta
    return torch.where(exponents >= 2**bits, torch.zeros_like(powers), powers)


def search_uniform(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    best_error, best = None, None
    for percentile in PERCENTILES:
        upper = torch.quantile(values.reshape(-1), percentile)
        lower = torch.quantile(values.reshape(-1), 1.0 - percentile)
        delta = (upper - lower) / (2**bits - 1)
        zero_point = torch.round(-lower / delta)
        error = (values - uniform(values, delta, zero_point, bits)).abs().pow(2).mean()
        if best_error is None or error < best_error:
            best_error, best = error, (delta, zero_point)
    return best


def search_log_sqrt2(values: Tensor, bits: int) -> Tensor:
    best_error, best = None, None
    for percentile in PERCENTILES:
        delta = torch.quantile(values.reshape(-1), percentile)
        error = (values - log_sqrt2(values, delta, bits)).abs().pow(2).mean()
        if best_error is None or error < best_error:
            best_error, best = error, delta
    return best


class LiteralRepQ(fx.Interpreter):
    """The whole network, node by node, with quantizers in front of every layer's operands.

    Attributes:
        quantizers: By layer name and role: `weight_quantizer` and `input_quantizer`, or `quantizer_A` and
            `quantizer_B`. timm scales the queries before the attention product, the published code scales the
            product of a ViT after it: that changes the first delta by this factor and nothing else.
    """

    def __init__(self, graph: Graph, weight_bits: int, activation_bits: int, pixels: Tensor) -> None:
        super().__init__(copy.deepcopy(graph.module))
        self._layers = {layer.node: layer for layer in graph.layers}
        self.quantizers = {layer.name: _quantizers(layer, weight_bits, activation_bits) for layer in graph.layers}
        with torch.no_grad():
            self.run(pixels)
            for layer in graph.layers:
                if layer.is_reparameterized:
                    self._reparameterize(layer)
            self.run(pixels)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        with torch.no_grad():
            return self.run(pixels)

    def run_node(self, n: fx.Node):
        layer = self._layers.get(n.name)
        if layer is None:
            return super().run_node(n)
        quantizers = self.quantizers[layer.name]
        if layer.is_matmul:
            left, right = (self.env[argument] for argument in n.args)
            return quantizers["quantizer_A"](left) @ quantizers["quantizer_B"](right)
        module = self.module.get_submodule(layer.name)
        values = quantizers["input_quantizer"](self.env[n.args[0]])
        weight = quantizers["weight_quantizer"](module.weight)
        if layer.kind == "patch_embed":
            return functional.conv2d(values, weight, module.bias, module.stride, module.padding)
        return functional.linear(values, weight, module.bias)

    def _reparameterize(self, layer: Layer) -> None:
        quantizers = self.quantizers[layer.name]
        channels = quantizers["input_quantizer"]
        delta, zero_point = channels.delta.reshape(-1), channels.zero_point.reshape(-1)
        common_delta, common_zero_point = delta.mean(), zero_point.mean()
        ratio = delta / common_delta
        shift = -zero_point * delta / ratio + common_zero_point * common_delta

        norm = self.module.get_submodule(next(n.target for n in self.module.graph.nodes if n.name == layer.norm))
        norm.weight.data = norm.weight.data / ratio
        norm.bias.data = norm.bias.data / ratio - shift
        module = self.module.get_submodule(layer.name)
        module.weight.data = module.weight.data * ratio
        moved = module.weight.data @ shift
        module.bias = torch.nn.Parameter(moved if module.bias is None else module.bias.data + moved)

        quantizers["input_quantizer"] = Uniform(channels.bits, None, common_delta, common_zero_point)
        quantizers["weight_quantizer"] = Uniform(quantizers["weight_quantizer"].bits, 0)


def _quantizers(layer: Layer, weight_bits: int, activation_bits: int) -> dict[str, Uniform | LogSqrt2]:
    if layer.kind == "matmul2":
        return {"quantizer_A": LogSqrt2(activation_bits), "quantizer_B": Uniform(activation_bits)}
    if layer.kind == "matmul1":
        return {"quantizer_A": Uniform(activation_bits), "quantizer_B": Uniform(activation_bits)}
    input_bits = 8 if layer.kind == "patch_embed" else activation_bits
    return {
        "weight_quantizer": Uniform(weight_bits, 0),
        "input_quantizer": Uniform(input_bits, -1 if layer.is_reparameterized else None),
    }
