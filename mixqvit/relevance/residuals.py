"""Where the network adds a branch to its residual stream, read off the graph."""

from collections.abc import Mapping
from dataclasses import dataclass

from mixqvit.network.graph import Graph, operation_name

__all__ = ["Residual", "residuals"]


@dataclass(frozen=True)
class Residual:
    """One residual sum.

    Attributes:
        block: Index of the transformer block.
        branch: `attention` or `mlp`.
        branch_node: Name of the summand that is the branch; the other one is the skip connection.
    """

    block: int
    branch: str
    branch_node: str


def residuals(graph: Graph, image_nodes: frozenset[str]) -> Mapping[str, Residual]:
    """Return the residual sums of all blocks by the name of the node that adds, in network order.

    A sum is residual where only one of its two activations has layers behind it that the other has not.
    """
    layers = {layer.node: layer for layer in graph.layers}
    behind: dict[str, frozenset[str]] = {}
    found = {}
    for node in graph.nodes:
        operands = [operand for operand in node.all_input_nodes if operand.name in image_nodes]
        behind[node.name] = frozenset().union(*(behind[operand.name] for operand in operands))
        if operation_name(node, graph.module) == "add" and len(operands) == 2:
            first, second = (behind[operand.name] for operand in operands)
            if bool(first - second) != bool(second - first):
                branch = operands[0] if first - second else operands[1]
                own = [layers[name] for name in first ^ second]
                blocks = {layer.block for layer in own}
                if len(blocks) == 1 and None not in blocks:
                    kind = "attention" if any(layer.is_matmul for layer in own) else "mlp"
                    found[node.name] = Residual(blocks.pop(), kind, branch.name)
        if node.name in layers:
            behind[node.name] |= {node.name}
    return found
