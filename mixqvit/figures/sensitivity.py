"""Figures of the Sensitivity page: harm Λ against bits, and its grid at one bit-width."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from math import ceil, floor, log10
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from mixqvit.bits import BIT_WIDTHS
from mixqvit.figures.grid import blocks_by_kinds, layer_frame
from mixqvit.figures.labels import short_labels
from mixqvit.figures.style import KIND_COLOURS, KIND_SYMBOLS, SEQUENTIAL, finish
from mixqvit.layers import Layer

if TYPE_CHECKING:
    from mixqvit.sensitivity import SensitivityCell

__all__ = [
    "FLOOR",
    "brief",
    "complete",
    "first_to_break",
    "harm_curves",
    "harm_frame",
    "harm_grid",
    "rising",
    "selected",
    "table",
    "worst",
]

Harms = Mapping[str, Mapping[int, float]]
"""Λ by layer name and bit-width; bit-widths that are not measured yet are absent."""

FLOOR = 1e-8
"""Harm in nats below which a logarithmic scale shows no difference; float32 logits resolve no less."""

_HEIGHT = 460  # pixels


def table(cells: Iterable["SensitivityCell"], metric: str = "kl") -> dict[str, dict[int, float]]:
    """Return measured cells as Λ by layer name and bit-width, by one metric."""
    harms: dict[str, dict[int, float]] = {}
    for cell in cells:
        harms.setdefault(cell.layer, {})[cell.bits] = cell.harm(metric)
    return harms


def complete(layers: Sequence[Layer], harms: Harms, operands: str) -> bool:
    """Return whether every layer that has such operands is measured at every bit-width."""
    swept = [layer for layer in layers if operands != "weights" or not layer.is_matmul]
    return all(len(harms.get(layer.name, {})) == len(BIT_WIDTHS) for layer in swept)


def selected(layers: Sequence[Layer], kinds: Collection[str], blocks: Collection[int]) -> list[Layer]:
    """Return the layers of these kinds and blocks; an empty collection leaves all in."""
    return [layer for layer in layers if (not kinds or layer.kind in kinds) and (not blocks or layer.block in blocks)]


def harm_curves(layers: Sequence[Layer], harms: Harms, logarithmic: bool, highlighted: str | None = None) -> go.Figure:
    """Draw Λ against bits, one curve per layer as measured.

    Args:
        layers: The layers to draw.
        harms: Λ, complete or as far as measured.
        logarithmic: Scale of the harm.
        highlighted: Name of a layer to draw against all others in grey, with its monotone envelope.
    """
    figure = go.Figure()
    for kind in dict.fromkeys(layer.kind for layer in layers):
        figure.add_trace(_curves([layer for layer in layers if layer.kind == kind], harms, highlighted is not None))
    chosen = [layer for layer in layers if layer.name == highlighted and layer.name in harms]
    for layer in chosen:
        envelope = _envelope(harms[layer.name])
        figure.add_scatter(
            x=list(envelope),
            y=[max(value, FLOOR) for value in envelope.values()],
            name="envelope",
            line={"color": "#7a868d", "dash": "dot", "width": 2},
            mode="lines",
            hovertemplate="monotone envelope at %{x} bits: %{y:.3e} nats<extra></extra>",
        )
        trace = _curves([layer], harms, False)
        trace.update(
            name=short_labels(layers)[layer.name], line={"width": 4}, marker={"size": 11}, legendgroup="highlighted"
        )
        figure.add_trace(trace)
    values = [value for layer in layers for value in harms.get(layer.name, {}).values()]
    if logarithmic:
        figure.update_yaxes(type="log", range=_decades(values), exponentformat="power", dtick=1)
    else:
        figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title="harm Λ: KL divergence (nats)", showgrid=True)
    figure.update_xaxes(
        title="bit-width of the one quantized layer", tickvals=BIT_WIDTHS, range=[BIT_WIDTHS[0] - 0.3, 8.3]
    )
    return finish(figure, _HEIGHT, margin={"l": 10, "r": 10, "t": 60, "b": 10})


def _curves(layers: Sequence[Layer], harms: Harms, muted: bool) -> go.Scatter:
    """All curves of one kind as one trace, with gaps between them: quick to draw while a sweep runs."""
    points = [
        (bits, max(harms[layer.name][bits], FLOOR), layer.name, harms[layer.name][bits])
        if bits is not None
        else (None, None, None, None)
        for layer in layers
        if layer.name in harms
        for bits in [*sorted(harms[layer.name]), None]
    ]
    x, y, names, exact = zip(*points, strict=True) if points else ((),) * 4
    kind = layers[0].kind
    return go.Scatter(
        x=x,
        y=y,
        customdata=list(zip(names, exact, strict=True)),
        name=kind,
        mode="lines+markers",
        connectgaps=False,
        opacity=0.25 if muted else 1.0,
        line={"color": "#7a868d" if muted else KIND_COLOURS[kind], "width": 1.5},
        marker={"symbol": KIND_SYMBOLS[kind], "size": 7},
        hovertemplate="<b>%{customdata[0]}</b><br>%{x} bits: Λ = %{customdata[1]:.3e} nats<extra></extra>",
        showlegend=not muted,
    )


def _decades(values: Sequence[float]) -> list[float]:
    lowest, highest = max(min(values, default=1e-4), FLOOR), max(max(values, default=1.0), FLOOR)
    return [floor(log10(lowest)) - 0.1, max(ceil(log10(highest)), floor(log10(lowest)) + 1) + 0.1]


def _envelope(harms: Mapping[int, float]) -> dict[int, float]:
    from mixqvit.allocation import monotone_envelope  # brings scipy, which the first paint does not wait for

    return monotone_envelope(harms)


def harm_grid(layers: Sequence[Layer], harms: Harms, bits: int, logarithmic: bool) -> go.Figure:
    """Draw Λ of every layer at one bit-width as blocks × kinds; a logarithmic scale colours by log₁₀ Λ."""
    at_bits = {name: curve[bits] for name, curve in harms.items() if bits in curve}
    values = {name: log10(max(value, FLOOR)) for name, value in at_bits.items()} if logarithmic else at_bits
    return blocks_by_kinds(
        layers,
        values,
        colours=SEQUENTIAL,
        title="log₁₀ Λ (nats)" if logarithmic else "Λ (nats)",
        text=lambda layer, _: brief(at_bits[layer.name]),
        hover=lambda layer, _: f"at {bits} bits alone: Λ = {at_bits[layer.name]:.4e} nats<br>",
    )


def brief(harm: float) -> str:
    """Write a harm with two significant digits, short enough for a cell."""
    if harm >= 0.001:
        return f"{harm:.2g}"
    mantissa, exponent = f"{harm:.0e}".split("e")
    return "0" if harm == 0 else f"{mantissa}e{int(exponent)}"


def harm_frame(layers: Sequence[Layer], harms: Harms) -> pd.DataFrame:
    """Return Λ in nats with one row per layer and one column per bit-width."""
    columns = {
        f"{bits} bits": {name: curve[bits] for name, curve in harms.items() if bits in curve} for bits in BIT_WIDTHS
    }
    return layer_frame([layer for layer in layers if layer.name in harms], columns)


def worst(harms: Harms, bits: int, count: int) -> list[tuple[str, float]]:
    """Return the layers that suffer most at a bit-width with their harm, worst first."""
    at_bits = [(name, curve[bits]) for name, curve in harms.items() if bits in curve]
    return sorted(at_bits, key=lambda item: item[1], reverse=True)[:count]


def first_to_break(layers: Sequence[Layer], harms: Harms, bits: int, count: int) -> str:
    """Say in words which layers break first at a bit-width."""
    labels = short_labels(layers)
    broken = worst(harms, bits, count)
    if not broken:
        return f"At {bits} bits no layer has been measured yet."
    total = sum(curve[bits] for curve in harms.values() if bits in curve)
    share = sum(harm for _, harm in broken) / total if total else 0.0
    named = ", ".join(f"**{labels[name]}** ({brief(harm)})" for name, harm in broken)
    measured = sum(bits in curve for curve in harms.values())
    return (
        f"At {bits} bits these break first, each quantized alone (Λ in nats): {named}. "
        f"Together they make up {share:.0%} of the harm summed over the {measured} measured layers."
    )


def rising(harms: Harms) -> list[str]:
    """Return the layers whose measured harm rises somewhere although bits are added."""
    return [
        name
        for name, curve in harms.items()
        if any(curve[more] > curve[fewer] for fewer, more in pairwise(sorted(curve)))
    ]
