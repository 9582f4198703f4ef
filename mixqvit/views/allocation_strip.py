"""The network as a strip: one cell per layer in network order, coloured by its bits."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from mixqvit.network.bits import BIT_WIDTHS, Bits, is_tied
from mixqvit.network.layers import Layer
from mixqvit.views.allocation_words import LayerFacts, mark
from mixqvit.views.style import BIT_COLOURS, bit_scale, finish

__all__ = ["FULL_PRECISION_STEP", "allocation_strip", "bit_step", "difference_strip"]

FULL_PRECISION_STEP = BIT_WIDTHS[-1] + 1
"""The place of full precision on the scale of colours."""

_ROW_HEIGHT, _FRAME_HEIGHT = 30, 34  # pixels
_LINES = "#7f8a92"
_MARK_COLOURS = {"▲": "#2a8fd6", "▼": "#d55e00", "◆": "#8a8f94", "●": "#8a8f94"}
_CHANGED, _PINNED = "changed", "pinned"


def bit_step(bits: int) -> int:
    """Return the place of a bit-width on the scale of colours."""
    return min(bits, FULL_PRECISION_STEP)


def allocation_strip(layers: Sequence[Layer], facts: LayerFacts, tied: bool) -> go.Figure:
    """Draw an allocation over the network, above the one before it; marks say what changed and what is pinned.

    Args:
        layers: The table of layers, in network order.
        facts: The allocation, the one before, and what is known of the layers.
        tied: Whether both operands share their bits, so that one row shows them.
    """
    hovers = {layer.name: f"<b>{layer.name}</b><br>{facts.hover(layer)}" for layer in layers}
    rows = _rows(layers, "now", facts.bits, tied) | _rows(layers, "before", facts.previous, tied)
    marks = {
        _CHANGED: {layer.name: facts.mark(layer.name) for layer in layers},
        _PINNED: {layer.name: "●" for layer in layers if facts.is_held(layer)},
    }
    return _strip(layers, rows, hovers, marks, [_CHANGED, *rows, _PINNED])


def difference_strip(layers: Sequence[Layer], first: Mapping[str, Bits], second: Mapping[str, Bits]) -> go.Figure:
    """Draw allocation A over allocation B; ▲ and ▼ say where B has more and fewer bits."""
    tied = all(is_tied(layer, bits[layer.name]) for layer in layers for bits in (first, second))
    rows = _rows(layers, "A", first, tied) | _rows(layers, "B", second, tied)
    hovers = {
        layer.name: f"<b>{layer.name}</b><br>A: {_pair(first[layer.name])}<br>B: {_pair(second[layer.name])}"
        for layer in layers
    }
    marks = {"B has": {layer.name: mark(first[layer.name], second[layer.name]) for layer in layers}}
    return _strip(layers, rows, hovers, marks, [*rows, "B has"])


def _pair(bits: Bits) -> str:
    return f"{bits[0]} and {bits[1]} bits"


def _rows(layers: Sequence[Layer], name: str, bits: Mapping[str, Bits] | None, tied: bool) -> dict[str, dict[str, int]]:
    """Return bits by row title and layer name: one row, or one for weights and one for inputs; empty without bits."""
    titles = [name] if tied else [f"{name}, weights", f"{name}, inputs"]
    return {
        title: {} if bits is None else {layer.name: bits[layer.name][operand] for layer in layers}
        for operand, title in enumerate(titles)
    }


def _strip(
    layers: Sequence[Layer],
    rows: Mapping[str, Mapping[str, int]],
    hovers: Mapping[str, str],
    marks: Mapping[str, Mapping[str, str]],
    order: Sequence[str],
) -> go.Figure:
    names = [layer.name for layer in layers]
    places = list(range(len(names)))
    heights = {title: len(order) - 1 - place for place, title in enumerate(order)}
    numbers = [[row.get(name) for name in names] for row in rows.values()]
    figure = go.Figure(
        go.Heatmap(
            x=places,
            y=[heights[title] for title in rows],
            z=[[None if bits is None else bit_step(bits) for bits in row] for row in numbers],
            text=[["" if bits is None else str(bits) for bits in row] for row in numbers],
            texttemplate="%{text}",
            hovertext=[[hovers[name] for name in names]] * len(rows),
            hovertemplate="%{hovertext}<extra></extra>",
            hoverongaps=False,
            colorscale=bit_scale(tuple(BIT_COLOURS)),
            zmin=BIT_WIDTHS[0] - 0.5,
            zmax=FULL_PRECISION_STEP + 0.5,
            showscale=False,
            xgap=1,
            ygap=3,
        )
    )
    for title, signs in marks.items():
        at = [(place, signs[name]) for place, name in enumerate(names) if signs.get(name)]
        figure.add_scatter(
            x=[place for place, _ in at],
            y=[heights[title]] * len(at),
            text=[sign for _, sign in at],
            textfont={"color": [_MARK_COLOURS[sign] for _, sign in at], "size": 13},
            mode="text",
            hoverinfo="skip",
            showlegend=False,
            name=title,
        )
    ticks = _ticks(layers)
    for boundary in _boundaries(layers):
        figure.add_vline(boundary - 0.5, line={"color": _LINES, "width": 1})
    finish(figure, _FRAME_HEIGHT + _ROW_HEIGHT * len(order), margin={"l": 10, "r": 10, "t": 4, "b": 10})
    figure.update_xaxes(
        tickvals=list(ticks),
        ticktext=list(ticks.values()),
        tickangle=0,
        range=[-0.6, len(names) - 0.4],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(
        tickvals=list(heights.values()),
        ticktext=list(heights),
        range=[-0.5, len(order) - 0.5],
        showgrid=False,
        zeroline=False,
    )
    return figure


def _groups(layers: Sequence[Layer]) -> list[tuple[int | None, list[int]]]:
    """Return runs of layers of one block as (block, their places)."""
    runs: list[tuple[int | None, list[int]]] = []
    for place, layer in enumerate(layers):
        if not runs or runs[-1][0] != layer.block:
            runs.append((layer.block, []))
        runs[-1][1].append(place)
    return runs


def _ticks(layers: Sequence[Layer]) -> dict[float, str]:
    """Return the number of every block by the middle of its place; the first says what is numbered."""
    blocks = [(sum(places) / len(places), str(block)) for block, places in _groups(layers) if block is not None]
    return {place: f"block {block}" if place == blocks[0][0] else block for place, block in blocks}


def _boundaries(layers: Sequence[Layer]) -> list[int]:
    """Return the place of the first layer of every run but the first."""
    return [places[0] for _, places in _groups(layers)][1:]
