"""Everything about single images from one pass: pixels, tokens block by block, heads, attribution of the patches."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.errors import UnsupportedOperationError
from mixqvit.network.graph import Graph, depends_on_images, operation_name
from mixqvit.relevance.attribution import attention_evidence, class_token_attentions, rollout
from mixqvit.relevance.propagation import in_precision, propagate, token_grid
from mixqvit.relevance.result import Relevance
from mixqvit.relevance.rules.shared import Layout

__all__ = ["Explanation", "explain", "head_maps"]


@dataclass(frozen=True)
class Explanation:
    """What the decisions for N images rest on.

    Attributes:
        relevance: Pixels, patches, token maps, branches and exits.
        heads: By block, relevance of every head's output at every patch token `[N, heads, h, w]`.
        attribution: Rollout of gradient × relevance `[N, patches]`; None without a class token.
        attribution_heads: By block, gradient × relevance from the class token to the patches `[N, heads, patches]`;
            None without a class token.
    """

    relevance: Relevance
    heads: Mapping[int, Tensor]
    attribution: Tensor | None
    attribution_heads: Mapping[int, Tensor] | None


def explain(graph: Graph, pixels: Tensor, targets: Tensor | int | None = None, *, rules: str = "chefer") -> Explanation:
    """Explain every image for its class; arguments, precision and errors as in `propagate`.

    Meant for a few images: the attention of all of them is in memory at once.
    """
    graph = in_precision(graph, torch.float64)
    products = {
        layer.block: layer.name for layer in graph.layers if layer.kind == "matmul2" and layer.block is not None
    }
    try:
        attentions = class_token_attentions(graph)
    except UnsupportedOperationError:
        attentions = None
    keep = (*products.values(), *(attentions.nodes.values() if attentions else ()))
    relevance = propagate(graph, pixels, targets, rules=rules, keep=keep)
    heads = head_maps(graph, pixels, {block: relevance.outputs[name] for block, name in products.items()})
    if attentions is None:
        return Explanation(relevance, heads, None, None)
    evidence = attention_evidence(graph, pixels, relevance, attentions)
    to_patches = {block: found[:, :, 0, -attentions.patches :] for block, found in evidence.items()}
    return Explanation(relevance, heads, rollout(evidence, attentions), to_patches)


def head_maps(graph: Graph, pixels: Tensor, at_products: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
    """Put the relevance of the heads' outputs on the grid of patches.

    The sums over a head's channels take the place of what the projection of the attention computes, and go through
    the movements that follow it: windows, shifts and padding are undone by the network's own operations.

    Args:
        graph: The traced model, in the precision of the relevance.
        pixels: The explained images `[N, C, H, W]`.
        at_products: By block, relevance at the output of A·V, `[N, heads, tokens, d]` or
            `[N, windows, heads, tokens, d]`.

    Returns:
        By block `[N, heads, h, w]`; blocks whose tokens are on no grid (class attention) are left out.
    """
    replaced, ends = {}, {}
    image_nodes = depends_on_images(graph)
    for layer in graph.layers:
        if layer.kind == "proj" and layer.block in at_products:
            by_token = at_products[layer.block].sum(-1).transpose(-1, -2)  # [N, (windows,) tokens, heads]
            width = layer.output_shape[-1] - by_token.shape[-1]
            padded = torch.nn.functional.pad(by_token.flatten(0, -3), (0, width))
            replaced[layer.node] = lambda _, padded=padded: padded
            ends[layer.block] = _end_of_movement(graph, layer.node, image_nodes)
    with torch.no_grad():
        precise = pixels.detach().to(next(graph.module.parameters()).dtype)
        _, moved = graph.run(precise, replaced, keep=set(ends.values()))
    maps = {}
    for block, end in ends.items():
        heads = at_products[block].shape[-3]
        found = [token_grid(moved[end][..., head], graph) for head in range(heads)]
        if found[0].ndim == 3:
            maps[block] = torch.stack(found, dim=1)
    return maps


def _end_of_movement(graph: Graph, start: str, image_nodes: frozenset[str]) -> str:
    """Follow a node through what only moves values; return the last such node's name."""
    node = next(node for node in graph.nodes if node.name == start)
    while True:
        users = [user for user in node.users if user.name in image_nodes]
        if len(users) != 1 or not Layout.covers(operation_name(users[0], graph.module)):
            return node.name
        node = users[0]
