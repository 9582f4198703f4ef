"""Reads the table of quantized layers off a traced graph: structure decides, names only label."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from mixqvit.errors import ModelError
from mixqvit.network.layers import Layer

if TYPE_CHECKING:
    from mixqvit.network.graph import Graph

__all__ = ["depends_on_images", "is_plain", "layer_table", "operation_name", "scope"]

_MATMULS = ("matmul", "bmm")
_HIDDEN_PRODUCTS = ("linear", "conv2d", "einsum", "scaled_dot_product_attention")
# Operations that only move or select elements: looking through them finds what feeds a layer.
_LAYOUT = (
    *("reshape", "view", "flatten", "permute", "transpose", "contiguous", "roll", "pad", "getitem", "unbind"),
    *("chunk", "split", "window_partition", "squeeze", "unsqueeze"),
)


def operation_name(node: fx.Node, module: nn.Module) -> str:
    """Return the plain name of a node's operation: `Linear`, `softmax`, `add`, `reshape`, ..."""
    if node.op == "call_module":
        return type(module.get_submodule(node.target)).__name__
    if node.op == "call_function":
        return getattr(node.target, "__name__", str(node.target))
    return str(node.target) if node.op == "call_method" else node.op


def depends_on_images(graph: "Graph") -> frozenset[str]:
    """Return the names of the nodes whose value depends on the pixels, not only on their number or shape."""
    names = {graph.nodes[0].name}
    for node in graph.nodes[1:]:
        is_shape = operation_name(node, graph.module) in ("getattr", "size", "dim")
        if not is_shape and any(argument.name in names for argument in node.all_input_nodes):
            names.add(node.name)
    return frozenset(names)


def is_plain(module: nn.Module) -> bool:
    """Return whether a module computes `linear` or `conv2d` of its input with its own weight and bias, nothing else."""
    kind = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    if not isinstance(module, kind) or "forward" in vars(module) or type(module).forward is not kind.forward:
        return False
    if kind is nn.Conv2d and (type(module)._conv_forward is not kind._conv_forward or module.padding_mode != "zeros"):
        return False
    return module._parameters.get("weight") is not None and "bias" in module._parameters


def layer_table(graph: "Graph", shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layer, ...]:
    """Return the quantized layers in network order (METHOD.md, "Quantized layers").

    Args:
        graph: The traced model.
        shapes: Shapes of all tensor-valued nodes for one image, by node name.

    Raises:
        ModelError: A product hides its weight in an argument, so that it would silently stay out of the table.
    """
    _refuse_hidden_weights(graph)
    image_nodes = depends_on_images(graph)
    nodes = [node for node in graph.nodes if node.name in image_nodes and _is_layer(node, graph.module)]
    attention_of = {node.name: scope(node) for node in nodes if _is_matmul(node, graph.module)}
    matmuls: dict[str, list[fx.Node]] = {}
    for node in nodes:
        if node.name in attention_of:
            matmuls.setdefault(attention_of[node.name], []).append(node)
    blocks = _blocks(matmuls)
    finals = _without_later_layer(nodes)
    layers = []
    for node in nodes:
        first = node.args[0]
        is_matmul = node.name in attention_of
        name = node.target
        if is_matmul:
            attention = attention_of[node.name]
            name = f"{attention}.matmul{matmuls[attention].index(node) + 1}"
        kind = _kind(node, nodes, matmuls, finals, graph)
        operation = None if is_matmul else graph.module.get_submodule(node.target)
        inner = shapes[first.name][-1] if is_matmul else operation.weight[0].numel()
        output_shape = shapes[node.name]
        layers.append(
            Layer(
                name=name,
                kind=kind,
                block=next((index for prefix, index in blocks.items() if name.startswith(f"{prefix}.")), None),
                parameters=0 if operation is None else operation.weight.numel(),
                channels=0 if operation is None else operation.weight.shape[0],
                macs=torch.Size(output_shape).numel() * inner,
                input_shape=shapes[first.name],
                output_shape=output_shape,
                node=node.name,
                norm=None if is_matmul else _norm_before(node, graph),
                has_bias=operation is not None and operation.bias is not None,
            )
        )
    return tuple(layers)


def _refuse_hidden_weights(graph: "Graph") -> None:
    """A product that could not be traced back to a module would silently stay out of the table of layers."""
    image_nodes = depends_on_images(graph)
    for node in graph.nodes:
        name = operation_name(node, graph.module)
        if node.name not in image_nodes:
            continue
        parts = graph.module.get_submodule(node.target).modules() if node.op == "call_module" else ()
        if not _is_layer(node, graph.module) and any(isinstance(part, nn.Linear | nn.Conv2d) for part in parts):
            raise ModelError(
                f"{node.target} ({name}) cannot be traced into its operations, so that the layers inside it would stay "
                "out of the table of layers."
            )
        if node.op == "call_function" and name in _HIDDEN_PRODUCTS:
            raise ModelError(
                f"The operation {name} in {scope(node) or 'the model'} takes a weight that is computed on "
                "the way; only Linear and Conv2d modules and matrix products can be quantized."
            )


def _is_matmul(node: fx.Node, module: nn.Module) -> bool:
    return node.op != "call_module" and operation_name(node, module) in _MATMULS


def _is_layer(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return is_plain(module.get_submodule(node.target))
    return _is_matmul(node, module)


def scope(node: fx.Node) -> str:
    """Return the path of the module whose forward contains this operation, empty for the model's own."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack)).split("@")[0] if stack else ""


def _blocks(matmuls: Mapping[str, Sequence[fx.Node]]) -> dict[str, int]:
    """Number the modules that contain an attention, in network order."""
    prefixes = dict.fromkeys(scope.rpartition(".")[0] for scope in matmuls)
    return {prefix: index for index, prefix in enumerate(prefixes) if prefix}


def _without_later_layer(nodes: Sequence[fx.Node]) -> set[str]:
    """Names of the layers whose output reaches the logits without passing another layer."""
    names = {node.name for node in nodes}
    finals = set()
    for node in nodes:
        pending, seen = list(node.users), set()
        while pending:
            user = pending.pop()
            if user.name in names:
                break
            if user.name not in seen:
                seen.add(user.name)
                pending.extend(user.users)
        else:
            finals.add(node.name)
    return finals


def _kind(
    node: fx.Node,
    nodes: Sequence[fx.Node],
    matmuls: Mapping[str, Sequence[fx.Node]],
    finals: set[str],
    graph: "Graph",
) -> str:
    order = {other.name: index for index, other in enumerate(nodes)}
    for products in matmuls.values():
        if node in products:
            return f"matmul{min(products.index(node) + 1, 2)}"
    if node.name in finals:
        return "head"
    if _reads_images(node, graph):
        return "patch_embed"
    is_linear = isinstance(graph.module.get_submodule(node.target), nn.Linear)
    if not is_linear:
        return "other"
    attention = next((path for path in matmuls if node.target.startswith(f"{path}.")), None)
    if attention is not None:
        first, last = matmuls[attention][0], matmuls[attention][-1]
        if order[node.name] < order[first.name]:
            return "qkv"
        return "proj" if order[node.name] > order[last.name] else "other"
    parent = node.target.rpartition(".")[0]
    siblings = [other for other in nodes if other.op == "call_module" and other.target.rpartition(".")[0] == parent]
    if len(siblings) > 1:
        return "fc2" if node is siblings[-1] else "fc1"
    return "reduction" if re.search(r"(^|\.)reduction$", node.target) else "other"


def _reads_images(node: fx.Node, graph: "Graph") -> bool:
    """Return whether a layer's input is the images themselves, padded at most."""
    source = node.args[0]
    while operation_name(source, graph.module) == "pad":
        source = source.args[0]
    return source.op == "placeholder"


def _norm_before(node: fx.Node, graph: "Graph") -> str | None:
    """Name of the LayerNorm node that feeds this layer through layout operations only, None if there is none."""
    source = node.args[0]
    while operation_name(source, graph.module) in _LAYOUT:
        source = source.args[0]
    is_norm = source.op == "call_module" and isinstance(graph.module.get_submodule(source.target), nn.LayerNorm)
    return source.name if is_norm else None
