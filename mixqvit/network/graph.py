"""The traced model: one torch.fx graph, its table of quantized layers, and partial execution from any node.

Tracing turns a timm vision transformer into a flat list of operations without touching the model itself. Relevance
rules, quantizers and sensitivity sweeps all work on these nodes, so no architecture needs a rewritten attention class.
"""

import copy
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from mixqvit.errors import ImageError
from mixqvit.network.layers import Layer
from mixqvit.network.unquantized import WARNING_SHARE, UnquantizedOperation, sentence
from mixqvit.tasks.classification import Classification
from mixqvit.tasks.task import Task

__all__ = ["Graph", "Layer", "Operation", "Values", "attribute", "depends_on_images", "operation_name"]

Values = dict[str, Any]
"""The values of nodes by node name, as far as later nodes still need them."""

Operation = Callable[..., Any]


@dataclass(frozen=True)
class Graph:
    """A traced model. Nothing in it is ever changed, so one graph can serve many threads.

    Attributes:
        module: The torch.fx module with a private copy of the parameters.
        layers: The quantized layers in network order (METHOD.md, "Quantized layers").
        input_shape: Shape of one image `[C, H, W]`.
        classes: Number of classes the model tells apart.
        parameters: Parameter elements of the traced model, biases and embeddings included.
        unquantized: Operations with weights that are in no layer.
    """

    module: fx.GraphModule
    layers: tuple[Layer, ...]
    input_shape: tuple[int, int, int]
    classes: int
    parameters: int
    unquantized: tuple[UnquantizedOperation, ...] = ()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits `[B, classes]` of images `[B, C, H, W]`, in full precision.

        Raises:
            ImageError: The images do not have the shape the model was traced with.
        """
        return self.run(pixels)[0]

    @property
    def task(self) -> Task:
        """What its outputs mean: tracing accepts classifiers alone."""
        return Classification(self.classes)

    @cached_property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All operations in the order they run, without the final output node."""
        return tuple(node for node in self.module.graph.nodes if node.op != "output")

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulate operations of the layers for one image, attention products included."""
        return sum(layer.macs for layer in self.layers)

    @cached_property
    def unquantized_macs(self) -> int:
        """Multiply-accumulate operations for one image that stay in full precision whatever the bits are."""
        return sum(operation.macs for operation in self.unquantized)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the model beside its table of layers, in sentences."""
        if not self.unquantized:
            return ()
        return (sentence(self.unquantized, self.parameters, self.macs + self.unquantized_macs),)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the `notes` that say that the bits of the layers tell little about the whole model."""
        shares = (
            sum(operation.parameters for operation in self.unquantized) / max(1, self.parameters),
            self.unquantized_macs / max(1, self.macs + self.unquantized_macs),
        )
        return self.notes if max(shares) > WARNING_SHARE else ()

    @cached_property
    def device(self) -> torch.device:
        """Where the parameters are, and so where everything is computed."""
        return next((tensor.device for tensor in self._tensors), torch.device("cpu"))

    @cached_property
    def live_bytes(self) -> int:
        """Bytes of one image's values that are held at the same time, at most, views counted like copies."""
        shapes, of_images = self.shapes(1), depends_on_images(self)
        alive = most = 0
        for node, freed in zip(self.nodes, self._last_uses, strict=True):
            alive += _elements(shapes[node.name]) if node.name in of_images else 0
            most = max(most, alive)
            alive -= sum(_elements(shapes[name]) for name in freed if name in of_images)
        return most * self._element_bytes

    @cached_property
    def layer_bytes(self) -> int:
        """Bytes of the operands and outputs of all layers for one image: what a backward pass keeps, about."""
        elements = sum(prod(layer.input_shape) + prod(layer.output_shape) for layer in self.layers)
        return elements * self._element_bytes

    @property
    def _element_bytes(self) -> int:
        return next((tensor.element_size() for tensor in self._tensors), 4)

    @property
    def _tensors(self) -> Iterator[Tensor]:
        return chain(self.module.parameters(), self.module.buffers())

    def on(self, device: torch.device, precision: torch.dtype | None = None) -> "Graph":
        """Return the same graph with its parameters on a device: itself where they are as wanted already.

        Args:
            device: Where to compute.
            precision: Type of floating-point parameters and buffers; None leaves them as they are.
        """
        kinds = {tensor.dtype for tensor in self._tensors if tensor.is_floating_point()}
        if device == self.device and (precision is None or kinds <= {precision}):
            return self
        return self.copied(device, precision)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of operations, modules and all tensors: equal fingerprints compute the same function."""
        digest = hashlib.sha256(f"{self.module.graph}\n{self.module}".encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def weight(self, layer: Layer) -> Tensor | None:
        """Return the layer's weight, `[out, in]` or `[out, in, kh, kw]`; None for an attention product."""
        return None if layer.is_matmul else self.operation(layer).weight

    def bias(self, layer: Layer) -> Tensor | None:
        """Return the layer's bias `[out]`, None where it has none."""
        return None if layer.is_matmul else self.operation(layer).bias

    def operation(self, layer: Layer) -> nn.Module:
        """Return the Linear or convolution module of a layer that has a weight."""
        return self.module.get_submodule(layer.name)

    def run(
        self, pixels: Tensor, replace: Mapping[str, Operation] | None = None, keep: Collection[str] = ()
    ) -> tuple[Tensor, Values]:
        """Run the whole network.

        Args:
            pixels: Images `[B, C, H, W]`, wherever they are: they are moved to the device of the graph.
            replace: Operations by node name that run instead of the traced ones, on the same tensor operands.
            keep: Names of nodes whose values are returned; all other values are freed as soon as possible.

        Returns:
            The logits `[B, classes]`, and the kept values by node name.

        Raises:
            ImageError: The images do not have the shape the model was traced with.
        """
        values = self._start(pixels)
        kept: Values = {}
        for index in range(len(self.nodes)):
            self._step(index, values, replace or {}, keep, kept)
        return values[self._output], kept

    def resume(self, values: Mapping[str, Any], start: str, replace: Mapping[str, Operation]) -> Tensor:
        """Run from node `start` to the end.

        Args:
            values: What `walk` yielded before `start`; not changed.
            start: Name of the first node to run.
            replace: As in `run`.

        Returns:
            The logits `[B, classes]`.
        """
        values = dict(values)
        for index in range(self._index[start], len(self.nodes)):
            self._step(index, values, replace, (), {})
        return values[self._output]

    def walk(
        self,
        pixels: Tensor,
        stops: Collection[str],
        replace: Mapping[str, Operation] | None = None,
        paused: tuple[str, Mapping[str, Any]] | None = None,
    ) -> Iterator[tuple[str, Values]]:
        """Run the network once, pausing before each of the nodes `stops`.

        Args:
            pixels: Images `[B, C, H, W]`.
            stops: Names of the nodes to pause before.
            replace: As in `run`.
            paused: What an earlier walk yielded: the run starts there instead of at the images; not changed.

        Yields:
            The node's name and the values that the node and all later ones need: enough for `resume`. The caller
            may add operations to `replace` while paused; they take effect from that node on.

        Raises:
            ImageError: The images do not have the shape the model was traced with.
        """
        first, values = (0, self._start(pixels)) if paused is None else (self._index[paused[0]], dict(paused[1]))
        remaining = set(stops)
        for index, node in enumerate(self.nodes[first:], first):
            if node.name in remaining:
                yield node.name, dict(values)
                remaining.discard(node.name)
                if not remaining:
                    return
            self._step(index, values, replace or {}, (), {})

    def operands(self, layer: Layer, values: Mapping[str, Any], node: str | None = None) -> tuple[Tensor, ...]:
        """Return the layer's activation operands among `values`: one input, or the two factors of a product.

        Args:
            layer: The layer.
            values: What `walk` yielded.
            node: Which of its operations, the first by default.
        """
        return tuple(values[name] for name in self.operand_nodes(layer, node))

    def operand_nodes(self, layer: Layer, node: str | None = None) -> tuple[str, ...]:
        """Return the names of the nodes whose values are the layer's activation operands, arguments as above."""
        operation = self.nodes[self._index[node or layer.node]]
        return tuple(argument.name for argument in operation.args if isinstance(argument, fx.Node))

    def layer_of(self, layers: Iterable[Layer] | None = None) -> dict[str, Layer]:
        """Return layers, all by default, by the names of all operations that run them."""
        return {node: layer for layer in (self.layers if layers is None else layers) for node in layer.nodes}

    def shapes(self, images: int) -> Mapping[str, Any]:
        """Return the shape of every tensor, and every value that is none, by node name for a number of images."""
        known = self._shapes_by_images
        if images not in known:
            known[images] = _all_shapes(self._on_meta_device, images)
        return known[images]

    @cached_property
    def _shapes_by_images(self) -> dict[int, Mapping[str, Any]]:
        return {}

    @cached_property
    def _on_meta_device(self) -> "Graph":
        """The same graph without numbers: it runs in no time and knows the shapes only."""
        return self.copied(torch.device("meta"))

    def copied(self, device: torch.device, precision: torch.dtype | None = None) -> "Graph":
        """Return the same graph with a module of its own, arguments as in `on`: what may be changed."""

        def copied(tensor: Tensor) -> Tensor:
            return tensor.to(device, precision if tensor.is_floating_point() else None, copy=True)

        with torch.inference_mode(False), torch.no_grad():
            memo = {id(tensor): copied(tensor) for tensor in self._tensors}
            for parameter in self.module.parameters():
                memo[id(parameter)] = nn.Parameter(memo[id(parameter)], requires_grad=False)
            return replace(self, module=copy.deepcopy(self.module, memo))

    @cached_property
    def _index(self) -> Mapping[str, int]:
        return {node.name: index for index, node in enumerate(self.nodes)}

    @cached_property
    def _output(self) -> str:
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        return output.args[0].name

    @cached_property
    def _last_uses(self) -> tuple[tuple[str, ...], ...]:
        """For every node the names of the values that no later node needs."""
        last_use: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            last_use[node.name] = index
            for argument in node.all_input_nodes:
                last_use[argument.name] = index
        freed: list[list[str]] = [[] for _ in self.nodes]
        for name, index in last_use.items():
            if name != self._output:
                freed[index].append(name)
        return tuple(tuple(names) for names in freed)

    def _start(self, pixels: Tensor) -> Values:
        if tuple(pixels.shape[1:]) != self.input_shape:
            raise ImageError(
                f"The model takes images of shape {list(self.input_shape)} (channels, height, width), "
                f"these have {list(pixels.shape[1:])}. Load them with the model's own preprocessing."
            )
        return {self.nodes[0].name: pixels.to(self.device)}

    def _step(
        self,
        index: int,
        values: Values,
        replace: Mapping[str, Operation],
        keep: Collection[str],
        kept: Values,
    ) -> None:
        node = self.nodes[index]
        if node.op != "placeholder":
            operation = replace.get(node.name)
            if operation is not None:
                operands = (values[argument.name] for argument in node.args if isinstance(argument, fx.Node))
                values[node.name] = operation(*operands)
            else:
                values[node.name] = self.compute(node, values)
        if node.name in keep:
            kept[node.name] = values[node.name]
        for name in self._last_uses[index]:
            values.pop(name, None)

    def compute(self, node: fx.Node, values: Mapping[str, Any]) -> Any:
        """Return the value of one node from the values of the nodes it reads."""
        if node.op == "get_attr":
            return attribute(self.module, node.target)
        args = fx.map_arg(node.args, lambda argument: values[argument.name])
        kwargs = fx.map_arg(node.kwargs, lambda argument: values[argument.name])
        if node.op == "call_module":
            # Not the module's __call__, which torch.fx replaces in all threads while one of them traces.
            return self._modules[node.target].forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)

    @cached_property
    def _modules(self) -> Mapping[str, nn.Module]:
        return dict(self.module.named_modules())


def _all_shapes(graph: Graph, images: int) -> Mapping[str, Any]:
    def shape_of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tuple(value.shape)
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            return tuple(shape_of(part) for part in value)
        return value

    parameter = next(graph.module.parameters())
    values: Values = {graph.nodes[0].name: parameter.new_empty(images, *graph.input_shape)}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op != "placeholder":
                values[node.name] = graph.compute(node, values)
    return {name: shape_of(value) for name, value in values.items()}


def _elements(shape: Any) -> int:
    """Return the number of elements of a tensor, or of all tensors of a tuple, from `Graph.shapes`."""
    if isinstance(shape, (tuple, list)) and not isinstance(shape, torch.Size):
        if all(isinstance(extent, int) for extent in shape):
            return prod(shape)
        return sum(_elements(part) for part in shape)
    return 0  # a number, or a shape itself


def attribute(module: nn.Module, target: str) -> Tensor:
    """Return what a dotted name means in a module."""
    for part in target.split("."):
        module = getattr(module, part)
    return module


def operation_name(node: fx.Node, module: nn.Module) -> str:
    """Return the plain name of a node's operation: `Linear`, `softmax`, `add`, `reshape`, ..."""
    if node.op == "call_module":
        return type(module.get_submodule(node.target)).__name__
    if node.op == "call_function":
        return getattr(node.target, "__name__", str(node.target))
    return str(node.target) if node.op == "call_method" else node.op


def depends_on_images(graph: Graph) -> frozenset[str]:
    """Return the names of the nodes whose value depends on the pixels, not only on their number or shape."""
    names = {graph.nodes[0].name}
    for node in graph.nodes[1:]:
        is_shape = operation_name(node, graph.module) in ("getattr", "size", "dim")
        if not is_shape and any(argument.name in names for argument in node.all_input_nodes):
            names.add(node.name)
    return frozenset(names)
