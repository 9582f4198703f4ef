"""Learned quantization step sizes, which LIMPQ takes as importance indicators of layers (`mixqvit.criteria.limpq`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixqvit.network.bits import BIT_WIDTHS, input_bits
from mixqvit.network.devices import images_at_once, in_parts
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer
from mixqvit.network.operations import convolution_arguments
from mixqvit.quantization.calls import layer_operands
from mixqvit.quantization.learning import learning_rate_factor
from mixqvit.quantization.step_sizes import gradient_scale, learned_step, paper_step
from mixqvit.stages.context import Context
from mixqvit.stages.forms import STATE, State
from mixqvit.stages.items import Named
from mixqvit.stages.stage import Stage, registered

__all__ = ["INDICATOR_PASSES", "IndicatorState", "Indicators", "LearnedSteps", "indicator_steps"]

INDICATOR_PASSES = 3
"""Passes over the images; the published code takes 3 of its training images."""

IMAGE_PASSES = 120
"""Full-precision passes that an image takes in all: 92 (digits_vit), 178 (digits_swin) and 106 (DeiT-Tiny)."""

_IMAGES = 8  # in an iteration
_STEP_RATE, _WEIGHT_RATE = 0.03, 2e-4  # at 0.1 the steps of neighbouring bit-widths overtake each other by noise
_COPIES = 6  # tensors like each operand and output that a backward pass through quantizers keeps
_STAGE = "training of the importance indicators"
_MODEL, _STEPS, _OPTIMIZER = "model/", "steps/", "optimizer/"

_Settings = Mapping[str, int]  # bits by layer name


@dataclass(frozen=True)
class Indicators:
    """The learned step sizes of a layer.

    Attributes:
        weight: Of its weight by bits; None for an attention product.
        operands: Of each activation operand by bits; the patch embedding's input has 8 bits only.
    """

    weight: Mapping[int, float] | None
    operands: tuple[Mapping[int, float], ...]


@dataclass(frozen=True)
class IndicatorState:
    """Where the training of the indicators is, after a finished pass over the images.

    Attributes:
        passes: Finished ones.
        indicators: As they are now, by layer name.
        tensors: All that it goes on from: weights, steps, state of the optimizer.
    """

    passes: int
    indicators: Mapping[str, Indicators]
    tensors: Mapping[str, Tensor]


def indicator_steps(
    graph: Graph, pixels: Tensor, *, passes: int = INDICATOR_PASSES, seed: int = 0, state: IndicatorState | None = None
) -> Iterator[IndicatorState]:
    """Train a step size for each weight and activation operand at every bit-width, all of them together.

    One step for a whole tensor. The weights are shared by all bit-widths: every iteration runs the network at each
    uniform bit-width and once at random bits per layer, adds the gradients up and takes one step. The model itself is
    not changed. As in the published code (github.com/1hunters/LIMPQ) steps begin at 2 · mean|v| / √Q_P, and the weights
    are trained too, from the pretrained model.

    Ours, as a study has few images and seconds for it: the loss is KL(full precision ‖ quantized), which needs no
    labels; 8 images in an iteration; Adam on the logarithms of the steps; weights begin at 2 · mean|v| / √Q_P like
    activations; patch embedding (its input at 8 bits) and head are scored like all layers. The paper begins with the
    same value for all layers, 0.1 / b at b bits, which is too far off for so few iterations: after three passes over
    64 images of digits_vit the KL at 2 to 4 bits was still 1.4 to 1.6 nats, at a rate of 0.2 for the steps.

    Args:
        graph: The traced model.
        pixels: Calibration images `[N, C, H, W]`.
        passes: Passes over the images.
        seed: Of the order of images and of the random bits.
        state: Where an earlier run of the same arguments stopped; it goes on to the same numbers.

    Yields:
        The state after each pass.

    Raises:
        ImageError: The images do not fit the model.
        MixQViTError: Memory does not suffice for a single image.
    """
    model = _SharedModel(graph, pixels)
    optimizer = model.optimizer()
    if state is not None:
        model.restore(optimizer, state.tensors)
    with torch.no_grad():
        most = images_at_once(graph, len(pixels))
        parts = in_parts(lambda part: graph.run(pixels[part])[0], len(pixels), most, graph.device, _STAGE)
        reference = torch.cat(list(parts))
    iterations = ceil(len(pixels) / _IMAGES)
    for number in range(0 if state is None else state.passes, passes):
        random = torch.Generator().manual_seed(seed + number)
        order = torch.randperm(len(pixels), generator=random)
        for iteration, batch in enumerate(order.split(_IMAGES), number * iterations):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * learning_rate_factor(iteration, passes * iterations, 0)
            settings: list[_Settings] = [{layer.name: bits for layer in graph.layers} for bits in BIT_WIDTHS]
            drawn = torch.randint(len(BIT_WIDTHS), (len(graph.layers),), generator=random).tolist()
            settings.append({layer.name: BIT_WIDTHS[i] for layer, i in zip(graph.layers, drawn, strict=True)})
            gradients = model.gradients(pixels[batch], reference[batch.to(reference.device)], settings)
            for parameter, gradient in zip(model.parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        yield IndicatorState(number + 1, model.indicators(), model.tensors(optimizer))


class _SharedModel:
    """A copy of a model whose weights serve all bit-widths, and the logarithms of all step sizes."""

    def __init__(self, graph: Graph, pixels: Tensor) -> None:
        self.graph = graph.copied(graph.device)
        self.steps: dict[tuple[str, str], nn.Parameter] = {}
        self._lowest: dict[tuple[str, str], dict[int, int]] = {}
        self._scales: dict[tuple[str, str], dict[int, float]] = {}
        for (layer, name), (mean, is_unsigned, elements) in _statistics(graph, pixels[:_IMAGES]).items():
            widths = BIT_WIDTHS if name == "weight" else sorted({input_bits(layer, bits) for bits in BIT_WIDTHS})
            lowest = {bits: 0 if is_unsigned else -(2 ** (bits - 1)) for bits in widths}
            highest = {bits: 2**bits - 1 + low for bits, low in lowest.items()}
            first = torch.stack([paper_step(mean, high, per_channel=False) for high in highest.values()])
            self.steps[layer.name, name] = nn.Parameter(first.log())
            self._lowest[layer.name, name] = lowest
            self._scales[layer.name, name] = {bits: gradient_scale(elements, high) for bits, high in highest.items()}
        self.graph.module.requires_grad_(True)
        self.parameters = [*self.steps.values(), *self.graph.module.parameters()]

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of all parameters; `peak` of a group is its first learning rate."""
        groups = [
            {"params": list(self.steps.values()), "peak": _STEP_RATE},
            {"params": list(self.graph.module.parameters()), "peak": _WEIGHT_RATE},
        ]
        return torch.optim.Adam(groups)

    def gradients(self, pixels: Tensor, reference: Tensor, settings: Sequence[_Settings]) -> list[Tensor]:
        """Return the gradients of the mean loss over images, summed over the settings of bits, by parameter."""
        sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        most = images_at_once(self.graph, len(pixels), _COPIES * self.graph.layer_bytes)
        for bits in settings:
            operations = {
                node: self._operation(layer, call, bits[layer.name])
                for layer in self.graph.layers
                for call, node in enumerate(layer.nodes)
            }

            def run(part: slice, operations: Mapping[str, Callable] = operations) -> tuple[Tensor | None, ...]:
                with torch.enable_grad():
                    logits = self.graph.run(pixels[part], operations)[0]
                    loss = self.graph.task.distillation_loss(logits, reference[part]).sum() / len(pixels)
                    # Returned instead of added up inside, so that a part that runs out of memory leaves nothing behind.
                    return torch.autograd.grad(loss, self.parameters, allow_unused=True)

            for found in in_parts(run, len(pixels), most, self.graph.device, _STAGE):
                for own, gradient in zip(sums, found, strict=True):
                    if gradient is not None:
                        own += gradient
        return sums

    def indicators(self) -> dict[str, Indicators]:
        """Return the step sizes as they are."""
        found = {}
        for layer in self.graph.layers:
            of = {
                name: dict(zip(self._lowest[owner, name], step.detach().exp().tolist(), strict=True))
                for (owner, name), step in self.steps.items()
                if owner == layer.name
            }
            found[layer.name] = Indicators(of.get("weight"), tuple(of[name] for name in layer.activations))
        return found

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return a copy of all that `restore` goes on from."""
        found = {_MODEL + name: value for name, value in self.graph.module.named_parameters()}
        found |= {f"{_STEPS}{owner} {name}": step for (owner, name), step in self.steps.items()}
        for index, values in optimizer.state_dict()["state"].items():
            found |= {f"{_OPTIMIZER}{index}/{name}": value for name, value in values.items()}
        return {name: value.detach().cpu().clone() for name, value in found.items()}

    def restore(self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` returned."""
        document = optimizer.state_dict()
        document["state"] = {}
        with torch.no_grad():
            for name, parameter in self.graph.module.named_parameters():
                parameter.copy_(tensors[_MODEL + name])
            for (owner, name), step in self.steps.items():
                step.copy_(tensors[f"{_STEPS}{owner} {name}"])
        for name, tensor in tensors.items():
            if name.startswith(_OPTIMIZER):
                index, field = name.removeprefix(_OPTIMIZER).split("/")
                document["state"].setdefault(int(index), {})[field] = tensor.clone()
        optimizer.load_state_dict(document)

    def _quantized(self, layer: Layer, name: str, values: Tensor, bits: int) -> Tensor:
        lowest = self._lowest[layer.name, name]
        bits = bits if name == "weight" else input_bits(layer, bits)
        step = self.steps[layer.name, name][list(lowest).index(bits)].exp()
        low = lowest[bits]
        return learned_step(values, step, low, 2**bits - 1 + low, self._scales[layer.name, name][bits])

    def _operation(self, layer: Layer, call: int, bits: int) -> Callable[..., Tensor]:
        def operation(*operands: Tensor) -> Tensor:
            names = layer.activations if layer.is_matmul else layer.activations[call : call + 1]
            values = [self._quantized(layer, *pair, bits) for pair in zip(names, operands, strict=True)]
            if layer.is_matmul:
                return torch.matmul(*values)
            weight = self._quantized(layer, "weight", self.graph.weight(layer), bits)
            convolution = convolution_arguments(self.graph, layer)
            if convolution is None:
                return functional.linear(*values, weight, self.graph.bias(layer))
            return functional.conv2d(*values, weight, self.graph.bias(layer), **convolution)

        return operation


def _statistics(graph: Graph, pixels: Tensor) -> dict[tuple[Layer, str], tuple[Tensor, bool, int]]:
    """Return mean|v|, whether nothing is negative, and the elements that share a step, by layer and operand."""

    def run(part: slice) -> dict[tuple[str, str], tuple[Tensor, bool, int]]:
        found = {}
        images = part.stop - part.start
        for layer, operands in layer_operands(graph, pixels[part]):
            for name, own in zip(layer.activations, operands, strict=True):
                total = own.abs().mean() * (images / len(pixels))
                found[layer.name, name] = (total, bool(own.min() >= 0), own.numel() // images)
        return found

    with torch.no_grad():
        first, *others = in_parts(run, len(pixels), images_at_once(graph, len(pixels)), graph.device, _STAGE)
        statistics = {}
        for layer in graph.layers:
            for name in layer.activations:
                mean, is_unsigned, elements = first[layer.name, name]
                more = [other[layer.name, name] for other in others]
                mean = mean + sum(own for own, _, _ in more)
                statistics[layer, name] = (mean, is_unsigned and all(own for _, own, _ in more), elements)
            if not layer.is_matmul:
                weight = graph.weight(layer)
                statistics[layer, "weight"] = (weight.abs().mean(), False, weight.numel())
        return statistics


@registered
@dataclass(frozen=True)
class LearnedSteps(Stage[IndicatorState, Mapping[str, Indicators]]):
    """The learned step sizes of all operands. What the next pass goes on from is kept until the last is done."""

    name = "importance indicators"
    version = 1
    form = STATE

    def depends_on(self, study: Context) -> Sequence[int]:
        """Return the number of images."""
        return [len(study.analysis_images)]

    def items(self, study: Context) -> Named:
        """Return the passes over the images."""
        return Named(
            tuple(f"pass {number}" for number in range(1, INDICATOR_PASSES + 1)),
            f"importance indicators, {{name}} of {INDICATOR_PASSES}",
        )

    def seconds_left(self, study: Context) -> float:
        """Return about how long the passes that are left take."""
        missing = len(self.items(study).missing(list(study.saved(self))))
        passes = IMAGE_PASSES * missing / INDICATOR_PASSES
        return passes * len(study.analysis_images) * study.seconds_per_image() if missing else 0.0

    def compute(self, study: Context, missing: Sequence[str]) -> Iterator[tuple[str, IndicatorState]]:
        """Yield the passes that are left."""
        tensors, begun = study.state(self), None
        if tensors:
            begun = IndicatorState(INDICATOR_PASSES - len(missing), {}, tensors)
        steps = indicator_steps(study.device_graph, study.analysis_images.pixels, state=begun)
        return ((f"pass {state.passes}", state) for state in steps)

    def written(self, piece: IndicatorState) -> State:
        """Return the indicators, and what the next pass goes on from."""
        rows = {layer: _row(found) for layer, found in piece.indicators.items()}
        return State(rows, {} if piece.passes == INDICATOR_PASSES else piece.tensors)

    def read(self, name: str, written: Mapping[str, Any]) -> IndicatorState:
        """Return the indicators after a pass."""
        found = {layer: _indicators(row) for layer, row in written.items()}
        return IndicatorState(int(name.removeprefix("pass ")), found, {})

    def join(self, study: Context, pieces: Mapping[str, IndicatorState]) -> Mapping[str, Indicators]:
        """Return the indicators after the last pass, by layer in network order."""
        last = pieces[f"pass {INDICATOR_PASSES}"].indicators
        return {layer.name: last[layer.name] for layer in study.layers}


def _row(found: Indicators) -> dict[str, Any]:
    return {
        "weight": found.weight and list(found.weight.items()),
        "operands": [list(steps.items()) for steps in found.operands],
    }


def _indicators(row: Mapping[str, Any]) -> Indicators:
    return Indicators(row["weight"] and dict(row["weight"]), tuple(dict(steps) for steps in row["operands"]))
