"""Figures of the Relevance page: layer importance Ω, and the relevance of one image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from mixqvit.figures.grid import blocks_by_kinds, layer_frame
from mixqvit.figures.labels import short_labels
from mixqvit.figures.style import DIVERGING, KIND_COLOURS, SEQUENTIAL, finish
from mixqvit.layers import Layer

if TYPE_CHECKING:
    from mixqvit.study import ImageRelevance, Importance

__all__ = [
    "attribution_overlay",
    "class_labels",
    "importance_bars",
    "importance_frame",
    "importance_grid",
    "leading",
    "limits",
    "map_frame",
    "picture",
    "probability_bars",
    "probability_frame",
    "relevance_overlay",
    "thumbnail",
]

SPREAD = (5, 95)
"""Percentiles of the images that the spread covers."""

_BAR_HEIGHT, _PANEL_HEIGHT = 18, 330  # pixels
_CLASSES_SHOWN = 10
_PALEST = 0.45  # the darkest grey of a picture below an overlay, so that colours stay readable


def importance_grid(layers: Sequence[Layer], importance: "Importance") -> go.Figure:
    """Draw Ω of every layer, in percent, as blocks × kinds."""
    frame = importance_frame(layers, importance).set_index("layer")

    def hover(layer: Layer, value: float) -> str:
        row = frame.loc[layer.name]
        return (
            f"importance Ω = {value:.3f} %<br>"
            f"{SPREAD[0]} to {SPREAD[1]} % of the images: {row.iloc[-2]:.2f} to {row.iloc[-1]:.2f} %<br>"
        )

    return blocks_by_kinds(
        layers,
        frame["importance (%)"].to_dict(),
        colours=SEQUENTIAL,
        title="importance Ω (%)",
        text=lambda _, value: f"{value:.1f}",
        hover=hover,
        limits=(0.0, float(frame["importance (%)"].max())),
    )


def importance_bars(layers: Sequence[Layer], importance: "Importance", largest_first: bool) -> go.Figure:
    """Draw Ω of every layer as a bar with its spread over the images."""
    frame = importance_frame(layers, importance)
    frame["label"] = frame["layer"].map(short_labels(layers))
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
                "color": "#7a868d",
            },
            customdata=rows[["layer", low, high]],
            hovertemplate="<b>%{customdata[0]}</b><br>importance Ω = %{x:.3f} %<br>"
            f"{SPREAD[0]} to {SPREAD[1]} % of the images: %{{customdata[1]:.2f}} to %{{customdata[2]:.2f}} %"
            "<extra></extra>",
        )
    if largest_first:
        frame = frame.sort_values("importance (%)", ascending=False)
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
    first = sorted(importance.mean, key=importance.mean.__getitem__, reverse=True)[:count]
    return ", ".join(f"{labels[name]} ({importance.mean[name]:.1%})" for name in first)


def _spread_columns() -> tuple[str, str]:
    return f"{SPREAD[0]} % of images (%)", f"{SPREAD[1]} % of images (%)"


def class_labels(names: Sequence[str]) -> list[str]:
    """Return one label per class; classes that share a name get their number added."""
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]


def picture(found: "ImageRelevance") -> go.Figure:
    """Draw the picture itself."""
    figure = go.Figure(go.Image(z=_rgb(found.image), hoverinfo="skip"))
    return _panel(figure, "Picture")


def relevance_overlay(found: "ImageRelevance", limit: float) -> go.Figure:
    """Draw the relevance of every pixel over the pale picture.

    Args:
        found: The relevance of an image.
        limit: |R| at the two ends of the colour scale.
    """
    heatmap = go.Heatmap(
        z=found.pixels,
        colorscale=_fading(DIVERGING),
        zmin=-limit,
        zmax=limit,
        colorbar=_bar_below("R (against … for the class)"),
        hovertemplate="row %{y}, column %{x}<br>relevance R = %{z:.3e}<extra></extra>",
    )
    return _panel(go.Figure([_pale(found.image), heatmap]), "Relevance of the pixels")


def attribution_overlay(found: "ImageRelevance", limit: float) -> go.Figure:
    """Draw the rollout attribution of every patch over the pale picture.

    Args:
        found: The relevance of an image of a model with a class token.
        limit: Attribution at the upper end of the colour scale.
    """
    height, width = found.image.shape[:2]
    rows, columns = found.attribution.shape
    step_y, step_x = height / rows, width / columns
    heatmap = go.Heatmap(
        z=found.attribution,
        # Pixels are centred on whole numbers, so the picture begins half a pixel before zero.
        x0=(step_x - 1) / 2,
        dx=step_x,
        y0=(step_y - 1) / 2,
        dy=step_y,
        colorscale=SEQUENTIAL,
        zmin=0.0,
        zmax=limit,
        opacity=0.65,
        colorbar=_bar_below("attribution"),
        customdata=np.stack(np.indices((rows, columns)), axis=-1),
        hovertemplate="patch row %{customdata[0]}, column %{customdata[1]}<br>attribution = %{z:.4f}<extra></extra>",
    )
    return _panel(go.Figure([_pale(found.image), heatmap]), "Attribution of the patches")


def limits(results: Sequence["ImageRelevance"]) -> tuple[float, float]:
    """Return the largest |R| of a pixel and the largest attribution, so that all results share their colour scales."""
    tiny = np.finfo(float).tiny
    attributions = [found.attribution.max() for found in results if found.attribution is not None]
    return max(tiny, *(float(np.abs(found.pixels).max()) for found in results)), float(
        max(attributions, default=0.0)
    ) or tiny


def map_frame(values: np.ndarray, name: str) -> pd.DataFrame:
    """Return a map `[h, w]` as a table of row, column and value."""
    rows, columns = np.indices(values.shape)
    return pd.DataFrame({"row": rows.ravel(), "column": columns.ravel(), name: values.ravel()})


def probability_bars(found: "ImageRelevance", names: Sequence[str]) -> go.Figure:
    """Draw the probabilities of the likeliest classes, the true and the explained one always among them."""
    frame = probability_frame(found, names)
    frame = frame[frame["shown"]]
    names, values, roles = (frame[column].tolist() for column in ("class", "probability", "role"))
    bars = go.Bar(
        orientation="h",
        x=values,
        y=[f"▸ {name}" if "explained" in role else name for name, role in zip(names, roles, strict=True)],
        marker={"color": ["#0072b2" if "explained" in role else "#9aa5ab" for role in roles]},
        text=[f"{value:.1%}{' ✓' if 'true' in role else ''}" for value, role in zip(values, roles, strict=True)],
        textposition="auto",
        customdata=list(zip(names, roles, strict=True)),
        hovertemplate="<b>%{customdata[0]}</b> %{customdata[1]}<br>probability %{x:.4f}<extra></extra>",
    )
    margin = {"l": 5, "r": 5, "t": 34, "b": 10}
    figure = finish(
        go.Figure(bars), _PANEL_HEIGHT, title=_title("Probabilities (▸ explained, ✓ true)"), bargap=0.2, margin=margin
    )
    figure.update_xaxes(range=[0, 1], tickformat=".0%", nticks=4)
    figure.update_yaxes(type="category", autorange="reversed", dtick=1)
    return figure


def probability_frame(found: "ImageRelevance", names: Sequence[str]) -> pd.DataFrame:
    """Return the probability and role of every class, and whether the bars show it."""
    roles = {found.label: "true", found.predicted: "predicted"}
    if found.label == found.predicted:
        roles = {found.predicted: "predicted, true"}
    roles[found.target] = ", ".join(filter(None, (roles.get(found.target), "explained")))
    order = np.argsort(-found.probabilities, kind="stable")
    likeliest = set(order[:_CLASSES_SHOWN].tolist())
    return pd.DataFrame(
        {
            "class": list(names),
            "probability": found.probabilities,
            "role": [roles.get(index, "") for index in range(len(names))],
            "shown": [index in likeliest or index in roles for index in range(len(names))],
        }
    )


def thumbnail(image: np.ndarray, side: int = 64) -> np.ndarray:
    """Return a picture `[H, W, C]` for a small preview, its pixels enlarged to about `side` without blurring."""
    factor = max(1, side // max(image.shape[:2]))
    return _rgb(image).repeat(factor, axis=0).repeat(factor, axis=1)


def _rgb(image: np.ndarray) -> np.ndarray:
    colours = image if image.shape[-1] == 3 else image[..., :1].repeat(3, axis=-1)
    return (255 * colours).round().astype(np.uint8)


def _pale(image: np.ndarray) -> go.Image:
    grey = image.mean(axis=-1, keepdims=True)
    return go.Image(z=_rgb(_PALEST + (1 - _PALEST) * grey), hoverinfo="skip")


def _fading(scale: str) -> list[tuple[float, str]]:
    """Return a diverging colour scale that is transparent in the middle, so that the picture shows where R is 0."""
    lower, upper = (colour[4:-1] for colour in sample_colorscale(scale, [0.08, 0.92]))
    opacities = np.linspace(0, 1, 6)
    fading = [((1 - opacity) / 2, f"rgba({lower}, {opacity:.2f})") for opacity in opacities[::-1]]
    return fading + [((1 + opacity) / 2, f"rgba({upper}, {opacity:.2f})") for opacity in opacities]


def _bar_below(title: str) -> dict:
    return {
        "orientation": "h",
        "thickness": 10,
        "y": -0.02,
        "yanchor": "top",
        "title": {"text": title, "side": "bottom"},
        "nticks": 5,
        "exponentformat": "power",
    }


def _title(text: str) -> dict:
    return {"text": text, "font": {"size": 14}}


def _panel(figure: go.Figure, title: str) -> go.Figure:
    finish(figure, _PANEL_HEIGHT, title=_title(title), margin={"l": 5, "r": 5, "t": 34, "b": 70, "autoexpand": False})
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain", constraintoward="top")
    return figure
