"""The standard grid of the dashboard: blocks × layer kinds, in network order from top to bottom and left to right."""

import re
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from mixqvit.network.layers import KINDS, Layer
from mixqvit.views.style import finish, row_label

__all__ = ["blocks_by_kinds", "cells", "layer_frame"]

_ROW_HEIGHT, _FRAME_HEIGHT, _BAR_HEIGHT = 32, 75, 70  # pixels
_SHORT_TEXT = 5  # characters
_TAG = re.compile("<[^>]*>")


def cells(layers: Sequence[Layer]) -> dict[str, tuple[str, str]]:
    """Return the (row, column) labels of every layer in the grid, rows in network order.

    A row is a block, or a run of layers of one kind outside of blocks. Where a row holds a kind more than once (two
    heads, a gated MLP), the further ones get columns of their own.
    """
    places: dict[str, tuple[str, str]] = {}
    runs: dict[str, int] = {}
    previous = row = None
    for layer in layers:
        label = row_label(layer)
        if layer.block is None and label != previous:
            runs[label] = runs.get(label, 0) + 1
        row = label if runs.get(label, 1) == 1 else f"{label} {runs[label]}"
        previous = label
        again = sum(place[0] == row and place[1].split()[0] == layer.kind for place in places.values())
        places[layer.name] = (row, f"{layer.kind} {again + 1}" if again else layer.kind)
    return places


def blocks_by_kinds(
    layers: Sequence[Layer],
    values: Mapping[str, float],
    *,
    colours: str | Sequence[tuple[float, str]],
    title: str,
    text: Callable[[Layer, float], str],
    hover: Callable[[Layer, float], str],
    limits: tuple[float, float] | None = None,
    ticks: Sequence[float] | None = None,
) -> go.Figure:
    """Draw one value per layer as a heatmap of blocks × kinds.

    Args:
        layers: The table of layers.
        values: One number by layer name; layers without one stay blank.
        colours: A plotly colour scale, by name or as (position, colour).
        title: Title of the colour bar, with the unit.
        text: What is printed in a cell, from the layer and its value.
        hover: What is shown below the layer's full name on hover, from the layer and its value; lines end in `<br>`.
        limits: Values at the two ends of the colour scale; by default the least and the largest value.
        ticks: Values that the colour bar names.
    """
    places = cells(layers)
    rows = list(dict.fromkeys(row for row, _ in places.values()))
    columns = sorted({column for _, column in places.values()}, key=_column_order)
    numbers = [[None] * len(columns) for _ in rows]
    texts, hovers = ([[""] * len(columns) for _ in rows] for _ in range(2))
    for layer in layers:
        if layer.name in values:
            row, column = rows.index(places[layer.name][0]), columns.index(places[layer.name][1])
            value = values[layer.name]
            numbers[row][column] = value
            texts[row][column] = text(layer, value)
            hovers[row][column] = f"<b>{layer.name}</b><br>{hover(layer, value)}"
    lowest, highest = limits or (None, None)
    heatmap = go.Heatmap(
        z=numbers,
        x=columns,
        y=rows,
        text=texts,
        texttemplate="%{text}",
        hovertext=hovers,
        hovertemplate="%{hovertext}<extra></extra>",
        hoverongaps=False,
        colorscale=colours,
        zmin=lowest,
        zmax=highest,
        xgap=2,
        ygap=2,
        # Below, so that narrow screens have room for the cells.
        colorbar={
            "title": {"text": title, "side": "top"},
            "thickness": 12,
            "tickvals": ticks,
            "orientation": "h",
            "y": 0,
            "yanchor": "top",
            "ypad": 8,
            "len": 0.8,
        },
    )
    if max(len(_TAG.sub("", found)) for row in texts for found in row) <= _SHORT_TEXT:
        heatmap.textfont = {"size": 11}  # plotly shrinks all to what fits the longest, tags included
    figure = finish(go.Figure(heatmap), _FRAME_HEIGHT + _BAR_HEIGHT + _ROW_HEIGHT * len(rows))
    figure.update_layout(margin_b=_BAR_HEIGHT)
    figure.update_xaxes(type="category", side="top", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def layer_frame(layers: Sequence[Layer], columns: Mapping[str, Mapping[str, object]]) -> pd.DataFrame:
    """Return a table with one row per layer: name, kind, block and the given columns, each a mapping by layer name."""
    return pd.DataFrame(
        {
            "layer": [layer.name for layer in layers],
            "kind": [layer.kind for layer in layers],
            "block": pd.array([layer.block for layer in layers], dtype="Int64"),
            **{name: [by_layer.get(layer.name) for layer in layers] for name, by_layer in columns.items()},
        }
    )


def _column_order(column: str) -> tuple[int, int]:
    kind, _, number = column.partition(" ")
    return KINDS.index(kind), int(number or 1)
