"""Figures of the Sensitivity page: harm Λ against bits, and its grid at one bit-width."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.network.layers import Layer
from mixqvit.tasks.metrics import Metric
from mixqvit.views.grid import blocks_by_kinds, layer_frame
from mixqvit.views.labels import short_labels
from mixqvit.views.numbers import percent
from mixqvit.views.style import KIND_COLOURS, KIND_SYMBOLS, SEQUENTIAL, finish, row_label

if TYPE_CHECKING:
    from mixqvit.criteria.sensitivity.sweep import SensitivityCell

__all__ = [
    "FLOOR",
    "GROUPS",
    "brief",
    "complete",
    "first_to_break",
    "harm_curves",
    "harm_frame",
    "harm_grid",
    "long_frame",
    "rising",
    "selected",
    "setting_words",
    "table",
    "undrawable",
    "worst",
]

Harms = Mapping[str, Mapping[int, float]]
"""Λ by layer name and bit-width; bit-widths that are not measured yet are absent."""

Intervals = Mapping[str, Mapping[int, tuple[float, float]]]
"""95 % interval of Λ by layer name and bit-width."""

FLOOR = 1e-8
"""Harm below which a logarithmic scale shows no difference; float32 logits resolve no less."""

GROUPS = ("kind", "block")
"""What the colour of a curve can say."""

_HEIGHT = 460  # pixels
_MUTED = "#7a868d"
_BAND_OPACITY = 0.4
_ENDS = (0.22, 0.9)  # the part of the scale that is seen on light and on dark ground


def table(cells: Iterable["SensitivityCell"], metric: Metric) -> dict[str, dict[int, float]]:
    """Return measured cells as Λ by layer name and bit-width, by one metric."""
    harms: dict[str, dict[int, float]] = {}
    for cell in cells:
        harms.setdefault(cell.layer, {})[cell.bits] = metric.harm(cell.effect)
    return harms


def complete(layers: Sequence[Layer], harms: Harms, operands: str) -> bool:
    """Return whether every layer that has such operands is measured at every bit-width."""
    swept = [layer for layer in layers if operands != "weights" or not layer.is_matmul]
    return all(len(harms.get(layer.name, {})) == len(BIT_WIDTHS) for layer in swept)


def selected(layers: Sequence[Layer], kinds: Collection[str], blocks: Collection[int]) -> list[Layer]:
    """Return the layers of these kinds and blocks; an empty collection leaves all in."""
    return [layer for layer in layers if (not kinds or layer.kind in kinds) and (not blocks or layer.block in blocks)]


def setting_words(baseline: int) -> str:
    """Say what the layers are left at that are not swept."""
    return "in full precision" if baseline == FULL_PRECISION else f"at {baseline} bits"


def undrawable(layers: Sequence[Layer], harms: Harms) -> int:
    """Return how many harms a logarithmic scale cannot place: zero, negative or below `FLOOR`."""
    return sum(value < FLOOR for layer in layers for value in harms.get(layer.name, {}).values())


def harm_curves(
    layers: Sequence[Layer],
    harms: Harms,
    metric: Metric,
    *,
    logarithmic: bool,
    by: str = "kind",
    highlighted: str | None = None,
    intervals: Intervals | None = None,
) -> go.Figure:
    """Draw Λ against bits, one curve per layer as measured.

    Args:
        layers: The layers to draw.
        harms: Λ, complete or as far as measured.
        metric: How harm is measured.
        logarithmic: Scale of the harm; what it cannot place is drawn on its lowest line.
        by: What colour says, one of `GROUPS`.
        highlighted: Name of a layer to draw against all others in grey, with its monotone envelope and its interval.
        intervals: Of every harm, where they are known.
    """
    values = [value for layer in layers for value in harms.get(layer.name, {}).values()]
    lowest = _lowest(values) if logarithmic else None
    draw = _Drawing(harms, intervals or {}, metric, lowest)
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.kind if by == "kind" else row_label(layer), []).append(layer)
    colours = {name: KIND_COLOURS[name] for name in groups} if by == "kind" else _block_colours(layers)
    figure = go.Figure(
        [draw.curves(group, name, colours[name], highlighted is not None) for name, group in groups.items()]
    )
    for layer in layers:
        if layer.name == highlighted and layer.name in harms:
            colour = colours[layer.kind if by == "kind" else row_label(layer)]
            figure.add_traces(draw.highlight(layer, short_labels(layers)[layer.name], colour))
    if logarithmic:
        figure.update_yaxes(type="log", range=_decades(values, lowest), exponentformat="power", dtick=1)
    else:
        figure.update_yaxes(rangemode="tozero", tickformat=".0%" if metric.counts_images else None)
    figure.update_yaxes(title=f"harm Λ: {metric.heading}", showgrid=True)
    figure.update_xaxes(
        title="bit-width of the swept layer", tickvals=BIT_WIDTHS, range=[BIT_WIDTHS[0] - 0.3, BIT_WIDTHS[-1] + 0.3]
    )
    return finish(figure, _HEIGHT, margin={"l": 10, "r": 10, "t": 60, "b": 10})


@dataclass(frozen=True)
class _Drawing:
    """Traces of curves; `lowest` is the lowest line of a logarithmic scale, None on a linear one."""

    harms: Harms
    intervals: Intervals
    metric: Metric
    lowest: float | None

    def place(self, value: float) -> float:
        return value if self.lowest is None else max(value, self.lowest)

    def hover(self, name: str, bits: int) -> str:
        interval = self.intervals.get(name, {}).get(bits)
        words = f"<b>{name}</b><br>{bits} bits: Λ = {self.metric.in_words(self.harms[name][bits], 4)}"
        if interval is None:
            return words
        return words + f"<br>95 % interval {interval[0]:.3g} to {interval[1]:.3g}"

    def curves(self, layers: Sequence[Layer], name: str, colour: str, muted: bool) -> go.Scatter:
        """All curves of one group as one trace, with gaps between them: quick to draw while a sweep runs."""
        points = [
            (bits, self.place(self.harms[layer.name][bits]), self.hover(layer.name, bits), KIND_SYMBOLS[layer.kind])
            if bits is not None
            else (None, None, None, KIND_SYMBOLS[layer.kind])
            for layer in layers
            if layer.name in self.harms
            for bits in [*sorted(self.harms[layer.name]), None]
        ]
        x, y, texts, symbols = zip(*points, strict=True) if points else ((),) * 4
        return go.Scatter(
            x=x,
            y=y,
            text=texts,
            name=name,
            mode="lines+markers",
            connectgaps=False,
            opacity=0.35 if muted else 1.0,
            line={"color": _MUTED if muted else colour, "width": 1.5},
            marker={"symbol": symbols, "size": 7},
            hovertemplate="%{text}<extra></extra>",
            showlegend=not muted,
        )

    def highlight(self, layer: Layer, label: str, colour: str) -> list[go.Scatter]:
        """One layer's interval as a band, its monotone envelope, and its curve on top."""
        curve, intervals = self.harms[layer.name], self.intervals.get(layer.name, {})
        traces = []
        if intervals:
            ends = [(bits, self.place(intervals[bits][0]), self.place(intervals[bits][1])) for bits in sorted(curve)]
            traces.append(
                go.Scatter(
                    x=[bits for bits, *_ in (*ends, *reversed(ends))],
                    y=[*(low for _, low, _ in ends), *(high for *_, high in reversed(ends))],
                    name="95 % interval",
                    mode="none",
                    fill="toself",
                    fillcolor=colour,
                    opacity=_BAND_OPACITY,
                    hoverinfo="skip",
                )
            )
        envelope = _envelope(curve)
        traces.append(
            go.Scatter(
                x=list(envelope),
                y=[self.place(value) for value in envelope.values()],
                text=[self.metric.in_words(value) for value in envelope.values()],
                name="envelope",
                line={"color": _MUTED, "dash": "dot", "width": 2},
                mode="lines",
                hovertemplate="monotone envelope at %{x} bits: %{text}<extra></extra>",
            )
        )
        top = self.curves([layer], label, colour, False)
        top.update(line={"width": 4}, marker={"size": 11}, legendgroup="highlighted")
        return [*traces, top]


def _block_colours(layers: Sequence[Layer]) -> dict[str, str]:
    """Return one colour per block on a sequential scale, those of their kind for layers outside of blocks."""
    blocks = sorted({layer.block for layer in layers if layer.block is not None})
    first, last = _ENDS
    places = [first + (last - first) * index / max(len(blocks) - 1, 1) for index in range(len(blocks))]
    scale = dict(zip(blocks, sample_colorscale(SEQUENTIAL, places), strict=True))
    return {
        row_label(layer): KIND_COLOURS[layer.kind] if layer.block is None else scale[layer.block] for layer in layers
    }


def _lowest(values: Sequence[float]) -> float:
    """Return the lowest line of a logarithmic scale: a decade below the least harm that it can place."""
    least = min((value for value in values if value >= FLOOR), default=1e-4)
    return max(10.0 ** (ceil(log10(least)) - 1), FLOOR)


def _decades(values: Sequence[float], lowest: float) -> list[float]:
    bottom, highest = floor(log10(lowest) + 1e-9), log10(max(max(values, default=1.0), lowest))
    return [bottom - 0.1, max(ceil(highest), bottom + 1) + 0.1]


def _envelope(harms: Mapping[int, float]) -> dict[int, float]:
    from mixqvit.criteria.choices import monotone_envelope  # brings scipy, which the first paint does not wait for

    return monotone_envelope(harms)


def harm_grid(
    layers: Sequence[Layer],
    harms: Harms,
    metric: Metric,
    bits: int,
    logarithmic: bool,
    intervals: Intervals | None = None,
) -> go.Figure:
    """Draw Λ of every layer at one bit-width as blocks × kinds; a logarithmic scale colours by log₁₀ Λ."""
    at_bits = {name: curve[bits] for name, curve in harms.items() if bits in curve}
    lowest = _lowest(list(at_bits.values()))
    values = {name: log10(max(value, lowest)) for name, value in at_bits.items()} if logarithmic else at_bits
    draw = _Drawing(harms, intervals or {}, metric, None)
    unit = f" ({metric.unit})" if metric.unit else ""
    return blocks_by_kinds(
        layers,
        values,
        colours=SEQUENTIAL,
        title=f"log₁₀ Λ{unit}" if logarithmic else f"Λ{unit}",
        text=lambda layer, _: brief(at_bits[layer.name]),
        hover=lambda layer, _: draw.hover(layer.name, bits).partition("<br>")[2] + "<br>",
    )


def brief(harm: float) -> str:
    """Write a harm with two significant digits, short enough for a cell."""
    if abs(harm) >= 0.001:
        return f"{harm:.2g}"
    mantissa, exponent = f"{harm:.0e}".split("e")
    return "0" if harm == 0 else f"{mantissa}e{int(exponent)}"


def harm_frame(layers: Sequence[Layer], harms: Harms) -> pd.DataFrame:
    """Return Λ with one row per layer and one column per bit-width."""
    columns = {
        f"{bits} bits": {name: curve[bits] for name, curve in harms.items() if bits in curve} for bits in BIT_WIDTHS
    }
    return layer_frame([layer for layer in layers if layer.name in harms], columns)


def long_frame(
    layers: Sequence[Layer], harms: Harms, metric: Metric, intervals: Intervals | None = None, bits: int | None = None
) -> pd.DataFrame:
    """Return Λ with its interval, one row per layer and bit-width; all bit-widths unless one is given."""
    places = [
        (layer, width)
        for layer in layers
        for width in sorted(harms.get(layer.name, {}))
        if bits is None or width == bits
    ]
    frame = layer_frame([layer for layer, _ in places], {})
    frame["bits"] = [width for _, width in places]
    frame["harm"] = [harms[layer.name][width] for layer, width in places]
    if intervals:
        frame["interval from"] = [intervals[layer.name][width][0] for layer, width in places]
        frame["interval to"] = [intervals[layer.name][width][1] for layer, width in places]
    if metric.relative_to is not None:
        frame["SQNR (dB)"] = [metric.decibels(harms[layer.name][width]) for layer, width in places]
    return frame


def worst(harms: Harms, bits: int, count: int) -> list[tuple[str, float]]:
    """Return the layers that suffer most at a bit-width with their harm, worst first."""
    at_bits = [(name, curve[bits]) for name, curve in harms.items() if bits in curve]
    return sorted(at_bits, key=lambda item: item[1], reverse=True)[:count]


def first_to_break(layers: Sequence[Layer], harms: Harms, metric: Metric, bits: int, count: int) -> str:
    """Say in words which layers break first at a bit-width; negative harm counts as none in the sum."""
    labels = short_labels(layers)
    broken = worst(harms, bits, count)
    if not broken:
        return f"At {bits} bits no layer has been measured yet."
    total = sum(max(curve[bits], 0.0) for curve in harms.values() if bits in curve)
    measured = sum(bits in curve for curve in harms.values())
    if not total:
        return f"At {bits} bits none of the {measured} measured layers does harm by this metric."
    share = sum(max(harm, 0.0) for _, harm in broken) / total
    named = ", ".join(f"**{labels[name]}** ({metric.in_words(harm, 2)})" for name, harm in broken)
    return (
        f"At {bits} bits these break first, each quantized alone (Λ is the {metric.title}): {named}. "
        f"Together they make up {percent(share, 0)} of the harm summed over the {measured} measured layers."
    )


def rising(harms: Harms) -> list[str]:
    """Return the layers whose measured harm rises somewhere although bits are added."""
    return [
        name
        for name, curve in harms.items()
        if any(curve[more] > curve[fewer] for fewer, more in pairwise(sorted(curve)))
    ]
