"""A quantized model whose weights and quantizers are trained."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixqvit.network.bits import FULL_PRECISION, BitsPerLayer
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.network.operations import convolution_arguments
from mixqvit.network.query_key import merge_query_key, original_layer
from mixqvit.quantization.calls import layer_operands
from mixqvit.quantization.model import QuantizedModel
from mixqvit.quantization.operations import (
    PreparedWeight,
    QuantizedLayer,
    QuantizedMatmul,
    QuantizedOperation,
)
from mixqvit.quantization.step_sizes import LearnedStep
from mixqvit.training.settings import TRAINING_METHODS, StepSizes
from mixqvit.training.statistics import StatisticalStep

__all__ = ["TrainableModel"]

WeightQuantizer = LearnedStep | StatisticalStep


class TrainableModel(nn.Module):
    """A copy of a model with quantizers on the operands of its layers; all its parameters can be trained.

    Attributes:
        graph: The copy.
        bits: (weight bits, activation bits) of its layers.
        method: One of `TRAINING_METHODS`.
    """

    def __init__(self, graph: Graph, bits: BitsPerLayer, method: str, pixels: Tensor) -> None:
        """Copy a model and fit its quantizers to calibration images.

        Args:
            graph: The full-precision model, on the device to train on.
            bits: (weight bits, activation bits) for every layer of it.
            method: One of `TRAINING_METHODS`.
            pixels: Calibration images `[N, C, H, W]`.

        Raises:
            UnsupportedOperationError: `ofq` cannot merge query and key of this model.
        """
        super().__init__()
        self.source, self.method = graph.fingerprint, method
        merges = TRAINING_METHODS[method].merges_query_key
        self.graph = merge_query_key(graph) if merges else graph.copied(graph.device)
        self.bits = {layer.name: bits[original_layer(layer.name, graph.by_name)] for layer in self.graph.layers}
        self.module = self.graph.module
        self.quantizers = nn.ModuleDict()
        with torch.no_grad():
            for layer, operands in layer_operands(self.graph, pixels):
                self._fit(layer, operands, len(pixels))
        self.module.requires_grad_(True)
        self._operations = {
            node: self._operation(layer, call) for layer in self.graph.layers for call, node in enumerate(layer.nodes)
        }

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits `[B, classes]` of images `[B, C, H, W]`, with gradients."""
        return self.graph.run(pixels, self._operations)[0]

    def weights(self) -> list[tuple[nn.Parameter, WeightQuantizer]]:
        """Return the quantized weights with their quantizers."""
        pairs = ((self.graph.weight(layer), self._quantizer(layer, "weight")) for layer in self.graph.layers)
        return [(weight, quantizer) for weight, quantizer in pairs if quantizer is not None]

    def step_parameters(self) -> list[nn.Parameter]:
        """Return the step sizes that are learned."""
        return list(self.quantizers.parameters())

    def step_sizes(self) -> list[StepSizes]:
        """Return the step sizes of all operands before and after training."""
        found = []
        for layer in self.graph.layers:
            for operand in _operands(layer):
                quantizer = self._quantizer(layer, operand)
                if quantizer is None:
                    continue
                after = quantizer.quantizer(None if layer.is_matmul else self.graph.weight(layer)).scale
                before, after = (tuple(scales.flatten().tolist()) for scales in (quantizer.first, after))
                found.append(StepSizes(layer.name, operand, quantizer.bits, before, after))
        return found

    def quantized(self) -> QuantizedModel:
        """Return the model as it is now, without gradients; it shares nothing with this one."""
        with torch.no_grad():
            graph = self.graph.copied(self.graph.device)
            operations: dict[str, QuantizedOperation] = {}
            for layer in graph.layers:
                operations |= self._frozen(graph, layer)
            return QuantizedModel(graph, self.bits, self.method, operations, self.source)

    def _frozen(self, graph: Graph, layer: Layer) -> dict[str, QuantizedOperation]:
        found = [self._quantizer(layer, operand) for operand in _operands(layer)]
        if all(quantizer is None for quantizer in found):
            return {}
        of_inputs = found if layer.is_matmul else found[1:]
        inputs = [None if quantizer is None else quantizer.quantizer() for quantizer in of_inputs]
        if layer.is_matmul:
            return {layer.node: QuantizedMatmul(*inputs)}
        of_weight = found[0]
        weight, bias, quantizer = graph.weight(layer), graph.bias(layer), None
        if of_weight is not None:
            quantizer = of_weight.quantizer(weight)
            weight.copy_(of_weight.values(weight))  # what the codes stand for, as in a packed model that is loaded
        prepared = PreparedWeight(weight.detach().clone(), None if bias is None else bias.detach().clone(), quantizer)
        convolution = convolution_arguments(graph, layer)
        return {n: QuantizedLayer(prepared, own, convolution) for n, own in zip(layer.nodes, inputs, strict=True)}

    def _fit(self, layer: Layer, values: tuple[Tensor, ...], images: int) -> None:
        bits = self.bits[layer.name]
        widths = layer.activation_bits(bits)
        for operand, operand_values, width in zip(layer.activations, values, widths, strict=True):
            if width != FULL_PRECISION:
                self.quantizers[_key(layer, operand)] = LearnedStep.of_activation(operand_values, width, images)
        if not layer.is_matmul and bits[0] != FULL_PRECISION:
            is_statistical = TRAINING_METHODS[self.method].has_statistical_weights
            make = StatisticalStep if is_statistical else LearnedStep.of_weight
            self.quantizers[_key(layer, "weight")] = make(self.graph.weight(layer), bits[0])

    def _quantizer(self, layer: Layer, operand: str) -> LearnedStep | StatisticalStep | None:
        return dict(self.quantizers).get(_key(layer, operand))

    def _operation(self, layer: Layer, call: int) -> Callable[..., Tensor]:
        def applied(operand: str) -> Callable[[Tensor], Tensor]:
            return self._quantizer(layer, operand) or _as_it_is

        if layer.is_matmul:
            first, second = applied("first"), applied("second")
            return lambda left, right: torch.matmul(first(left), second(right))
        graph, weight_of, input_of = self.graph, applied("weight"), applied(layer.activations[call])
        convolution = convolution_arguments(graph, layer)
        if convolution is None:
            return lambda values: functional.linear(input_of(values), weight_of(graph.weight(layer)), graph.bias(layer))
        return lambda values: functional.conv2d(
            input_of(values), weight_of(graph.weight(layer)), graph.bias(layer), **convolution
        )


def _operands(layer: Layer) -> tuple[str, ...]:
    return layer.activations if layer.is_matmul else ("weight", *layer.activations)


def _key(layer: Layer, operand: str) -> str:
    return f"{layer.node} {operand}"  # the names of modules may hold no dot


def _as_it_is(values: Tensor) -> Tensor:
    return values
