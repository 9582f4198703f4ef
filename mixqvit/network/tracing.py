"""Tracing: from a timm vision transformer to its graph, without touching the model itself."""

import copy
import inspect
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from timm.layers.activations import QuickGELU
from timm.layers.padding import pad_same
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from mixqvit.errors import ModelError
from mixqvit.network.graph import Graph, Values, operation_name
from mixqvit.network.layer_table import is_plain, layer_table, scope
from mixqvit.network.lowering import is_same_padding, with_fixed_padding, with_one_module_per_weight, with_plain_layers
from mixqvit.network.operations import check_operations, is_close
from mixqvit.network.unquantized_table import unquantized_operations

__all__ = ["trace"]

# In evaluation mode these return their input; without them the graph is what is really computed.
_PASS_THROUGH = ("Identity", "Dropout", "Dropout2d", "DropPath", "PatchDropout", "PatchDropoutWithIndices")
# Casts to the precision of another tensor: a graph computes everything in the precision of its parameters.
_CASTS = ("to", "type_as")


def trace(module: nn.Module, example_images: Tensor) -> Graph:
    """Trace a timm vision transformer (or a module written like one) into a graph.

    The module is copied first: it is not changed, and later changes to it do not reach the graph.

    Args:
        module: The model; evaluation mode is used whatever its present mode.
        example_images: At least one image `[B, C, H, W]`; fixes the input shape, not the batch size. With two, what
            depends on the number of images is found out.

    Returns:
        The graph with its table of layers.

    Raises:
        ModelError: The module cannot be traced, has no quantizable layer, does not return logits `[B, classes]`,
            or the traced graph, or its layers as they are quantized, do not compute what the module computes.
    """
    with _TRACING:
        return _trace(module, example_images)


_CHECKED_IMAGES = 2

# Tracing changes torch for the whole process while it lasts, so that only one thread may do it at a time.
_TRACING = threading.Lock()


def _trace(module: nn.Module, example_images: Tensor) -> Graph:
    try:
        return _attempt(module, example_images, {})
    except ModelError as refused:
        # Arguments of forward are symbols while they are traced, and become their defaults afterwards. A forward that
        # asks whether one is None takes the wrong branch like that.
        parameters = inspect.signature(type(module).forward).parameters.values()
        absent = {parameter.name: None for parameter in parameters if parameter.default is None}
        if not absent:
            raise
        try:
            return _attempt(module, example_images, absent)
        except ModelError:
            raise refused from refused.__cause__


def _attempt(module: nn.Module, example_images: Tensor, arguments: dict[str, None]) -> Graph:
    kind = type(module).__name__
    traced = _traced(module, arguments)
    images = example_images[:_CHECKED_IMAGES]
    image = images[:1]
    with torch.no_grad():
        try:
            expected = copy.deepcopy(module).eval()(images)
        except Exception as error:
            raise ModelError(f"The model does not run on the example images: {_first_line(error)}") from error
        if not isinstance(expected, Tensor) or expected.dim() != 2:
            raise ModelError(f"The model must return logits [B, classes]; {kind} does not.")
        parameters = sum(parameter.numel() for parameter in module.parameters())
        graph = Graph(traced, (), tuple(image.shape[1:]), expected.shape[1], parameters)
        if any(is_same_padding(node) for node in graph.nodes):
            with_fixed_padding(traced, _values_and_shapes(graph, image, kind)[1])
        graph = replace(graph, module=with_one_module_per_weight(with_plain_layers(traced)))
        found, shapes = _values_and_shapes(graph, image, kind)
        graph = replace(graph, layers=layer_table(graph, shapes))
        if not is_close(expected[:1], found):
            raise ModelError(f"The graph of {kind} does not compute what the model computes.")
        if not graph.layers:
            raise ModelError(f"{kind} has no Linear, convolution or attention product to quantize.")
        check_operations(graph, images, expected)
    return replace(graph, unquantized=unquantized_operations(graph, shapes))


def _traced(module: nn.Module, arguments: dict[str, None]) -> fx.GraphModule:
    """Return a copy of a module in evaluation mode, with these arguments of its forward, as a list of operations."""
    tracer = _Tracer()
    try:
        private = copy.deepcopy(module).eval().requires_grad_(False)
        for part in private.modules():
            if hasattr(part, "fused_attn"):
                part.fused_attn = False  # the fused kernel would hide the two attention products
        with torch.no_grad():
            traced = fx.GraphModule(private, tracer.trace(private, arguments))
    except Exception as error:
        inside = f" inside {tracer.within[-1]}" if tracer.within else ""
        raise ModelError(
            f"{type(module).__name__} cannot be traced into a graph ({_first_line(error)}{inside}). "
            "timm's vision transformers can: ViT, DeiT, Swin, BEiT, EVA, CaiT, PVT v2 and their relatives."
        ) from error
    _simplify(traced)
    return traced


class _Tracer(fx.Tracer):
    """Keeps whole what has a meaning of its own: torch.nn modules and what timm declares untraceable."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(*get_notrace_functions(), apply_rot_embed_cat, pad_same))
        self.within: list[str] = []  # the modules being traced, with the one that failed last
        self._leaves = (*get_notrace_modules(), *(nn.GELU, nn.Dropout, nn.Identity, QuickGELU))

    def call_module(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.within.append(f"{self.path_of_module(module)} ({type(module).__name__})")
        found = super().call_module(module, forward, args, kwargs)
        self.within.pop()
        return found

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        if isinstance(module, nn.Linear | nn.Conv2d):
            return is_plain(module)
        if isinstance(module, nn.LayerNorm):  # what others make of one is traced into
            return type(module).forward.__module__.startswith(("torch.nn.", "timm.layers."))
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
        elif operation_name(node, traced) in ("_assert", "_assert_is_none", "assert_size_stride"):
            graph.erase_node(node)  # Graph checks the shape of the images itself, with a clearer message
    graph.eliminate_dead_code()
    traced.recompile()


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


def _values_and_shapes(graph: Graph, image: Tensor, kind: str) -> tuple[Tensor, dict[str, tuple[int, ...]]]:
    """Return the logits of an image, and the shapes of all tensor-valued nodes by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    values: Values = {graph.nodes[0].name: image}
    for node in graph.nodes:
        try:
            if node.op != "placeholder":
                values[node.name] = graph.compute(node, values)
        except Exception as error:
            raise ModelError(
                f"The graph of {kind} does not run: the operation {operation_name(node, graph.module)} in "
                f"{scope(node) or 'its forward'} fails ({_first_line(error)})."
            ) from error
        if isinstance(values[node.name], Tensor):
            shapes[node.name] = tuple(values[node.name].shape)
    return values[graph.nodes[-1].name], shapes


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
