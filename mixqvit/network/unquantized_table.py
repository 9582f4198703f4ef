"""Reads the operations with weights that are in no layer off a traced graph."""

from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from mixqvit.network.graph import Graph, depends_on_images, operation_name
from mixqvit.network.layer_table import scope
from mixqvit.network.unquantized import UnquantizedOperation

__all__ = ["unquantized_operations"]

# Functions that multiply with a weight and are no layers; where the weight is among their arguments.
_FUNCTIONS = {
    **dict.fromkeys(("conv1d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 1),
    **dict.fromkeys(("addmm", "baddbmm"), 2),
}


def unquantized_operations(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> tuple[UnquantizedOperation, ...]:
    """Return the operations with weights that are in no layer, in network order; arguments as in `layer_table`."""
    image_nodes, layers = depends_on_images(graph), graph.layer_of()
    found: dict[str, UnquantizedOperation] = {}
    for node in graph.nodes:
        weights = _weights(node, graph) if node.name in image_nodes and node.name not in layers else []
        if weights:
            name = node.target if node.op == "call_module" else scope(node) or operation_name(node, graph.module)
            known = found.get(name)
            macs = _macs(node, graph, weights, shapes) + (known.macs if known else 0)
            parameters = sum(weight.numel() for weight in weights)
            found[name] = UnquantizedOperation(name, operation_name(node, graph.module), parameters, macs)
    return tuple(found.values())


def _weights(node: fx.Node, graph: Graph) -> list[Tensor]:
    if node.op == "call_module":
        return [value for value in graph.module.get_submodule(node.target).parameters() if value.dim() > 1]
    place = _FUNCTIONS.get(operation_name(node, graph.module))
    if node.op != "call_function" or place is None or len(node.args) <= place:
        return []
    source = node.args[place]
    is_parameter = isinstance(source, fx.Node) and source.op == "get_attr"
    return [graph.compute(source, {})] if is_parameter else []


def _macs(node: fx.Node, graph: Graph, weights: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]]) -> int:
    elements = sum(weight.numel() for weight in weights)
    kind = operation_name(node, graph.module)
    module = graph.module.get_submodule(node.target) if node.op == "call_module" else None
    inputs = prod(shapes.get(node.args[0].name, ())) if node.args and isinstance(node.args[0], fx.Node) else 0
    if isinstance(module, nn.RNNBase):
        return inputs // module.input_size * elements  # every weight once for every step
    if isinstance(module, nn.Embedding):
        return 0
    if isinstance(module, _ConvTransposeNd) or kind.startswith("conv_transpose"):
        return inputs * weights[0][0].numel()
    if isinstance(module, _ConvNd) or kind.startswith("conv"):
        return prod(shapes[node.name]) * weights[0][0].numel()
    if kind in _FUNCTIONS:
        return prod(shapes[node.name]) * weights[0].shape[-2]
    return elements
