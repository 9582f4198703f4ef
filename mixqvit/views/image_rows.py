"""The figure of several explained images side by side: pictures, and one map of each below it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mixqvit.views.class_names import shortened
from mixqvit.views.explained_images import RELEVANCE_BAR, RELEVANCE_HOVER, stage_words
from mixqvit.views.maps import bar_below, colours, overlay, pale_picture, picture_trace, scale_end
from mixqvit.views.numbers import percent
from mixqvit.views.style import finish

if TYPE_CHECKING:
    from mixqvit.relevance.records import ImageRelevance

__all__ = ["ATTRIBUTION", "MOST_IMAGES", "PIXELS", "map_names", "map_of", "map_words", "row_figure", "row_frame"]

MOST_IMAGES = 8
"""Images that fit side by side."""

PIXELS, ATTRIBUTION = "pixels", "attribution"

_IN_A_ROW, _HEIGHT = 4, 165  # panels, pixels of one panel


def map_names(found: "ImageRelevance") -> list[str]:
    """Return the maps that there are of an image: of the pixels, attribution, and tokens by stage."""
    return [PIXELS, *([] if found.attribution is None else [ATTRIBUTION]), *found.tokens]


def map_words(name: str) -> str:
    """Return what a map shows, for a list of choices."""
    words = {PIXELS: "relevance of the pixels", ATTRIBUTION: "attribution of the patches"}
    return words.get(name) or f"tokens {stage_words(name)}"


def map_of(found: "ImageRelevance", name: str) -> np.ndarray:
    """Return one of the maps in `map_names`."""
    return (
        {PIXELS: found.pixels, ATTRIBUTION: found.attribution}[name] if name not in found.tokens else found.tokens[name]
    )


def row_figure(results: Sequence["ImageRelevance"], classes: Sequence[str], name: str, same_scale: bool) -> go.Figure:
    """Draw up to eight images, each explained for its class, with one map of each below its picture.

    Args:
        results: The images.
        classes: Labels of all classes.
        name: The map, one of `map_names`.
        same_scale: Whether all maps share one colour scale; otherwise each has one of its own, from 0 to 1 in its end.
    """
    diverging = name != ATTRIBUTION
    columns = min(_IN_A_ROW, len(results))
    rows = -(-len(results) // columns)
    maps = [map_of(found, name) for found in results]
    scales = [1.0 if same_scale else scale_end([values]) for values in maps]
    figure = make_subplots(
        2 * rows,
        columns,
        subplot_titles=[
            _heading(results[index], classes) if row % 2 == 0 and index < len(results) else ""
            for row in range(2 * rows)
            for index in range(row // 2 * columns, row // 2 * columns + columns)
        ],
        horizontal_spacing=0.015,
        vertical_spacing=0.3 / (2 * rows) ** 1.15,
    )
    for index, (found, values, scale) in enumerate(zip(results, maps, scales, strict=True)):
        row, column = 2 * (index // columns) + 1, index % columns + 1
        hover = f"{_names(found, classes)}<br>" + (RELEVANCE_HOVER if diverging else "attribution = %{z:.4f}")
        if scale != 1:
            hover = f"{_names(found, classes)}<br>%{{z:.3f}} × the end of this picture's scale, {scale:.3e}"
        figure.add_trace(picture_trace(found.image), row, column)
        figure.add_trace(pale_picture(found.image), row + 1, column)
        figure.add_trace(overlay(values / scale, found.image.shape, hover, diverging=diverging), row + 1, column)
    bar_title = RELEVANCE_BAR if diverging else "attribution"
    bar = bar_below(bar_title if same_scale else f"{bar_title}, on each picture's own scale", y=0, ypad=14)
    limit = scale_end(maps) if same_scale else 1.0
    figure.update_layout(coloraxis=colours(limit, diverging=diverging, bar=bar))
    finish(figure, 110 + 2 * _HEIGHT * rows, margin={"l": 5, "r": 5, "t": 44, "b": 70})
    figure.update_annotations(font_size=12)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain", autorange="reversed")
    return figure


def _heading(found: "ImageRelevance", classes: Sequence[str]) -> str:
    predicted = f"<b>{shortened(classes[found.predicted])}</b> {percent(found.probabilities[found.predicted], 0)}"
    if found.label is None:
        return predicted
    return predicted + (" ✓" if found.label == found.predicted else f"<br>✗ true: {shortened(classes[found.label])}")


def _names(found: "ImageRelevance", classes: Sequence[str]) -> str:
    true = "" if found.label is None else f", true {classes[found.label]}"
    return f"<b>{found.name}</b><br>explained {classes[found.target]}, predicted {classes[found.predicted]}{true}"


def row_frame(results: Sequence["ImageRelevance"], classes: Sequence[str], name: str) -> pd.DataFrame:
    """Return one map of every image as a table: row, column, and one value per image."""
    rows, columns = np.indices(map_of(results[0], name).shape)
    values = {f"{found.name}, predicted {classes[found.predicted]}": map_of(found, name).ravel() for found in results}
    return pd.DataFrame({"row": rows.ravel(), "column": columns.ravel(), **values})
