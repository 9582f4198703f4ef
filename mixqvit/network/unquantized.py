"""Operations with weights that are in no layer: they stay in full precision, and sizes and BitOps count them so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from mixqvit.network.layer_table import depends_on_images, operation_name, scope

if TYPE_CHECKING:
    from mixqvit.network.graph import Graph

__all__ = ["WARNING_SHARE", "UnquantizedOperation", "sentence", "unquantized_operations"]

WARNING_SHARE = 0.05
"""From this share of the weights or of the multiply-accumulates on, bits say little about the whole model."""

_NAMED = 3
# Functions that multiply with a weight and are no layers; where the weight is among their arguments.
_FUNCTIONS = {
    **dict.fromkeys(("conv1d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 1),
    **dict.fromkeys(("addmm", "baddbmm"), 2),
}


@dataclass(frozen=True)
class UnquantizedOperation:
    """An operation that multiplies with weights and is no layer.

    Attributes:
        name: Path of its module.
        kind: Its class or function: `LSTM`, `Conv1d`, ...
        parameters: Elements of its weights, biases left out.
        macs: Multiply-accumulate operations for one image, all calls together; where the class is unknown one for each
            weight, the least there can be.
    """

    name: str
    kind: str
    parameters: int
    macs: int


def unquantized_operations(graph: "Graph", shapes: Mapping[str, tuple[int, ...]]) -> tuple[UnquantizedOperation, ...]:
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


def sentence(operations: Sequence[UnquantizedOperation], parameters: int, macs: int) -> str:
    """Return what is not quantized, in words.

    Args:
        operations: At least one.
        parameters: Parameters of the whole model.
        macs: Multiply-accumulates of the whole model for one image.
    """
    own, work = sum(found.parameters for found in operations), sum(found.macs for found in operations)
    named = ", ".join(f"{found.name} ({found.kind})" for found in operations[:_NAMED])
    more = f" and {len(operations) - _NAMED} more" if len(operations) > _NAMED else ""
    return (
        f"{_percent(own / parameters)} of the weights and {_percent(work / macs)} of the multiply-accumulates are not "
        f"quantized: {named}{more}. They stay in 32-bit floating point whatever the bits are; model size and BitOps "
        "count them so."
    )


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def _weights(node: fx.Node, graph: "Graph") -> list[Tensor]:
    if node.op == "call_module":
        return [value for value in graph.module.get_submodule(node.target).parameters() if value.dim() > 1]
    place = _FUNCTIONS.get(operation_name(node, graph.module))
    if node.op != "call_function" or place is None or len(node.args) <= place:
        return []
    source = node.args[place]
    is_parameter = isinstance(source, fx.Node) and source.op == "get_attr"
    return [graph.compute(source, {})] if is_parameter else []


def _macs(node: fx.Node, graph: "Graph", weights: Sequence[Tensor], shapes: Mapping[str, tuple[int, ...]]) -> int:
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
