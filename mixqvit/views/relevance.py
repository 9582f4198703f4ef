"""Figures of the Relevance page about layers: importance Ω, one layer's share per image, and the flow past blocks."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mixqvit.network.layers import Layer
from mixqvit.views.grid import blocks_by_kinds, layer_frame
from mixqvit.views.labels import short_labels
from mixqvit.views.maps import STAYS
from mixqvit.views.numbers import percent
from mixqvit.views.style import KIND_COLOURS, SEQUENTIAL, finish

if TYPE_CHECKING:
    from mixqvit.relevance.records import BranchShare, Importance

__all__ = [
    "BRANCHES",
    "clicked_branch",
    "clicked_layer",
    "flow_figure",
    "flow_frame",
    "flow_words",
    "importance_bars",
    "importance_frame",
    "importance_grid",
    "leading",
    "most_important",
    "rank",
    "share_figure",
    "share_frame",
]

SPREAD = (5, 95)
"""Percentiles of the images that the spread covers."""

BRANCHES = {"attention": ("#0072b2", "proj"), "mlp": ("#e69f00", "fc2")}
"""Colour of each branch, and the kind of its last layer, through which all of its relevance passes."""

_BAR_HEIGHT, _FLOW_HEIGHT, _SHARE_HEIGHT = 18, 330, 300  # pixels
_SHARE_BINS = 24
_LINE, _SKIP, _CHOSEN = "#7a868d", "rgba(122, 134, 141, 0.22)", "#d55e00"
_BESIDE = 0.21  # of a branch's bar from the middle of its block
_SHORT = {"attention": "attn", "mlp": "MLP"}


def importance_grid(layers: Sequence[Layer], importance: "Importance", chosen: str | None = None) -> go.Figure:
    """Draw Ω of every layer, in percent, as blocks × kinds; a chosen layer has its number in brackets."""
    frame = importance_frame(layers, importance).set_index("layer")
    low, high = _spread_columns()

    def hover(layer: Layer, value: float) -> str:
        row = frame.loc[layer.name]
        return (
            f"importance Ω = {value:.3f} %<br>"
            f"{SPREAD[0]} to {SPREAD[1]} % of the images: {row[low]:.2f} to {row[high]:.2f} %<br>"
        )

    return blocks_by_kinds(
        layers,
        frame["importance (%)"].to_dict(),
        colours=SEQUENTIAL,
        title="importance Ω (%)",
        text=lambda layer, value: f"<b>[{value:.1f}]</b>" if layer.name == chosen else f"{value:.1f}",
        hover=hover,
        limits=(0.0, float(frame["importance (%)"].max())),
    )


def importance_bars(
    layers: Sequence[Layer], importance: "Importance", largest_first: bool, chosen: str | None = None
) -> go.Figure:
    """Draw Ω of every layer as a bar with its spread over the images; a chosen layer is marked."""
    frame = importance_frame(layers, importance)
    labels = short_labels(layers)
    frame["label"] = [f"▸ {labels[name]}" if name == chosen else labels[name] for name in frame["layer"]]
    low, high = _spread_columns()
    figure = go.Figure()
    for kind, rows in frame.groupby("kind", sort=False):
        middle = rows["importance (%)"]
        figure.add_bar(
            name=kind,
            orientation="h",
            x=middle,
            y=rows["label"],
            marker={"color": KIND_COLOURS[kind]},
            error_x={
                "array": rows[high] - middle,
                "arrayminus": middle - rows[low],
                "thickness": 1,
                "width": 2,
                "color": _LINE,
            },
            customdata=rows[["layer", low, high]],
            hovertemplate="<b>%{customdata[0]}</b><br>importance Ω = %{x:.3f} %<br>"
            f"{SPREAD[0]} to {SPREAD[1]} % of the images: %{{customdata[1]:.2f}} to %{{customdata[2]:.2f}} %"
            "<extra></extra>",
        )
    figure.update_traces(unselected=STAYS)
    if largest_first:
        frame = frame.sort_values("importance (%)", ascending=False, kind="stable")
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=frame["label"], autorange="reversed", dtick=1
    )
    figure.update_xaxes(title="importance Ω (%), with the spread over images", rangemode="tozero")
    return finish(figure, 110 + _BAR_HEIGHT * len(frame), bargap=0.25, margin={"l": 10, "r": 10, "t": 60, "b": 10})


def importance_frame(layers: Sequence[Layer], importance: "Importance") -> pd.DataFrame:
    """Return Ω and its spread over the images by layer, in percent."""
    shares = {name: 100 * np.asarray(values) for name, values in importance.shares.items()}
    low, high = _spread_columns()
    return layer_frame(
        layers,
        {
            "importance (%)": {name: 100 * value for name, value in importance.mean.items()},
            "standard deviation (%)": {name: values.std() for name, values in shares.items()},
            low: {name: np.percentile(values, SPREAD[0]) for name, values in shares.items()},
            high: {name: np.percentile(values, SPREAD[1]) for name, values in shares.items()},
        },
    )


def leading(layers: Sequence[Layer], importance: "Importance", count: int) -> str:
    """Name the most important layers with their Ω, in words."""
    labels = short_labels(layers)
    return ", ".join(
        f"{labels[name]} ({percent(importance.mean[name])})" for name in _by_importance(importance)[:count]
    )


def most_important(importance: "Importance") -> str:
    """Return the name of the most important layer."""
    return _by_importance(importance)[0]


def rank(importance: "Importance", layer: str) -> int:
    """Return the place of a layer by importance, 1 for the most important."""
    return _by_importance(importance).index(layer) + 1


def clicked_layer(points: Sequence[Mapping]) -> str | None:
    """Return the layer of the first of the clicked points, where each carries its layer's name as first datum."""
    return points[0]["customdata"][0] if points else None


def _by_importance(importance: "Importance") -> list[str]:
    return sorted(importance.mean, key=importance.mean.__getitem__, reverse=True)


def _spread_columns() -> tuple[str, str]:
    return f"{SPREAD[0]} % of images (%)", f"{SPREAD[1]} % of images (%)"


def share_figure(importance: "Importance", layer: str, names: Sequence[str]) -> go.Figure:
    """Draw the share of a layer in every image as a stack of points, with Ω and what an equal share would be.

    Args:
        importance: Importance by any method.
        layer: Name of the layer.
        names: Names of the images.
    """
    frame = share_frame(importance, layer, names)
    shares = frame["share (%)"].to_numpy()
    edges = np.histogram_bin_edges(shares, _SHARE_BINS)
    bins = np.clip(np.digitize(shares, edges) - 1, 0, _SHARE_BINS - 1)
    heights = np.zeros(len(shares), dtype=int)
    for place in range(_SHARE_BINS):
        (inside,) = np.nonzero(bins == place)
        heights[inside[np.argsort(shares[inside], kind="stable")]] = np.arange(1, len(inside) + 1)
    points = go.Scatter(
        x=shares,
        y=heights,
        mode="markers",
        marker={"size": 9, "color": "#0072b2", "line": {"width": 1, "color": "white"}},
        customdata=frame[["image", "name"]],
        hovertemplate="calibration image %{customdata[0]} (%{customdata[1]})<br>share %{x:.3f} %<extra></extra>",
    )
    equal, mean = 100 / len(importance.mean), 100 * importance.mean[layer]
    figure = finish(go.Figure(points), _SHARE_HEIGHT, showlegend=False, margin={"l": 10, "r": 10, "t": 44, "b": 10})
    for value, text, colour, dash, height in (
        (mean, f"Ω = {mean:.2f} %", _CHOSEN, "solid", 16),
        (equal, f"equal share {equal:.2f} %", _LINE, "dot", 0),
    ):
        figure.add_vline(value, line={"color": colour, "dash": dash, "width": 2})
        figure.add_annotation(
            x=value,
            y=1,
            yref="paper",
            yanchor="bottom",
            yshift=height,
            text=text,
            showarrow=False,
            font={"color": colour, "size": 12},
        )
    figure.update_xaxes(title="share of the layer in one image (%)")
    figure.update_yaxes(title="images", rangemode="tozero", range=[0, max(heights.max() + 1, 6)])
    return figure


def share_frame(importance: "Importance", layer: str, names: Sequence[str]) -> pd.DataFrame:
    """Return the share of a layer in every image, in percent."""
    shares = 100 * np.asarray(importance.shares[layer])
    return pd.DataFrame({"image": range(len(shares)), "name": names[: len(shares)], "share (%)": shares})


def flow_figure(flow: Sequence["BranchShare"]) -> go.Figure:
    """Draw how relevance divides at every residual sum: the branch below, the skip connection above it."""
    frame = flow_frame(flow)
    low, high = _spread_columns()
    figure = go.Figure()
    numbers_fit = len(frame) <= 16
    for branch, (colour, _) in BRANCHES.items():
        rows = frame[frame["branch"] == branch]
        middle = rows["share (%)"]
        axis, width = [[f"block {block}" for block in rows["block"]], [_SHORT[branch]] * len(rows)], None
        if not numbers_fit:  # nor do the names of the branches; colour and hatching tell them apart
            axis, width = rows["block"] + (_BESIDE if branch == "mlp" else -_BESIDE), 2 * _BESIDE - 0.04
        hover = (
            f"<b>block %{{customdata[0]}}, {'MLP' if branch == 'mlp' else branch} branch</b><br>"
            "takes %{customdata[2]:.2f} %, the skip connection %{customdata[3]:.2f} %<br>"
            f"{SPREAD[0]} to {SPREAD[1]} % of the images: %{{customdata[4]:.2f}} to %{{customdata[5]:.2f}} %"
            "<extra></extra>"
        )
        customdata = rows.assign(skip=100 - middle)[["block", "branch", "share (%)", "skip", low, high]]
        figure.add_bar(
            name=f"{'MLP' if branch == 'mlp' else branch} branch",
            x=axis,
            width=width,
            y=middle,
            marker={
                "color": colour,
                "pattern": {
                    "shape": "/" if branch == "mlp" else "",
                    "fillmode": "overlay",
                    "fgcolor": "white",
                    "fgopacity": 0.5,
                    "size": 6,
                    "solidity": 0.2,
                },
            },
            error_y={
                "array": (rows[high] - middle).clip(lower=0),
                "arrayminus": (middle - rows[low]).clip(lower=0),
                "thickness": 1.5,
                "width": 3,
                "color": _LINE,
            },
            text=[f"{value:.0f}" for value in middle] if numbers_fit else None,
            textposition="inside",
            insidetextanchor="start",
            textangle=0,
            customdata=customdata,
            hovertemplate=hover,
        )
        figure.add_bar(
            name="skip connection",
            x=axis,
            width=width,
            # Under signed rules a branch can take less than nothing or more than all.
            y=(100 - middle).clip(0, 100),
            base=middle.clip(0, 100),
            marker={"color": _SKIP},
            customdata=customdata,
            hovertemplate=hover,
            legendgroup="skip",
            showlegend=branch == "attention",
        )
    finish(figure, _FLOW_HEIGHT, barmode="overlay", bargap=0.12, margin={"l": 10, "r": 10, "t": 50, "b": 10})
    figure.update_traces(unselected=STAYS)
    if numbers_fit:
        figure.update_xaxes(dividercolor=_LINE)
    else:
        figure.update_xaxes(title="block", dtick=1 if frame["block"].nunique() <= 14 else 2, showgrid=False)
    figure.update_yaxes(title="share of the relevance (%)", dtick=25)
    return figure


def flow_frame(flow: Sequence["BranchShare"]) -> pd.DataFrame:
    """Return the mean share of every branch and its spread over the images, in percent."""
    shares = [100 * np.asarray(found.shares) for found in flow]
    low, high = _spread_columns()
    return pd.DataFrame(
        {
            "block": [found.block for found in flow],
            "branch": [found.branch for found in flow],
            "share (%)": [values.mean() for values in shares],
            low: [np.percentile(values, SPREAD[0]) for values in shares],
            high: [np.percentile(values, SPREAD[1]) for values in shares],
        }
    )


def flow_words(flow: Sequence["BranchShare"]) -> str:
    """Say in words where the branches take most of the relevance."""
    frame = flow_frame(flow)
    parts = []
    for branch, rows in frame.groupby("branch", sort=False):
        most = rows.loc[rows["share (%)"].idxmax()]
        parts.append(
            f"{'MLP' if branch == 'mlp' else branch} branches take {rows['share (%)'].mean():.0f} % on average, most "
            f"in block {most['block']} ({most['share (%)']:.0f} %)"
        )
    words = f"The {'; the '.join(parts)}. The rest passes each of them on the skip connection."
    if frame["share (%)"].min() < 0 or frame["share (%)"].max() > 100:
        words += " A share below 0 % or above 100 % means that branch and skip connection oppose each other."
    return words


def clicked_branch(layers: Sequence[Layer], points: Sequence[Mapping]) -> str | None:
    """Return the last layer of the branch of the first of the clicked points of the flow."""
    if not points:
        return None
    block, branch = points[0]["customdata"][:2]
    kind = BRANCHES[branch][1]
    return next((layer.name for layer in layers if layer.block == block and layer.kind == kind), None)
