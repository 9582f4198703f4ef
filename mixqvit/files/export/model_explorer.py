"""Node data for Model Explorer (https://github.com/google-ai-edge/model-explorer): bits, importance, sensitivity.

Each overlay is one `GraphNodeData` document without a graph's name, which Model Explorer lays over the graph that is
open. Its keys fit two graphs of the same model:

- the ONNX file that this program exports, opened with the adapter `model-explorer-onnx`, where an operation's id is its
  node's name; the node that multiplies is named after its layer;
- the `.pt2` file that `torch.export` saves of timm's model, opened by Model Explorer itself, where the id is the
  operation's name in the exported graph, `linear_3`; attention products are one fused operation there and have no data.

Keys that a graph does not have are left out of the picture by Model Explorer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, Bits, resolve_bits
from mixqvit.network.graph import Graph, operation_name

__all__ = ["SENSITIVITY_BITS", "exported_program_nodes", "overlays"]

SENSITIVITY_BITS = 4
"""Bits that the sensitivity of all layers is shown at, whatever they got."""

_BIT_COLOURS = ("#5b0f2d", "#9c2a3c", "#cf5a3c", "#e39a5b", "#d3c9a0", "#b3d9d3", "#d6ecf7", "#f4f4f4")
"""Those of the dashboard: 2 to 8 bits, then full precision."""

_GRADIENT = ({"stop": 0, "bgColor": "#f7fbff"}, {"stop": 0.5, "bgColor": "#6baed6"}, {"stop": 1, "bgColor": "#08306b"})


def overlays(
    graph: Graph,
    bits: Mapping[str, int | Bits],
    importance: Mapping[str, float] | None = None,
    sensitivity: Mapping[str, Mapping[int, float]] | None = None,
    metric: str = "kl",
) -> dict[str, dict[str, Any]]:
    """Return node data by the overlay's short name, each as JSON can write it.

    Args:
        graph: The traced model.
        bits: Bits by layer name.
        importance: Ω by layer name; None leaves that overlay out.
        sensitivity: Λ by layer name and bit-width; None leaves that overlay out.
        metric: What Λ is measured by.

    Raises:
        BitWidthError: A bit-width or layer name is not possible.
    """
    resolved = resolve_bits(graph.layers, bits)
    keys = {layer.name: [layer.name] for layer in graph.layers}
    for name, node in exported_program_nodes(graph).items():
        keys[name].append(node)
    found = {
        "weight_bits": _bits("Weight bits (first factor of a product)", _column(resolved, 0), keys),
        "activation_bits": _bits("Activation bits (second factor of a product)", _column(resolved, 1), keys),
    }
    if importance is not None:
        found["importance"] = _shaded("Importance Ω", importance, keys)
    if sensitivity is not None:
        values = {name: row[SENSITIVITY_BITS] for name, row in sensitivity.items()}
        found["sensitivity"] = _shaded(f"Sensitivity Λ at {SENSITIVITY_BITS} bits ({metric})", values, keys)
    return found


def exported_program_nodes(graph: Graph) -> dict[str, str]:
    """Return by layer name what `torch.export` calls its operation: Linear layers and convolutions are numbered."""
    counts: dict[str, int] = {}
    found = {}
    layers = {node: layer.name for node, layer in graph.layer_of().items() if not layer.is_matmul}
    for node in graph.nodes:
        module = graph.module.get_submodule(node.target) if node.op == "call_module" else None
        is_linear = isinstance(module, nn.Linear) or operation_name(node, graph.module) == "linear"
        is_convolution = isinstance(module, nn.Conv2d) or operation_name(node, graph.module) == "conv2d"
        if not is_linear and not is_convolution:
            continue
        kind = "linear" if is_linear else "conv2d"
        before = counts.setdefault(kind, 0)
        counts[kind] += 1
        if node.name in layers:
            found[layers[node.name]] = f"{kind}_{before}" if before else kind
    return found


def _column(bits: Mapping[str, Bits], operand: int) -> dict[str, int]:
    return {name: pair[operand] for name, pair in bits.items()}


def _bits(title: str, values: Mapping[str, int], keys: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    thresholds = [
        {"value": width, "bgColor": colour}
        for width, colour in zip((*BIT_WIDTHS, FULL_PRECISION), _BIT_COLOURS, strict=True)
    ]
    # The sum of bits over nodes means nothing.
    return {
        "name": title,
        "results": _results(values, keys),
        "thresholds": thresholds,
        "hideAggregatedStats": ["sum"],
    }


def _shaded(title: str, values: Mapping[str, float], keys: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {"name": title, "results": _results(values, keys), "gradient": [dict(stop) for stop in _GRADIENT]}


def _results(values: Mapping[str, float], keys: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    return {key: {"value": value} for name, value in values.items() for key in keys[name]}
