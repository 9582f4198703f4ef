"""What every layer reads, also those that are called several times."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from mixqvit.network.graph import Graph, Operation
from mixqvit.network.layers import Layer

__all__ = ["layer_operands"]


def layer_operands(
    graph: Graph,
    pixels: Tensor,
    layers: Sequence[Layer] | None = None,
    replace: Mapping[str, Operation] | None = None,
) -> Iterator[tuple[Layer, tuple[Tensor, ...]]]:
    """Run the network once, pausing at every layer, at the last call of those that are called several times.

    Args:
        graph: The traced model.
        pixels: Images `[N, C, H, W]`.
        layers: The layers; all by default.
        replace: As in `Graph.run`; may grow while paused.

    Yields:
        The layer and the values of `Layer.activations`.

    Raises:
        ImageError: The images do not have the shape the model was traced with.
    """
    stops = graph.layer_of(layers)
    earlier: dict[str, tuple[Tensor, ...]] = {}
    for node, values in graph.walk(pixels, list(stops), replace):
        layer = stops[node]
        operands = earlier.pop(layer.name, ()) + graph.operands(layer, values, node)
        if node == layer.nodes[-1]:
            yield layer, operands
        else:
            earlier[layer.name] = operands
