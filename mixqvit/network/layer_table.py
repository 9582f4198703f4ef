"""Reads the table of quantized layers off a traced graph: structure decides, names only label."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from mixqvit.errors import ModelError
from mixqvit.network.graph import Graph, depends_on_images, operation_name
from mixqvit.network.layers import Layer

__all__ = ["is_plain", "layer_table", "scope"]

_MATMULS = ("matmul", "bmm")
_HIDDEN_PRODUCTS = ("linear", "conv2d", "einsum", "scaled_dot_product_attention")
# Operations that only move or select elements: looking through them finds what feeds a layer.
_LAYOUT = (
    *("reshape", "view", "flatten", "permute", "transpose", "contiguous", "roll", "pad", "getitem", "unbind"),
    *("chunk", "split", "window_partition", "squeeze", "unsqueeze"),
)


def is_plain(module: nn.Module) -> bool:
    """Return whether a module computes `linear` or `conv2d` of its input with its own weight and bias, nothing else."""
    kind = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    if not isinstance(module, kind) or "forward" in vars(module) or type(module).forward is not kind.forward:
        return False
    if kind is nn.Conv2d and (type(module)._conv_forward is not kind._conv_forward or module.padding_mode != "zeros"):
        return False
    return module._parameters.get("weight") is not None and "bias" in module._parameters


def layer_table(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layer, ...]:
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
    products = _products(nodes, graph.module)
    names = {node: name for found in products for node, name in found.names.items()}
    blocks = _blocks(products)
    finals = _without_later_layer(nodes)
    calls: dict[str, list[fx.Node]] = {}
    for node in nodes:
        calls.setdefault(names.get(node, node.target), []).append(node)
    firsts = [own[0] for own in calls.values()]
    layers = []
    for name, own in calls.items():
        node, is_matmul = own[0], own[0] in names
        operation = None if is_matmul else graph.module.get_submodule(node.target)
        inner = shapes[node.args[0].name][-1] if is_matmul else operation.weight[0].numel()
        is_final = all(call.name in finals for call in own)
        layers.append(
            Layer(
                name=name,
                kind=_kind(node, firsts, products, is_final, graph),
                block=next((index for prefix, index in blocks.items() if name.startswith(f"{prefix}.")), None),
                parameters=0 if operation is None else operation.weight.numel(),
                channels=0 if operation is None else operation.weight.shape[0],
                macs=sum(torch.Size(shapes[call.name]).numel() for call in own) * inner,
                input_shape=shapes[node.args[0].name],
                output_shape=shapes[node.name],
                node=node.name,
                norm=None if is_matmul or len(own) > 1 else _norm_before(node, graph),
                has_bias=operation is not None and operation.bias is not None,
                more_nodes=tuple(call.name for call in own[1:]),
            )
        )
    return tuple(layers)


@dataclass(frozen=True)
class _Products:
    """The products of one call of an attention.

    Attributes:
        attention: Path of its module.
        names: What they are called, by node, in the order they run.
    """

    attention: str
    names: Mapping[fx.Node, str]


def _products(nodes: Sequence[fx.Node], module: nn.Module) -> list[_Products]:
    """Group attention products by the call that they belong to; those of later calls are counted on."""
    calls: dict[str, list[fx.Node]] = {}
    for node in nodes:
        if _is_matmul(node, module):
            calls.setdefault(_call(node), []).append(node)
    known: dict[str, int] = {}
    found = []
    for own in calls.values():
        attention = scope(own[0])
        first = known.get(attention, 0)
        known[attention] = first + len(own)
        found.append(_Products(attention, {n: f"{attention}.matmul{k}" for k, n in enumerate(own, first + 1)}))
    return found


def _refuse_hidden_weights(graph: Graph) -> None:
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
    return _call(node).split("@")[0]


def _call(node: fx.Node) -> str:
    """Return the path of that module and which of its calls this is."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack)) if stack else ""


def _blocks(products: Sequence[_Products]) -> dict[str, int]:
    """Number the modules that contain an attention, in network order."""
    prefixes = dict.fromkeys(found.attention.rpartition(".")[0] for found in products)
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


def _kind(node: fx.Node, nodes: Sequence[fx.Node], products: Sequence[_Products], is_final: bool, graph: Graph) -> str:
    order = {other.name: index for index, other in enumerate(nodes)}
    for found in products:
        if node in found.names:
            return f"matmul{min(list(found.names).index(node) + 1, 2)}"
    if is_final:
        return "head"
    if _reads_images(node, graph):
        return "patch_embed"
    is_linear = isinstance(graph.module.get_submodule(node.target), nn.Linear)
    if not is_linear:
        return "other"
    around = next((found.names for found in products if node.target.startswith(f"{found.attention}.")), None)
    if around is not None:
        first, *_ = around
        *_, last = around
        if order[node.name] < order[first.name]:
            return "qkv"
        return "proj" if order[node.name] > order[last.name] else "other"
    parent = node.target.rpartition(".")[0]
    siblings = [other for other in nodes if other.op == "call_module" and other.target.rpartition(".")[0] == parent]
    if len(siblings) > 1:
        return "fc2" if node is siblings[-1] else "fc1"
    return "reduction" if re.search(r"(^|\.)reduction$", node.target) else "other"


def _reads_images(node: fx.Node, graph: Graph) -> bool:
    """Return whether a layer's input is the images themselves, padded at most."""
    source = node.args[0]
    while operation_name(source, graph.module) == "pad":
        source = source.args[0]
    return source.op == "placeholder"


def _norm_before(node: fx.Node, graph: Graph) -> str | None:
    """Name of the LayerNorm node that feeds this layer through layout operations only, None if there is none."""
    source = node.args[0]
    while operation_name(source, graph.module) in _LAYOUT:
        source = source.args[0]
    is_norm = source.op == "call_module" and isinstance(graph.module.get_submodule(source.target), nn.LayerNorm)
    return source.name if is_norm else None
