"""Query-key reparameterization (QKR of OFQ, Liu et al. 2023, arXiv 2302.02210): one weight instead of two.

Per head the scores are (x W_q + b_q)(x W_k + b_k)ᵀ. What is the same for all keys drops out of the softmax, and the
rest is (x M + b_q W_kᵀ) xᵀ with M = W_q W_kᵀ, so that one quantized weight M takes the place of two whose rounding
errors multiply. M is C × C for every head: with H heads the layer has H / 2 times the weights of query and key, and the
product of the attention H times the work. Both are counted in size and BitOps. The published code trains W_q and W_k
and quantizes their product; here M itself is trained.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from mixqvit.errors import UnsupportedOperationError
from mixqvit.network.graph import Graph, operation_name
from mixqvit.network.layer_table import layer_table
from mixqvit.network.layers import Layer

__all__ = ["is_merged", "merge_query_key", "original_layer"]

# What the two layers are called that take the place of a layer that makes query, key and value.
MERGED, VALUE = "query_key", "value"


@dataclass(frozen=True)
class _Attention:
    """Where query, key and value of an attention come from: one Linear, split by reshape, permute and unbind."""

    linear: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    heads: int


def merge_query_key(graph: Graph) -> Graph:
    """Return a graph of the same function whose attentions multiply one merged query-key weight with their input.

    The layer `…attn.qkv` becomes `…attn.query_key` `[heads · C, C]` and `…attn.value` `[C, C]`; the product of query
    and key then multiplies the former's output with the attention's own input.

    Raises:
        UnsupportedOperationError: An attention is not of that form: it makes query and key in another way, or changes
            them by a norm or a rotation before they are multiplied.
    """
    with torch.no_grad(), torch.inference_mode(False):
        found = graph.copied(graph.device)
        module = found.module
        for layer in graph.layers:
            if layer.kind == "matmul1":
                _merge(module, _attention(module, layer))
        module.graph.eliminate_dead_code()
        for node in [n for n in module.graph.nodes if n.op == "call_module" and n.target.endswith("." + MERGED)]:
            module.delete_submodule(f"{node.target.rpartition('.')[0]}.{_old_name(node)}")
        module.graph.lint()
        module.recompile()
        parameters = sum(parameter.numel() for parameter in module.parameters())
        merged = Graph(module, (), graph.input_shape, graph.classes, parameters)
        shapes = {
            name: shape
            for name, shape in merged.shapes(1).items()
            if isinstance(shape, tuple) and all(isinstance(extent, int) for extent in shape)
        }
        return replace(merged, layers=layer_table(merged, shapes), unquantized=graph.unquantized)


def is_merged(graph: Graph) -> bool:
    """Return whether this is a graph that `merge_query_key` made."""
    return any(layer.name.endswith(f".{MERGED}") for layer in graph.layers)


def original_layer(name: str, layers: Mapping[str, Layer]) -> str:
    """Return the name that a layer of the merged graph has in the graph it was made from, itself where it is there."""
    scope, _, own = name.rpartition(".")
    if own not in (MERGED, VALUE):
        return name
    return next(other for other, layer in layers.items() if layer.kind == "qkv" and other.rpartition(".")[0] == scope)


def _attention(module: fx.GraphModule, layer: Layer) -> _Attention:
    """Find what the operands of a product of query and key come from."""
    product = next(node for node in module.graph.nodes if node.name == layer.node)
    query, key = (_through(module, operand, ("mul", "truediv", "transpose")) for operand in product.args[:2])
    unbind = query.args[0] if query.target is operator.getitem else None
    permute = unbind.args[0] if unbind is not None and operation_name(unbind, module) == "unbind" else None
    reshape = permute.args[0] if permute is not None and permute.args[1:] == (2, 0, 3, 1, 4) else None
    linear = reshape.args[0] if reshape is not None and operation_name(reshape, module) in ("reshape", "view") else None
    places = {node.args[1]: node for node in ([] if unbind is None else unbind.users)}
    if (
        linear is None
        or linear.op != "call_module"
        or not isinstance(module.get_submodule(linear.target), nn.Linear)
        or key is not places.get(1)
        or query is not places.get(0)
        or set(places) != {0, 1, 2}
    ):
        raise UnsupportedOperationError(
            f"Query and key of {layer.name} cannot be merged into one weight: the recipe ofq needs attentions that "
            "make query, key and value in one layer and multiply them as they are (ViT, DeiT, Swin). Train with recipe "
            "lsq."
        )
    return _Attention(linear, query, key, places[2], layer.output_shape[1])


def _through(module: fx.GraphModule, node: fx.Node, names: tuple[str, ...]) -> fx.Node:
    """Go back through what scales by a number or swaps tokens and channels."""
    while operation_name(node, module) in names:
        if any(isinstance(argument, fx.Node) for argument in node.args[1:]):
            break
        node = node.args[0]
    return node


def _old_name(node: fx.Node) -> str:
    return node.meta["merged_from"].rpartition(".")[2]


def _merge(module: fx.GraphModule, attention: _Attention) -> None:
    linear: nn.Linear = module.get_submodule(attention.linear.target)
    scope, heads, channels = attention.linear.target.rpartition(".")[0], attention.heads, linear.in_features
    merged, value = _merged_weights(linear, heads)
    module.add_submodule(f"{scope}.{MERGED}", merged)
    module.add_submodule(f"{scope}.{VALUE}", value)
    tokens = attention.linear.args[0]
    graph = module.graph
    with graph.inserting_before(attention.linear):
        one = graph.call_module(f"{scope}.{MERGED}", (tokens,))
        one.meta = dict(attention.linear.meta) | {"merged_from": attention.linear.target}
        other = graph.call_module(f"{scope}.{VALUE}", (tokens,))
        other.meta = dict(attention.linear.meta)

        def per_head(node: fx.Node, size: int) -> fx.Node:
            split = graph.call_method("unflatten", (node, -1, (heads, size)))
            return graph.call_method("transpose", (split, -3, -2))

        query = per_head(one, channels)
        key = graph.call_method("unsqueeze", (tokens, -3))
        values = per_head(other, value.out_features // heads)
    for old, new in ((attention.query, query), (attention.key, key), (attention.value, values)):
        old.replace_all_uses_with(new)


def _merged_weights(linear: nn.Linear, heads: int) -> tuple[nn.Linear, nn.Linear]:
    """Return M with the bias b_q W_kᵀ, head after head, and the layer of the values."""
    query, key, value = linear.weight.unflatten(0, (3, heads, -1))  # [heads, d, C]
    merged = torch.einsum("hdi,hdo->hoi", query, key)
    bias = value_bias = None
    if linear.bias is not None:
        query_bias, _, value_bias = linear.bias.unflatten(0, (3, heads, -1))
        bias = torch.einsum("hd,hdo->ho", query_bias, key).flatten()
        value_bias = value_bias.flatten()
    return _linear(merged.flatten(0, 1), bias), _linear(value.flatten(0, 1), value_bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    # Not initialized: that would take random numbers from whoever trains.
    made: Any = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
    made.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return made.eval()
