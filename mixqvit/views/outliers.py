"""Figures of the Outliers page: the ranges of all channels of a post-LayerNorm input, and an overview of all layers."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mixqvit.network.layers import Layer
from mixqvit.quantization.channels import OUTLIER_TIMES, ChannelRanges, ChannelStatistics, Variant
from mixqvit.views.grid import blocks_by_kinds, layer_frame
from mixqvit.views.style import SEQUENTIAL, finish

__all__ = [
    "CHOSEN",
    "MEASURES",
    "ORDERS",
    "channel_axis",
    "channel_frame",
    "channel_order",
    "clicked_channel",
    "mark_channel",
    "median_steps",
    "outlier_words",
    "overview_frame",
    "overview_grid",
    "range_figure",
    "recurring_words",
    "top_channels",
]

ORDERS = ("network", "widest first", "highest kurtosis first")
"""How channels may be ordered."""

MEASURES = ("widest ÷ median", "outlier channels", "highest kurtosis")
"""What the overview may show of a layer."""

CHOSEN = "#cc79a7"
"""Colour of the chosen channel's mark."""

_ORDINARY, _OUTLIER, _GRID = "#0072b2", "#d55e00", "#e69f00"
_HEIGHT = 400  # pixels
_NUMBERED = 12  # outlier channels that carry their number


def channel_order(statistics: ChannelStatistics, order: str) -> np.ndarray:
    """Return the channels in one of `ORDERS`, `[C]`."""
    if order == "network":
        return np.arange(len(statistics.width))
    values = statistics.width if order == "widest first" else statistics.kurtosis
    return np.argsort(-values, kind="stable")


def channel_frame(ranges: ChannelRanges, variant: str = "clipped") -> pd.DataFrame:
    """Return one row per channel in network order: its values, its grid in one of `VARIANTS`, and ratio r."""
    statistics, found = ranges.statistics, ranges.variants[variant]
    before = ranges.variants["per channel"]
    return pd.DataFrame(
        {
            "channel": np.arange(len(statistics.width)),
            "outlier": statistics.is_outlier,
            "smallest": statistics.lower,
            "largest": statistics.upper,
            "width": statistics.width,
            "times the median": statistics.times_median,
            "mean": statistics.mean,
            "standard deviation": statistics.deviation,
            "kurtosis": statistics.kurtosis,
            "grid from": found.grid_lower,
            "grid to": found.grid_upper,
            "ratio r": found.ratio,
            "weight before": before.weight_columns,
            "weight after": found.weight_columns,
        }
    )


def top_channels(ranges: ChannelRanges, order: str, count: int, variant: str = "clipped") -> pd.DataFrame:
    """Return the first rows of `channel_frame` by width or kurtosis, as `order` says; network order means width."""
    order = ORDERS[1] if order == "network" else order
    return channel_frame(ranges, variant).iloc[channel_order(ranges.statistics, order)[:count]]


def median_steps(ranges: ChannelRanges) -> float:
    """Return how many steps of one grid for all channels the median channel's range spans."""
    plain = ranges.variants["per tensor"]
    step = float(plain.grid_upper[0] - plain.grid_lower[0]) / (2**ranges.bits - 1)
    return float(np.median(ranges.statistics.width)) / step


def outlier_words(ranges: ChannelRanges) -> str:
    """Say how many outlier channels there are, what one grid leaves to the others, and where few tokens stand out."""
    statistics = ranges.statistics
    count = int(statistics.is_outlier.sum())
    widest = f"channel {statistics.widest_channel} is {statistics.max_to_median:.1f} times as wide."
    if count:
        verb = "is" if count == 1 else "are"
        first = f"{count} of {len(statistics.width)} channels {verb} more than {OUTLIER_TIMES:g} times as wide as the "
        first += f"median channel; {widest}"
    else:
        first = f"No channel is more than {OUTLIER_TIMES:g} times as wide as the median channel; {widest}"
    sharpest = int(statistics.kurtosis.argmax())
    return (
        f"{first} One grid for all channels at {ranges.bits} bits has {2**ranges.bits - 1} steps; the median channel's "
        f"range spans {median_steps(ranges):.1f} of them. Highest kurtosis: {statistics.kurtosis[sharpest]:.1f} in "
        f"channel {sharpest}; the more above 3, the fewer the tokens that make the range wide."
    )


def recurring_words(found: Mapping[str, ChannelStatistics], count: int = 3) -> str:
    """Name the channels that are outliers in most layers, and where the widest of all is.

    Args:
        found: Statistics by layer name.
        count: Most channels to name.
    """
    layers: dict[int, list[str]] = {}
    for name, statistics in found.items():
        for channel in np.flatnonzero(statistics.is_outlier).tolist():
            layers.setdefault(channel, []).append(name)
    if not layers:
        return f"None of the {len(found)} layers has a channel more than {OUTLIER_TIMES:g} times as wide as its median."
    with_outliers = {name for names in layers.values() for name in names}
    most = sorted(layers, key=lambda channel: -len(layers[channel]))[:count]
    named = ", ".join(f"**channel {channel}** in {len(layers[channel])}" for channel in most)
    widest = max(found, key=lambda name: found[name].max_to_median)
    return (
        f"{len(with_outliers)} of {len(found)} layers have outlier channels. Most often: {named}. Widest of all: "
        f"channel {found[widest].widest_channel} at {widest}, {found[widest].max_to_median:.1f} times the median."
    )


def channel_axis(figure: go.Figure, order: Sequence[int], title: str) -> None:
    """Give a figure an axis of channels in this order; every channel is named by its number."""
    names = [str(channel) for channel in order]
    figure.update_xaxes(
        type="category",
        categoryorder="array",
        categoryarray=names,
        range=[-0.8, len(names) - 0.2],
        title=title,
        showgrid=False,
        tickangle=0,
        nticks=9,
    )


def mark_channel(figure: go.Figure, order: Sequence[int], channel: int, label: bool = True) -> None:
    """Mark one channel on an axis of channels."""
    place = list(order).index(channel)
    figure.add_vrect(x0=place - 0.5, x1=place + 0.5, fillcolor=CHOSEN, opacity=0.35, line_width=0, layer="below")
    if label:
        figure.add_annotation(
            x=place,
            y=1,
            yref="paper",
            yanchor="bottom",
            text=f"channel {channel}",
            showarrow=False,
            font={"color": CHOSEN},
            xanchor="left" if place < len(order) / 8 else "right" if place > len(order) * 7 / 8 else "center",
        )


def clicked_channel(points: Sequence[Mapping]) -> int | None:
    """Return the channel of the first of the clicked points of a figure with an axis of channels."""
    return int(points[0]["x"]) if points else None


def range_figure(ranges: ChannelRanges, variant: str, order: str, chosen: int) -> go.Figure:
    """Draw the range of every channel with the grid that it gets.

    Args:
        ranges: Measured channels.
        variant: One of `VARIANTS`. For `reparameterized` the ranges are drawn after the move onto one common grid.
        order: One of `ORDERS`.
        chosen: The channel to mark.
    """
    statistics, found = ranges.statistics, ranges.variants[variant]
    places = channel_order(statistics, order)
    frame = channel_frame(ranges, variant)
    is_moved = variant == "reparameterized"
    if is_moved:
        frame["smallest"], frame["largest"] = (_moved(end, found) for end in (statistics.lower, statistics.upper))
    frame = frame.iloc[places]
    figure = go.Figure()
    for name, colour, rows in (
        ("ordinary channel", _ORDINARY, frame[~frame["outlier"]]),
        ("outlier channel", _OUTLIER, frame[frame["outlier"]]),
    ):
        if rows.empty:
            continue
        figure.add_bar(
            name=name,
            x=rows["channel"].astype(str),
            base=rows["smallest"],
            y=rows["largest"] - rows["smallest"],
            width=0.85,
            marker={"color": colour, "line": {"width": 0}},
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
            customdata=rows[["smallest", "largest", "times the median", "kurtosis", "ratio r"]],
            hovertemplate="<b>channel %{x}</b><br>%{customdata[0]:.4g} to %{customdata[1]:.4g}<br>"
            "measured width: %{customdata[2]:.2f} times the median<br>kurtosis %{customdata[3]:.2f}<br>"
            "ratio r = %{customdata[4]:.3f}<br>click to choose it<extra></extra>",
        )
    widest = (
        frame[frame["outlier"] & (frame["channel"] != chosen)].sort_values("width", ascending=False).head(_NUMBERED)
    )
    if not widest.empty and not is_moved:  # moved, all reach equally far and hide the numbers
        figure.add_scatter(
            name="its number",
            x=widest["channel"].astype(str),
            y=widest["largest"],
            text=widest["channel"],
            mode="markers+text",
            textposition="top center",
            textfont={"size": 11},
            marker={"symbol": "triangle-down", "color": _OUTLIER, "size": 8},
            cliponaxis=False,
            hoverinfo="skip",
            showlegend=False,
        )
    _grid_ends(figure, frame, found, variant)
    mark_channel(figure, places, chosen)
    channel_axis(figure, places, f"channel, {'in network order' if order == 'network' else order}")
    figure.update_yaxes(title="value after division by r and shift" if is_moved else "value", zeroline=True)
    return finish(
        figure,
        _HEIGHT,
        barmode="overlay",
        margin={"l": 10, "r": 10, "t": 70, "b": 10},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.08, "x": 0},
    )


def _moved(values: np.ndarray, variant: Variant) -> np.ndarray:
    return values / variant.ratio - variant.shift


def _grid_ends(figure: go.Figure, frame: pd.DataFrame, found: Variant, variant: str) -> None:
    """Mark the two ends of the common grid, or of each channel's own."""
    if variant in ("per tensor", "reparameterized"):
        for ends in (found.grid_lower, found.grid_upper):
            figure.add_hline(y=float(_moved(ends, found)[0]), line={"color": _GRID, "dash": "dash", "width": 2})
        return
    for column in ("grid to", "grid from"):
        figure.add_scatter(
            name="ends of its grid",
            legendgroup="grid",
            showlegend=column == "grid to",
            x=frame["channel"].astype(str),
            y=frame[column],
            mode="markers",
            marker={"symbol": "line-ew", "size": 6, "line": {"width": 3, "color": _GRID}},
            hovertemplate=f"channel %{{x}}: {column} %{{y:.4g}}<extra></extra>",
        )


def overview_grid(layers: Sequence[Layer], found: Mapping[str, ChannelStatistics], measure: str) -> go.Figure:
    """Draw one of `MEASURES` of every post-LayerNorm layer as blocks × kinds.

    Args:
        layers: The layers with a post-LayerNorm input.
        found: Statistics by layer name.
        measure: One of `MEASURES`.
    """
    frame = overview_frame(layers, found).set_index("layer")
    digits = 0 if measure == "outlier channels" else 1
    values = frame[measure].dropna().to_dict()

    def hover(layer: Layer, _: float) -> str:
        row = frame.loc[layer.name]
        return (
            f"widest channel: {row['widest channel']}, {row['widest ÷ median']:.2f} times the median<br>"
            f"outlier channels: {row['outlier channels']}<br>"
            f"highest kurtosis: {row['highest kurtosis']:.2f} in channel {row['channel of highest kurtosis']}<br>"
        )

    lowest = {"widest ÷ median": 1, "outlier channels": 0, "highest kurtosis": 3}[measure]
    return blocks_by_kinds(
        layers,
        values,
        colours=SEQUENTIAL,
        title=measure,
        text=lambda _, value: f"{value:.{digits}f}",
        hover=hover,
        limits=(lowest, max([lowest + 1, *values.values()])),
    )


def overview_frame(layers: Sequence[Layer], found: Mapping[str, ChannelStatistics]) -> pd.DataFrame:
    """Return one row per layer: its widest channel and the one with the highest kurtosis, and how far they go."""

    def column(value: Callable[[ChannelStatistics], object]) -> dict[str, object]:
        return {name: value(statistics) for name, statistics in found.items()}

    return layer_frame(
        layers,
        {
            "widest ÷ median": column(lambda statistics: statistics.max_to_median),
            "widest channel": column(lambda statistics: statistics.widest_channel),
            "outlier channels": column(lambda statistics: int(statistics.is_outlier.sum())),
            "highest kurtosis": column(lambda statistics: float(statistics.kurtosis.max())),
            "channel of highest kurtosis": column(lambda statistics: int(statistics.kurtosis.argmax())),
        },
    )
