"""Paused runs that are kept, so that the next setting runs only from the first layer that changed.

What a quantized network computes before a layer depends only on the bits of the layers before it, so a paused run is
found again by those.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from mixqvit.network.bits import BitsPerLayer
from mixqvit.network.graph import Graph, Operation, Values
from mixqvit.network.layers import Layer

__all__ = [
    "PausedRun",
    "PausedRuns",
    "latest_paused_run",
    "layers_before",
    "pause_key",
    "pause_nodes",
    "run_from_paused",
    "walk_from_paused",
]


MOST_NODES = 8
"""Places at which one run is paused, at most: what is kept of each is as large as a block's input."""


@dataclass(frozen=True)
class PausedRun:
    """A run paused before a node.

    Attributes:
        node: Name of the node.
        values: What `Graph.walk` yielded there; shared, never changed.
        operations: What ran instead of earlier layers, by graph node, where that was not known beforehand.
    """

    node: str
    values: Values
    operations: Mapping[str, Any]


class PausedRuns:
    """A bounded set of paused runs, safe to share between threads; the least recently used are dropped."""

    def __init__(self, limit_bytes: int) -> None:
        """Keep at most so many bytes of values."""
        self.limit_bytes = limit_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[PausedRun, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> PausedRun | None:
        """Return what is kept under a key."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, paused_run: PausedRun) -> None:
        """Keep a paused run, if it is not more than a small part of what may be kept.

        Compensated weights count with every run that holds them, although later runs share them.
        """
        weights = sum(operation.prepared.bytes for operation in paused_run.operations.values())
        size = _bytes(paused_run.values) + weights
        if size > self.limit_bytes // 8:
            return
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = (paused_run, size)
            self._bytes += size
            while self._bytes > self.limit_bytes:
                self._bytes -= self._kept.popitem(last=False)[1][1]


def pause_nodes(graph: Graph) -> tuple[str, ...]:
    """Return where runs are paused: before the first layer of some blocks, evenly spread, and of what follows them."""
    starts = [layer.node for before, layer in pairwise(graph.layers) if before.block != layer.block]
    return tuple(starts[:: -(-len(starts) // MOST_NODES)])


def walk_from_paused(
    graph: Graph,
    pixels: Tensor,
    stops: Collection[str],
    operations: Mapping[str, Operation],
    start: PausedRun | None,
) -> Iterator[tuple[str, Values]]:
    """Walk as `Graph.walk` does, from a paused run where there is one; stops before it are left out."""
    if start is None:
        return graph.walk(pixels, stops, operations)
    order = {node.name: index for index, node in enumerate(graph.nodes)}
    later = [node for node in stops if order[node] >= order[start.node]]
    return graph.walk(pixels, later, operations, (start.node, start.values))


def latest_paused_run(
    paused_runs: PausedRuns, name: Hashable, graph: Graph, bits: BitsPerLayer | None
) -> PausedRun | None:
    """Return the paused run that is furthest on among those that led there with the same bits."""
    for node in reversed(pause_nodes(graph)):
        found = paused_runs.get(pause_key(name, graph, node, bits))
        if found is not None:
            return found
    return None


def pause_key(name: Hashable, graph: Graph, node: str, bits: BitsPerLayer | None) -> Hashable:
    """Return what a paused run is kept under: a name, the node, and the bits of the layers before it."""
    if bits is None:
        return (name, node)
    return (name, node, tuple(bits[layer.name] for layer in layers_before(graph, node)))


def layers_before(graph: Graph, node: str) -> list[Layer]:
    """Return the layers that run before a node."""
    order = {operation.name: index for index, operation in enumerate(graph.nodes)}
    return [layer for layer in graph.layers if order[layer.node] < order[node]]


def run_from_paused(
    graph: Graph,
    pixels: Tensor,
    operations: Mapping[str, Operation],
    bits: BitsPerLayer,
    paused_runs: PausedRuns,
    name: Hashable,
) -> Tensor:
    """Return the logits of a quantized network, running only what no earlier run with the same first layers did.

    Args:
        graph: The traced model.
        pixels: Images `[B, C, H, W]`.
        operations: What runs instead of each quantized layer, by graph node.
        bits: (weight bits, activation bits) per layer that led to the operations.
        paused_runs: Where paused runs are kept.
        name: What the images are, and whatever else the operations depend on beside the bits.
    """
    start = latest_paused_run(paused_runs, name, graph, bits)
    nodes = pause_nodes(graph)
    node, values = None, None
    for node, values in walk_from_paused(graph, pixels, nodes, operations, start):
        paused_runs.put(pause_key(name, graph, node, bits), PausedRun(node, values, {}))
    return graph.resume(values, node, operations) if node is not None else graph.run(pixels, operations)[0]


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return sum(_bytes(part) for part in parts)
