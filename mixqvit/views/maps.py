"""Maps laid over pictures: the traces and scales that all figures of explained images share."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from mixqvit.views.style import DIVERGING, SEQUENTIAL, finish

__all__ = [
    "STAYS",
    "bar_below",
    "colours",
    "map_frame",
    "overlay",
    "pale_picture",
    "panel",
    "picture_trace",
    "scale_end",
    "thumbnail",
    "title",
]

STAYS = {"marker": {"opacity": 1}}
"""Looks of what is not clicked: a click chooses something, so the rest of the figure must not fade for good."""

PANEL_HEIGHT = 330  # pixels
TOLD_APART = 0.99
"""The part of the values that the colours of a map tell apart."""

_PALEST = 0.45  # the darkest grey of a picture below an overlay, so that colours stay readable
_SEE_THROUGH = 0.65  # opacity of sequential maps: they have no colour that could be left out


def picture_trace(image: np.ndarray) -> go.Image:
    """Return a picture `[H, W, C]`, 0 to 1, as it is."""
    return go.Image(z=_rgb(image), hoverinfo="skip")


def pale_picture(image: np.ndarray) -> go.Image:
    """Return a picture in light grey, as the ground of an overlay."""
    grey = image.mean(axis=-1, keepdims=True)
    return go.Image(z=_rgb(_PALEST + (1 - _PALEST) * grey), hoverinfo="skip")


def overlay(
    values: np.ndarray, picture: Sequence[int], hover: str, *, diverging: bool, coloraxis: str = "coloraxis"
) -> go.Heatmap:
    """Return a map over a picture, each value over the pixels it belongs to.

    Args:
        values: The map `[h, w]`: one value per pixel, or per patch.
        picture: Height and width of the picture.
        hover: Plotly's template below "row …, column …"; `%{z}` is the value.
        diverging: Whether values are relevance, which has two signs, or start at zero.
        coloraxis: The figure's colour axis that the values are read on (`colours`).
    """
    (rows, columns), (height, width) = values.shape, picture[:2]
    step_y, step_x = height / rows, width / columns
    what = "" if (rows, columns) == (height, width) else "patch "
    return go.Heatmap(
        z=values.astype(np.float32),
        # Pixels are centred on whole numbers, so the picture begins half a pixel before zero.
        x0=(step_x - 1) / 2,
        dx=step_x,
        y0=(step_y - 1) / 2,
        dy=step_y,
        coloraxis=coloraxis,
        opacity=1.0 if diverging else _SEE_THROUGH,
        customdata=np.stack(np.indices((rows, columns)), axis=-1).astype(np.int16),
        hovertemplate=f"{what}row %{{customdata[0]}}, column %{{customdata[1]}}<br>{hover}<extra></extra>",
    )


def colours(limit: float, *, diverging: bool, bar: dict) -> dict:
    """Return the colour axis of maps: relevance centred on zero, everything else from zero upwards.

    Args:
        limit: The value, or |value|, at the end of the scale.
        diverging: Whether values have two signs.
        bar: The colour bar.
    """
    least, middle = (-limit, 0.0) if diverging else (0.0, limit / 2)
    ticks = {least: f"≤ −{limit:.2g}" if diverging else "0", middle: f"{middle:.2g}", limit: f"≥ {limit:.2g}"}
    return {
        "colorscale": _fading() if diverging else SEQUENTIAL,
        "cmin": least,
        "cmax": limit,
        "colorbar": {"tickvals": list(ticks), "ticktext": list(ticks.values()), **bar},
    }


def scale_end(maps: Iterable[np.ndarray]) -> float:
    """Return where the colour scale of maps shown together ends; never zero.

    That is the 99th percentile of |value|: a single outlier pixel would leave everything else pale. The few values
    beyond have the colour of the end.
    """
    values = np.abs(np.concatenate([np.ravel(values) for values in maps]))
    return float(np.quantile(values, TOLD_APART) or values.max()) or float(np.finfo(np.float32).tiny)


def bar_below(text: str, **options: object) -> dict:
    """Return a slim colour bar below its panels, with a title."""
    return {
        "orientation": "h",
        "thickness": 10,
        "y": -0.02,
        "yanchor": "top",
        "title": {"text": text, "side": "bottom"},
        "tickangle": 0,
        **options,
    }


def title(text: str) -> dict:
    """Return the title of a panel."""
    return {"text": text, "font": {"size": 14}}


def panel(figure: go.Figure, text: str) -> go.Figure:
    """Give a figure with one picture its size and title; returns it."""
    finish(figure, PANEL_HEIGHT, title=title(text), margin={"l": 5, "r": 5, "t": 34, "b": 70, "autoexpand": False})
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain", constraintoward="top")
    return figure


def map_frame(values: np.ndarray, name: str) -> pd.DataFrame:
    """Return a map `[h, w]` as a table of row, column and value."""
    rows, columns = np.indices(values.shape)
    return pd.DataFrame({"row": rows.ravel(), "column": columns.ravel(), name: values.ravel()})


def thumbnail(image: np.ndarray, side: int = 64) -> np.ndarray:
    """Return a preview of a picture `[H, W, C]` of about `side` pixels: shrunk by means, or enlarged unblurred."""
    longest = max(image.shape[:2])
    if longest >= 2 * side:
        factor = longest // side
        height, width = (length - length % factor for length in image.shape[:2])
        blocks = image[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
        image = blocks.mean(axis=(1, 3))
    factor = max(1, side // max(image.shape[:2]))
    return _rgb(image).repeat(factor, axis=0).repeat(factor, axis=1)


def _rgb(image: np.ndarray) -> np.ndarray:
    three = image if image.shape[-1] == 3 else image[..., :1].repeat(3, axis=-1)
    return (255 * three).round().astype(np.uint8)


def _fading() -> list[tuple[float, str]]:
    """Return the diverging colour scale, transparent in the middle, so that the picture shows where R is 0."""
    lower, upper = (colour[4:-1] for colour in sample_colorscale(DIVERGING, [0.08, 0.92]))
    opacities = np.linspace(0, 1, 6)
    fading = [((1 - opacity) / 2, f"rgba({lower}, {opacity:.2f})") for opacity in opacities[::-1]]
    return fading + [((1 + opacity) / 2, f"rgba({upper}, {opacity:.2f})") for opacity in opacities]
