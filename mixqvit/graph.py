"""The traced model: one torch.fx graph, its table of quantized layers, and partial execution from any node.

Tracing turns a timm vision transformer into a flat list of operations without touching the model itself. Relevance
rules, quantizers and sensitivity sweeps all work on these nodes, so no architecture needs a rewritten attention class.
"""

import copy
import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from timm.layers.activations import QuickGELU
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from mixqvit.errors import ImageError, ModelError
from mixqvit.layer_table import depends_on_images, layer_table, operation_name
from mixqvit.layers import Layer

__all__ = ["Graph", "Layer", "Operation", "Values", "depends_on_images", "operation_name", "trace"]

Values = dict[str, Any]
"""The values of nodes by node name, as far as later nodes still need them."""

Operation = Callable[..., Any]

# In evaluation mode these return their input; without them the graph is what is really computed.
_PASS_THROUGH = ("Identity", "Dropout", "Dropout2d", "DropPath", "PatchDropout", "PatchDropoutWithIndices")
# Casts to the precision of another tensor: a graph computes everything in the precision of its parameters.
_CASTS = ("to", "type_as")


@dataclass(frozen=True)
class Graph:
    """A traced model. Nothing in it is ever changed, so one graph can serve many threads.

    Attributes:
        module: The torch.fx module with a private copy of the parameters.
        layers: The quantized layers in network order (METHOD.md, "Quantized layers").
        input_shape: Shape of one image `[C, H, W]`.
        classes: Number of classes the model tells apart.
        parameters: Parameter elements of the traced model, biases and embeddings included.
    """

    module: fx.GraphModule
    layers: tuple[Layer, ...]
    input_shape: tuple[int, int, int]
    classes: int
    parameters: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits `[B, classes]` of images `[B, C, H, W]`, in full precision.

        Raises:
            ImageError: The images do not have the shape the model was traced with.
        """
        return self.run(pixels)[0]

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
        """Multiply-accumulate operations for one image, attention products included."""
        return sum(layer.macs for layer in self.layers)

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
            pixels: Images `[B, C, H, W]`.
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

    def operands(self, layer: Layer, values: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Return the layer's activation operands among `values`: one input, or the two factors of a product."""
        node = self.nodes[self._index[layer.node]]
        return tuple(values[argument.name] for argument in node.args if isinstance(argument, fx.Node))

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
        tensors = (*self.module.parameters(), *self.module.buffers())
        memo = {id(tensor): tensor.to("meta") for tensor in tensors}
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
        return {self.nodes[0].name: pixels}

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
            return _attribute(self.module, node.target)
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


def trace(module: nn.Module, example_images: Tensor) -> Graph:
    """Trace a timm vision transformer (or a module written like one) into a graph.

    The module is copied first: it is not changed, and later changes to it do not reach the graph.

    Args:
        module: The model; evaluation mode is used whatever its present mode.
        example_images: At least one image `[B, C, H, W]`; fixes the input shape, not the batch size.

    Returns:
        The graph with its table of layers.

    Raises:
        ModelError: The module cannot be traced, has no quantizable layer, does not return logits `[B, classes]`,
            or the traced graph does not compute what the module computes.
    """
    with _TRACING:
        return _trace(module, example_images)


# Tracing changes torch for the whole process while it lasts, so that only one thread may do it at a time.
_TRACING = threading.Lock()


def _trace(module: nn.Module, example_images: Tensor) -> Graph:
    private = copy.deepcopy(module).eval().requires_grad_(False)
    for part in private.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False  # the fused kernel would hide the two attention products
    try:
        with torch.no_grad():
            traced = fx.GraphModule(private, _Tracer().trace(private))
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} cannot be traced into a graph ({_first_line(error)}). "
            "timm's vision transformers can: ViT, DeiT, Swin, BEiT, EVA, CaiT, PVT v2 and their relatives."
        ) from error
    _simplify(traced)
    traced = _with_linear_modules(traced)
    image = example_images[:1]
    with torch.no_grad():
        try:
            expected = copy.deepcopy(module).eval()(image)
        except Exception as error:
            raise ModelError(f"The model does not run on the example images: {_first_line(error)}") from error
        if not isinstance(expected, Tensor) or expected.dim() != 2:
            raise ModelError(f"The model must return logits [B, classes]; {type(module).__name__} does not.")
        parameters = sum(parameter.numel() for parameter in module.parameters())
        graph = Graph(traced, (), tuple(image.shape[1:]), expected.shape[1], parameters)
        try:
            shapes, found = _shapes(graph, image), graph(image)
        except Exception as error:
            raise ModelError(f"The graph of {type(module).__name__} does not run: {_first_line(error)}") from error
        # Fused and plain attention round differently, so exact equality is not asked for here.
        if not torch.allclose(expected, found, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            raise ModelError(f"The graph of {type(module).__name__} does not compute what the model computes.")
    layers = layer_table(graph, shapes)
    if not layers:
        raise ModelError(f"{type(module).__name__} has no Linear, convolution or attention product to quantize.")
    return replace(graph, layers=layers)


class _Tracer(fx.Tracer):
    """Keeps whole what has a meaning of its own: torch.nn modules and what timm declares untraceable."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(*get_notrace_functions(), apply_rot_embed_cat))
        self._leaves = (
            *get_notrace_modules(),
            *(nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Identity, QuickGELU),
        )

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return (
            isinstance(module, self._leaves)
            or type(module).__name__ in _PASS_THROUGH
            or super().is_leaf_module(module, qualified_name)
        )


def _simplify(traced: fx.GraphModule) -> None:
    graph = traced.graph
    modules = dict(traced.named_modules())
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        _fix_argument(node, node.args[0] if node.args else None)
    for node in list(graph.nodes):
        is_identity = node.op == "call_module" and type(modules[node.target]).__name__ in _PASS_THROUGH
        is_cast = node.op == "call_method" and node.target in _CASTS
        no_mask = operation_name(node, traced) == "maybe_add_mask" and _is_none(node.args[1])
        if is_identity or is_cast or no_mask:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif operation_name(node, traced) in ("_assert", "assert_size_stride"):
            graph.erase_node(node)  # Graph checks the shape of the images itself, with a clearer message
    graph.eliminate_dead_code()
    traced.recompile()


def _with_linear_modules(traced: fx.GraphModule) -> fx.GraphModule:
    """Turn F.linear with a weight that belongs to the model into the Linear module it stands for.

    BEiT, EVA and Swin v2 put the bias of Q, K and V together from parts; in the graph it is one bias.
    """
    example = {}  # the values of nodes that depend on parameters only
    found = False
    for node in list(traced.graph.nodes):
        arguments = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
        operands = [arguments.get(name) for name in ("weight", "bias")]
        is_linear = node.op == "call_function" and operation_name(node, traced) == "linear"
        of_module = is_linear and operands[0].op == "get_attr" and "." in operands[0].target
        if of_module and all(o is None or o.name in example for o in operands):
            weight, bias = (None if operand is None else example[operand.name] for operand in operands)
            # Not initialized: that would take random numbers from whoever traces.
            module = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias is not None)
            module.weight = nn.Parameter(weight.clone(), requires_grad=False)
            if bias is not None:
                module.bias = nn.Parameter(bias.clone(), requires_grad=False)
            name = operands[0].target.rpartition(".")[0]
            if any(traced.get_submodule(name).children()):
                name = f"{name}.linear"  # a module of more than this one layer
            traced.add_submodule(name, module.eval())
            with traced.graph.inserting_before(node):
                call = traced.graph.call_module(name, (arguments["input"],))
            call.meta = dict(node.meta)
            node.replace_all_uses_with(call)
            traced.graph.erase_node(node)
            found = True
        elif node.op == "get_attr":
            example[node.name] = _attribute(traced, node.target)
        elif operation_name(node, traced) == "cat" and all(part.name in example for part in node.all_input_nodes):
            example[node.name] = torch.cat([example[part.name] for part in node.all_input_nodes])
    if not found:
        return traced
    traced.graph.eliminate_dead_code()
    return fx.GraphModule(traced, traced.graph)  # without the parts of the biases


def _fix_argument(placeholder: fx.Node, value: Any) -> None:
    """Give every reader of an optional argument of `forward` its default value instead."""

    def fixed(argument: fx.Node) -> Any:
        return value if argument is placeholder else argument

    for user in list(placeholder.users):
        user.args = fx.map_arg(user.args, fixed)
        user.kwargs = fx.map_arg(user.kwargs, fixed)
    placeholder.graph.erase_node(placeholder)


def _is_none(argument: Any) -> bool:
    """Whether timm's attention gets no mask: it asks for none, or resolves `attn_mask=None`, `is_causal=False`."""
    if isinstance(argument, fx.Node) and getattr(argument.target, "__name__", "") == "resolve_self_attn_mask":
        mask_settings = (*argument.args[2:], *argument.kwargs.values())
        return all(setting is None or setting is False for setting in mask_settings)
    return argument is None


def _shapes(graph: Graph, image: Tensor) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    values: Values = {graph.nodes[0].name: image}
    for node in graph.nodes:
        if node.op != "placeholder":
            values[node.name] = graph.compute(node, values)
        if isinstance(values[node.name], Tensor):
            shapes[node.name] = tuple(values[node.name].shape)
    return shapes


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


def _attribute(module: nn.Module, target: str) -> Tensor:
    for part in target.split("."):
        module = getattr(module, part)
    return module


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
