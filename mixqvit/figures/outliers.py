"""Figures of the Outliers page: channels of a post-LayerNorm input, and what quantization makes of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mixqvit.figures.labels import short_labels
from mixqvit.figures.style import KIND_COLOURS, KIND_SYMBOLS, finish
from mixqvit.layers import Layer

if TYPE_CHECKING:
    from mixqvit.outliers import ChannelRanges

__all__ = [
    "OUTLIER_TIMES",
    "STAGES",
    "channel_frame",
    "clip_words",
    "error_bars",
    "error_frame",
    "outlier_channels",
    "outlier_words",
    "overview_frame",
    "overview_strip",
    "range_figure",
    "weight_columns",
    "weight_spread",
    "widest_channels",
]

OUTLIER_TIMES = 3.0
"""A channel is called an outlier where its range is this many times as wide as the median channel's."""

STAGES = ("before", "clipped grid", "reparameterized")
"""What the ranges are shown of: as measured, with the grid each channel gets, moved onto one grid."""

_ORDINARY, _OUTLIER, _GRID = "#0072b2", "#d55e00", "#7a868d"
_HEIGHT, _SMALL_HEIGHT = 400, 260  # pixels


def channel_frame(ranges: "ChannelRanges") -> pd.DataFrame:
    """Return one row per channel: ranges before and after, ratio r, size of the weight column before and after."""
    median = _median(ranges)
    return pd.DataFrame(
        {
            "channel": np.arange(len(ranges.lower)),
            "smallest": ranges.lower,
            "largest": ranges.upper,
            "width": ranges.spread,
            "times the median": ranges.spread / median,
            "grid from": ranges.grid_lower,
            "grid to": ranges.grid_upper,
            "moved smallest": ranges.moved_lower,
            "moved largest": ranges.moved_upper,
            "ratio r": ranges.ratio,
            "weight before": ranges.weight_before,
            "weight after": ranges.weight_after,
            "outlier": ranges.spread > OUTLIER_TIMES * median,
        }
    )


def outlier_channels(ranges: "ChannelRanges") -> list[int]:
    """Return the outlier channels, widest first."""
    frame = widest_channels(ranges, len(ranges.lower))
    return frame.loc[frame["outlier"], "channel"].tolist()


def widest_channels(ranges: "ChannelRanges", count: int) -> pd.DataFrame:
    """Return the rows of `channel_frame` of the widest channels, widest first."""
    return channel_frame(ranges).sort_values("width", ascending=False, kind="stable").head(count)


def outlier_words(ranges: "ChannelRanges") -> str:
    """Say how many outlier channels there are and what one scale for all channels would leave to the others."""
    channels = outlier_channels(ranges)
    levels = 2**ranges.bits - 1
    whole = float(ranges.upper.max() - ranges.lower.min())
    used = _median(ranges) / whole * levels if whole else 0.0
    if channels:
        first = f"{len(channels)} of {len(ranges.lower)} channels are more than {OUTLIER_TIMES:g} times as wide as the "
        first += f"median channel, the widest {ranges.max_to_median:.1f} times."
    else:
        first = f"No channel is more than {OUTLIER_TIMES:g} times as wide as the median channel; the widest is "
        first += f"{ranges.max_to_median:.1f} times as wide."
    return (
        f"{first} With one scale for all channels at {ranges.bits} bits, the median channel uses {used:.1f} of the "
        f"{levels} steps between the smallest and the largest code."
    )


def clip_words(ranges: "ChannelRanges") -> str:
    """Say which clipping across channels was chosen."""
    if ranges.clip == 0:
        return "No clipping across channels was chosen for this layer: every channel keeps its whole range."
    return (
        f"Ranges are clipped across channels at the percentile pair {100 * ranges.clip:g} / "
        f"{100 * (1 - ranges.clip):g}: minima below that percentile of all channels' minima, and maxima above that of "
        "all maxima, are cut."
    )


def range_figure(ranges: "ChannelRanges", stage: str, widest_first: bool) -> go.Figure:
    """Draw the range of every channel at one of `STAGES`, outlier channels marked.

    Args:
        ranges: Measured channels.
        stage: One of `STAGES`.
        widest_first: Order of the channels: by width, else as in the network.
    """
    frame = channel_frame(ranges)
    if widest_first:
        frame = frame.sort_values("width", ascending=False, kind="stable")
    frame = frame.assign(place=np.arange(len(frame)))
    lower, upper = ("moved smallest", "moved largest") if stage == "reparameterized" else ("smallest", "largest")
    figure = go.Figure()
    for name, colour, rows in (
        ("ordinary channel", _ORDINARY, frame[~frame["outlier"]]),
        ("outlier channel", _OUTLIER, frame[frame["outlier"]]),
    ):
        if rows.empty:
            continue
        figure.add_bar(
            name=name,
            x=rows["place"],
            base=rows[lower],
            width=0.85,
            y=rows[upper] - rows[lower],
            marker={"color": colour, "line": {"width": 0}},
            customdata=rows[["channel", lower, upper, "times the median", "ratio r"]],
            hovertemplate="<b>channel %{customdata[0]}</b><br>%{customdata[1]:.4g} to %{customdata[2]:.4g}<br>"
            "measured width: %{customdata[3]:.2f} times the median<br>ratio r = %{customdata[4]:.3f}<extra></extra>",
        )
    outliers = frame[frame["outlier"]]
    if not outliers.empty:
        figure.add_scatter(
            name="its number",
            x=outliers["place"],
            y=outliers[upper],
            text=outliers["channel"],
            mode="markers+text",
            textposition="top center",
            marker={"symbol": "triangle-down", "color": _OUTLIER, "size": 8},
            cliponaxis=False,
            hoverinfo="skip",
            showlegend=False,
        )
    if stage == "clipped grid":
        _channel_grid(figure, frame)
    else:
        ends = ranges.moved_grid if stage == "reparameterized" else (ranges.lower.min(), ranges.upper.max())
        for end in ends:
            figure.add_hline(y=float(end), line={"color": _GRID, "dash": "dash", "width": 1.5})
    order = "channels, widest first" if widest_first else "channels, in network order"
    figure.update_xaxes(title=order, range=[-0.8, len(frame) - 0.2], showgrid=False, showticklabels=not widest_first)
    figure.update_yaxes(title="value after division by r" if stage == "reparameterized" else "value", zeroline=True)
    return finish(figure, _HEIGHT, barmode="overlay", margin={"l": 10, "r": 10, "t": 50, "b": 10})


def _channel_grid(figure: go.Figure, frame: pd.DataFrame) -> None:
    """Mark the two ends of each channel's own grid."""
    for column in ("grid to", "grid from"):
        figure.add_scatter(
            name="ends of its grid",
            legendgroup="grid",
            showlegend=column == "grid to",
            x=frame["place"],
            y=frame[column],
            mode="markers",
            marker={"symbol": "line-ew", "size": 5, "line": {"width": 2, "color": _GRID}},
            customdata=frame["channel"],
            hovertemplate=f"channel %{{customdata}}: {column} %{{y:.4g}}<extra></extra>",
        )


def error_bars(ranges: "ChannelRanges") -> go.Figure:
    """Draw the relative squared error of the layer's output by variant."""
    frame = error_frame(ranges)
    best = frame["relative error"].idxmin()
    bars = go.Bar(
        orientation="h",
        x=100 * frame["relative error"],
        y=[name.replace(" and ", "<br>and ").replace(" for ", "<br>for ") for name in frame["variant"]],
        customdata=frame["variant"],
        marker={"color": [_ORDINARY if index == best else "#9aa5ab" for index in frame.index]},
        text=[
            f"{100 * value:.3g} %" + (" least" if index == best else "")
            for index, value in frame["relative error"].items()
        ],
        textposition="auto",
        hovertemplate="<b>%{customdata}</b><br>%{x:.4f} % of the squared output<extra></extra>",
    )
    figure = finish(go.Figure(bars), _SMALL_HEIGHT, bargap=0.25)
    figure.update_xaxes(title="squared error of the output (%)", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", type="category")
    return figure


def error_frame(ranges: "ChannelRanges") -> pd.DataFrame:
    """Return the relative squared error of the layer's output by variant."""
    return pd.DataFrame(
        {
            "variant": list(ranges.errors),
            "relative error": list(ranges.errors.values()),
        }
    )


def weight_columns(ranges: "ChannelRanges") -> go.Figure:
    """Draw the root mean square of every weight column before and after reparameterization."""
    figure = go.Figure()
    channels = np.arange(len(ranges.ratio))
    for name, values, symbol, colour in (
        ("before", ranges.weight_before, "circle-open", _GRID),
        ("after", ranges.weight_after, "diamond", _ORDINARY),
    ):
        figure.add_scatter(
            name=name,
            x=channels,
            y=values,
            mode="markers",
            marker={"symbol": symbol, "color": colour, "size": 6},
            hovertemplate=f"channel %{{x}}, {name}: %{{y:.4g}}<extra></extra>",
        )
    figure.update_xaxes(title="channel", showgrid=False)
    figure.update_yaxes(title="size of its weight column", rangemode="tozero")
    return finish(figure, _SMALL_HEIGHT, margin={"l": 10, "r": 10, "t": 40, "b": 10})


def weight_spread(column_sizes: np.ndarray) -> float:
    """Return the largest weight column over the median one."""
    return float(column_sizes.max() / max(np.median(column_sizes), np.finfo(float).tiny))


def overview_strip(layers: Sequence[Layer], widest: Mapping[str, float]) -> go.Figure:
    """Draw how many times the median the widest channel of every layer is, in network order.

    Args:
        layers: The layers with a post-LayerNorm input.
        widest: `ChannelRanges.max_to_median` by layer name.
    """
    labels = short_labels(layers)
    shown = [layer for layer in layers if layer.name in widest]
    figure = go.Figure()
    for kind in dict.fromkeys(layer.kind for layer in shown):
        rows = [layer for layer in shown if layer.kind == kind]
        figure.add_scatter(
            name=kind,
            x=[labels[layer.name] for layer in rows],
            y=[widest[layer.name] for layer in rows],
            mode="markers",
            marker={"symbol": KIND_SYMBOLS[kind], "color": KIND_COLOURS[kind], "size": 10},
            customdata=[layer.name for layer in rows],
            hovertemplate="<b>%{customdata}</b><br>widest channel: %{y:.2f} times the median<extra></extra>",
        )
    figure.add_hline(y=OUTLIER_TIMES, line={"color": _OUTLIER, "dash": "dash", "width": 1.5})
    figure.update_xaxes(
        type="category", categoryorder="array", categoryarray=[labels[layer.name] for layer in layers], showgrid=False
    )
    figure.update_yaxes(title="widest ÷ median width", rangemode="tozero")
    return finish(figure, _SMALL_HEIGHT + 60, margin={"l": 10, "r": 10, "t": 40, "b": 10})


def overview_frame(layers: Sequence[Layer], widest: Mapping[str, float]) -> pd.DataFrame:
    """Return the widest channel over the median one by layer."""
    shown = [layer for layer in layers if layer.name in widest]
    return pd.DataFrame(
        {"layer": [layer.name for layer in shown], "widest over median": [widest[layer.name] for layer in shown]}
    )


def _median(ranges: "ChannelRanges") -> float:
    return max(float(np.median(ranges.spread)), np.finfo(float).tiny)
