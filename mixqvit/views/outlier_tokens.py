"""Figures of the Outliers page: one channel over all tokens, and all channels of one image."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mixqvit.quantization.channels import ChannelDistribution, ChannelRanges, TokenMap
from mixqvit.views.outliers import CHOSEN, channel_axis, mark_channel
from mixqvit.views.style import DIVERGING, finish

__all__ = [
    "distribution_figure",
    "distribution_frame",
    "distribution_table",
    "extra_name",
    "map_frame",
    "map_limit",
    "map_words",
    "token_figure",
    "token_names",
]

_HEIGHT = 420  # pixels
_MOST_LEVELS = 32  # more grid lines than these would be a grey area
_SATURATED = 0.95  # the part of the values that the colours tell apart
_PATCHES, _EXTRA, _GRID = "#0072b2", "#e69f00", "#7a868d"


def distribution_figure(
    ranges: ChannelRanges, variant: str, chosen: ChannelDistribution, median: ChannelDistribution
) -> go.Figure:
    """Draw how a channel's values are spread over the tokens, above the same of the median channel, on one axis.

    Args:
        ranges: The channels and their grids.
        variant: Whose grid is marked, one of `VARIANTS`: every level, or only its ends where there are many.
        chosen: The channel above.
        median: The channel below.
    """
    names = (f"channel {chosen.channel}", f"channel {median.channel}, of median width")
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.14, subplot_titles=names)
    for row, found in enumerate((chosen, median), 1):
        frame = distribution_frame(found)
        figure.add_bar(
            name="all tokens" if not found.extra_tokens else "patches",
            x=frame["centre"],
            y=frame["patches (%)"],
            width=frame["to"] - frame["from"],
            marker={"color": CHOSEN if row == 1 else _PATCHES, "line": {"width": 0}},
            showlegend=False,
            customdata=frame[["from", "to", "patches"]],
            hovertemplate="%{customdata[0]:.3g} to %{customdata[1]:.3g}<br>%{y:.2f} % of the "
            f"{'patch ' if found.extra_tokens else ''}tokens (%{{customdata[2]}})<extra></extra>",
            row=row,
            col=1,
        )
        if found.extra_tokens:
            there = frame[frame["extra"] > 0]
            figure.add_scatter(
                name=extra_name(found.extra_tokens),
                x=there["centre"],
                y=np.full(len(there), 1.06 * frame["patches (%)"].max()),
                mode="markers",
                marker={"symbol": "diamond", "color": _EXTRA, "size": 8},
                legendgroup="extra",
                showlegend=row == 1,
                customdata=there[["from", "to", "extra", "extra (%)"]],
                hovertemplate=f"<b>{extra_name(found.extra_tokens)}</b><br>%{{customdata[0]:.3g}} to "
                "%{customdata[1]:.3g}: %{customdata[3]:.0f} % (%{customdata[2]})<extra></extra>",
                row=row,
                col=1,
            )
        _grid_lines(figure, ranges, variant, found, row)
        figure.update_yaxes(title="tokens (%)", rangemode="tozero", showgrid=False, row=row, col=1)
    ends = [value for found in (chosen, median) for value in (found.edges[0], found.edges[-1])]
    margin = 0.04 * (max(ends) - min(ends))
    figure.update_xaxes(range=[min(ends) - margin, max(ends) + margin], showgrid=False)
    figure.update_xaxes(title="value", row=2, col=1)
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    return finish(
        figure,
        _HEIGHT,
        barmode="overlay",
        margin={"l": 10, "r": 10, "t": 60, "b": 10},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.08, "x": 1, "xanchor": "right"},
    )


def _grid_lines(figure: go.Figure, ranges: ChannelRanges, variant: str, found: ChannelDistribution, row: int) -> None:
    grid = ranges.variants[variant]
    lower, upper = float(grid.grid_lower[found.channel]), float(grid.grid_upper[found.channel])
    levels = 2**ranges.bits
    every = levels <= _MOST_LEVELS
    shown = np.linspace(lower, upper, levels if every else 2)
    highest = float(distribution_frame(found)["patches (%)"].max())
    x, y = ([None] * (3 * len(shown)) for _ in range(2))
    x[0::3] = x[1::3] = shown.tolist()
    y[0::3], y[1::3] = [0.0] * len(shown), [highest] * len(shown)
    figure.add_scatter(
        name="its grid's levels" if every else "ends of its grid",
        x=x,
        y=y,
        mode="lines",
        line={"color": _GRID, "width": 1},
        opacity=0.7,
        legendgroup="grid",
        showlegend=row == 1,
        hovertemplate="level %{x:.4g}<extra></extra>",
        row=row,
        col=1,
    )


def distribution_frame(found: ChannelDistribution) -> pd.DataFrame:
    """Return the bins of a channel's values, tokens counted and in percent of their group."""
    lower, upper = found.edges[:-1], found.edges[1:]
    return pd.DataFrame(
        {
            "channel": found.channel,
            "from": lower,
            "to": upper,
            "centre": (lower + upper) / 2,
            "patches": found.patches,
            "patches (%)": 100 * found.patches / max(1, found.patches.sum()),
            "extra": found.extra,
            "extra (%)": 100 * found.extra / max(1, found.extra.sum()),
        }
    )


def distribution_table(found: Sequence[ChannelDistribution]) -> pd.DataFrame:
    """Return the bins of several channels below each other."""
    return pd.concat([distribution_frame(one) for one in found], ignore_index=True)


def extra_name(count: int) -> str:
    """Return what the tokens at the front are called that are no patches."""
    return "class token" if count == 1 else "class and other extra tokens"


def token_figure(found: TokenMap, order: Sequence[int], chosen: int, limit: float) -> go.Figure:
    """Draw a layer's input for one image as tokens × channels, colours centred on zero.

    Args:
        found: The input.
        order: Channels from left to right.
        chosen: The channel to mark.
        limit: Magnitude at which the colours end.
    """
    names = token_names(found)
    heatmap = go.Heatmap(
        z=found.values[:, order],
        x=[str(channel) for channel in order],
        y=names,
        colorscale=DIVERGING,
        zmin=-limit,
        zmax=limit,
        colorbar={"title": {"text": "value", "side": "right"}, "thickness": 12},
        hovertemplate="<b>channel %{x}</b><br>%{y}<br>%{z:.4g}<extra></extra>",
    )
    figure = go.Figure(heatmap)
    mark_channel(figure, order, chosen)
    channel_axis(figure, order, "channel")
    ticks = np.arange(found.extra_tokens, len(names), _tokens_per_tick(found)).tolist()
    if found.extra_tokens:
        ticks[0] = 0  # there is no room for two
    texts = ["class" if place < found.extra_tokens else _tick(found, place) for place in ticks]
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=names,
        autorange="reversed",
        tickvals=[names[place] for place in ticks],
        ticktext=texts,
        showgrid=False,
        title="token",
    )
    return finish(figure, _HEIGHT, margin={"l": 10, "r": 10, "t": 60, "b": 10})


def _tokens_per_tick(found: TokenMap) -> int:
    tokens = len(found.values) - found.extra_tokens
    if found.windows > 1:
        return tokens // found.windows * max(1, found.windows // 8)
    if found.patches_per_row:
        return 2 * found.patches_per_row
    return max(1, tokens // 8)


def _tick(found: TokenMap, place: int) -> str:
    tokens = len(found.values)
    if found.windows > 1:
        return f"window {place // (tokens // found.windows)}"
    if found.patches_per_row:
        return f"row {(place - found.extra_tokens) // found.patches_per_row}"
    return str(place)


def token_names(found: TokenMap) -> list[str]:
    """Return a name per token: what it is, or where it lies."""
    names = []
    for place in range(len(found.values)):
        if place < found.extra_tokens:
            names.append("class token" if place == 0 else f"extra token {place}")
        elif found.patches_per_row:
            row, column = divmod(place - found.extra_tokens, found.patches_per_row)
            names.append(f"patch in row {row}, column {column}")
        elif found.windows > 1:
            window, inside = divmod(place, len(found.values) // found.windows)
            names.append(f"window {window}, token {inside}")
        else:
            names.append(f"token {place}")
    return names


def map_limit(found: TokenMap) -> float:
    """Return the magnitude at which the colours of the map end: most of the values lie within."""
    return float(np.quantile(np.abs(found.values), _SATURATED)) or 1.0


def map_words(found: TokenMap, limit: float) -> str:
    """Say what rows, colours and extremes of the map are."""
    order = "the patches row by row"
    if found.windows > 1:
        order = f"the tokens of {found.windows} windows, one window after another"
    elif not found.patches_per_row:
        order = "the tokens in the order in which the layer sees them"
    first = f"the {extra_name(found.extra_tokens)}, then {order}" if found.extra_tokens else order
    token, channel = np.unravel_index(np.abs(found.values).argmax(), found.values.shape)
    return (
        f"From top to bottom: {first}. Red is positive, blue negative; colours end at ±{limit:.2g} "
        f"({100 * _SATURATED:g} % of the values lie within), so that outliers do not pale the rest. Largest: "
        f"{found.values[token, channel]:.3g} in channel {channel}, {token_names(found)[token]}."
    )


def map_frame(found: TokenMap) -> pd.DataFrame:
    """Return the input as a table, one row per token and one column per channel."""
    frame = pd.DataFrame(found.values, columns=[str(channel) for channel in range(found.values.shape[1])])
    frame.insert(0, "token", token_names(found))
    return frame
