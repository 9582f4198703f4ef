"""One palette and one layout for all figures, readable on light and dark pages and by colour-blind people."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from mixqvit.network.layers import KINDS, Layer

__all__ = ["BIT_COLOURS", "DIVERGING", "KIND_COLOURS", "KIND_SYMBOLS", "SEQUENTIAL", "bit_scale", "finish", "row_label"]

BIT_COLOURS = {
    2: "#5b0f2d",
    3: "#9c2a3c",
    4: "#cf5a3c",
    5: "#e39a5b",
    6: "#d3c9a0",
    7: "#b3d9d3",
    8: "#d6ecf7",
    32: "#f4f4f4",
}
"""Bit-widths from darkest and warmest (2) to lightest and coolest (8); full precision is nearly white."""

KIND_COLOURS = dict(
    zip(
        KINDS,
        ("#8c8c8c", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00", "#d55e00", "#b8a500", "#7f5fc7", "#5c6b73"),
        strict=True,
    )
)
"""Layer kinds: the Okabe-Ito colours and three more."""

KIND_SYMBOLS = dict(
    zip(
        KINDS,
        ("x", "circle", "diamond", "square", "cross", "triangle-up", "triangle-down", "star", "hexagon", "pentagon"),
        strict=True,
    )
)
"""A marker per kind, so that colour is never the only difference."""

DIVERGING = "RdBu_r"
"""For relevance, centred on zero: red supports the class, blue speaks against it."""

SEQUENTIAL = "Viridis"
"""For quantities that start at zero, such as importance and harm."""


def bit_scale(widths: Sequence[int] = tuple(BIT_COLOURS)[:-1]) -> list[tuple[float, str]]:
    """Return a stepped plotly colour scale in which each bit-width owns an equal part."""
    steps = len(widths)
    return [
        (position / steps, BIT_COLOURS[width]) for index, width in enumerate(widths) for position in (index, index + 1)
    ]


def finish(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """Give a figure the common layout: transparent ground, tight margins, readable hover; returns it."""
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
    )
    figure.update_layout(**layout)
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def row_label(layer: Layer) -> str:
    """Return the name of the layer's row in the grid of blocks and kinds."""
    return layer.kind if layer.block is None else f"block {layer.block}"
