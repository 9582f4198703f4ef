"""Figures of the Relevance page about one explained image: its pixels, its tokens as they form, its heads."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mixqvit.views.class_names import short_names, shortened
from mixqvit.views.maps import (
    PANEL_HEIGHT,
    STAYS,
    bar_below,
    colours,
    overlay,
    pale_picture,
    panel,
    picture_trace,
    scale_end,
    title,
)
from mixqvit.views.numbers import percent
from mixqvit.views.style import finish

if TYPE_CHECKING:
    from mixqvit.relevance.records import ImageRelevance

__all__ = [
    "HEAD_MAPS",
    "attribution_overlay",
    "clicked_stage",
    "forming_figure",
    "forming_frame",
    "head_figure",
    "head_frame",
    "head_limit",
    "head_maps",
    "picture",
    "probability_bars",
    "probability_frame",
    "relevance_overlay",
    "relevance_words",
    "stage_words",
    "token_overlay",
]

HEAD_MAPS = ("output relevance", "gradient × relevance")
"""What can be shown of every head; the second reads the class token's attention, where there is a class token."""

RELEVANCE_BAR = "R (against … for the class)"
RELEVANCE_HOVER = "relevance R = %{z:.3e} (%{z:.3%} of the score's)"

_CLASSES_SHOWN = 10
_HEADS_IN_A_ROW, _HEAD_HEIGHT = 4, 210
_FIRST, _SECOND, _MARK = "#0072b2", "#e69f00", "#7a868d"


def picture(found: "ImageRelevance") -> go.Figure:
    """Draw the picture itself."""
    return panel(go.Figure(picture_trace(found.image)), "Picture")


def relevance_overlay(found: "ImageRelevance", limit: float) -> go.Figure:
    """Draw the relevance of every pixel over the pale picture.

    Args:
        found: The relevance of an image.
        limit: |R| at the two ends of the colour scale.
    """
    return _relevance_panel(found, found.pixels, limit, "Relevance of the pixels", RELEVANCE_HOVER)


def token_overlay(found: "ImageRelevance", stage: str, limit: float) -> go.Figure:
    """Draw the relevance of every patch token at one stage over the pale picture.

    Args:
        found: The relevance of an image.
        stage: A name in `found.tokens`.
        limit: |R| at the two ends of the colour scale.
    """
    words = stage_words(stage)
    return _relevance_panel(found, found.tokens[stage], limit, f"Tokens {words}", f"{words}<br>{RELEVANCE_HOVER}")


def attribution_overlay(found: "ImageRelevance", limit: float) -> go.Figure:
    """Draw the rollout attribution of every patch over the pale picture.

    Args:
        found: The relevance of an image of a model with a class token.
        limit: Attribution at the upper end of the colour scale.
    """
    total = float(found.attribution.sum()) or 1.0
    hover = "attribution = %{z:.4f}<br>share " + "%{text:.2f} %"
    heatmap = overlay(found.attribution, found.image.shape, hover, diverging=False)
    heatmap.text = 100 * found.attribution / total
    figure = go.Figure([pale_picture(found.image), heatmap])
    figure.update_layout(coloraxis=colours(limit, diverging=False, bar=bar_below("attribution")))
    return panel(figure, "Attribution of the patches")


def _relevance_panel(found: "ImageRelevance", values: np.ndarray, limit: float, text: str, hover: str) -> go.Figure:
    figure = go.Figure([pale_picture(found.image), overlay(values, found.image.shape, hover, diverging=True)])
    figure.update_layout(coloraxis=colours(limit, diverging=True, bar=bar_below(RELEVANCE_BAR)))
    return panel(figure, text)


def relevance_words(found: "ImageRelevance") -> str:
    """Say how much of the relevance reaches the pixels, and how much left where."""
    exits = sorted(found.left.items(), key=lambda item: abs(item[1]), reverse=True)
    named = ", ".join(f"{amount:.2f} {reason}" for reason, amount in exits if abs(amount) >= 0.005)
    words = f"Of the relevance 1 at the score, {found.pixels.sum():.2f} reaches the pixels" + (
        f"; the rest left on the way: {named}." if named else "."
    )
    return words.replace("-", "−")


def stage_words(stage: str) -> str:
    """Return where in the network a stage of `ImageRelevance.tokens` is."""
    return "after the patch embedding" if stage == "patches" else f"after {stage}"


def forming_figure(results: Sequence["ImageRelevance"], classes: Sequence[str], stage: str) -> go.Figure:
    """Draw how much relevance is on the patch tokens at every stage, one line per explained class.

    Args:
        results: One image explained for one or two classes.
        classes: Labels of all classes.
        stage: The stage to mark.
    """
    figure = go.Figure()
    frame = forming_frame(results, classes)
    stages = list(results[0].tokens)
    looks = ((_FIRST, "circle", "solid"), (_SECOND, "square", "dash"))
    for (name, rows), (colour, symbol, dash) in zip(frame.groupby("class", sort=False), looks, strict=False):
        figure.add_scatter(
            name=f"for {name}",
            x=rows["stage"],
            y=rows["relevance on patches"],
            mode="lines+markers",
            cliponaxis=False,
            line={"color": colour, "dash": dash},
            marker={
                "symbol": symbol,
                "size": [15 if place == stage else 8 for place in rows["stage"]],
                "color": colour,
            },
            unselected=STAYS,
            customdata=rows[["stage", "tokens"]],
            hovertemplate=f"for {name}, after %{{x}}: %{{y:.3f}}<br>on %{{customdata[1]}} patch tokens<extra></extra>",
        )
    figure.add_vline(stages.index(stage), line={"color": _MARK, "dash": "dot", "width": 1})
    finish(
        figure,
        PANEL_HEIGHT,
        title=title("Relevance on the patch tokens"),
        showlegend=len(results) > 1,
        legend={"y": 1.0, "yanchor": "bottom"},
        margin={"l": 10, "r": 10, "t": 60, "b": 10},
    )
    figure.update_xaxes(
        type="category",
        title="input … after block … class",
        categoryarray=stages,
        tickvals=stages,
        ticktext=[stage.removeprefix("block ") for stage in stages],
        tickangle=0,
    )
    figure.update_yaxes(rangemode="tozero", title="sum over the patches")
    return figure


def forming_frame(results: Sequence["ImageRelevance"], classes: Sequence[str]) -> pd.DataFrame:
    """Return the relevance on all patch tokens by explained class and stage."""
    return pd.DataFrame(
        [
            (classes[found.target], stage, float(values.sum()), values.size)
            for found in results
            for stage, values in found.tokens.items()
        ],
        columns=["class", "stage", "relevance on patches", "tokens"],
    )


def clicked_stage(points: Sequence[Mapping]) -> str | None:
    """Return the stage of the first of the clicked points."""
    return points[0]["customdata"][0] if points else None


def head_maps(found: "ImageRelevance") -> dict[str, Mapping[int, np.ndarray]]:
    """Return the maps of heads that there are, `[heads, h, w]` by block, by name in `HEAD_MAPS`."""
    maps = zip(HEAD_MAPS, (found.heads, found.attribution_heads), strict=True)
    return {name: by_block for name, by_block in maps if by_block}


def head_limit(results: Sequence["ImageRelevance"], block: int, shown: str) -> float:
    """Return where the colour scale of all heads of a block ends, for all results together."""
    return scale_end(head_maps(found)[shown][block] for found in results)


def head_figure(found: "ImageRelevance", block: int, shown: str, limit: float) -> go.Figure:
    """Draw one map per head of a block over the pale picture, on one scale.

    Args:
        found: The relevance of an image.
        block: Index of the block.
        shown: One of `HEAD_MAPS`.
        limit: Value, or |value|, at the end of the colour scale.
    """
    maps = head_maps(found)[shown][block]
    diverging = shown == HEAD_MAPS[0]
    sums = maps.sum(axis=(1, 2))
    total = float(sums.sum()) or 1.0
    # Relevance of two signs cancels in the sum, so a part of it would say nothing.
    parts = [f"R = {part:.3g}".replace("-", "−") if diverging else f"{100 * part / total:.0f} %" for part in sums]
    names = [f"head {head}: {part}" for head, part in enumerate(parts)]
    columns = min(_HEADS_IN_A_ROW, len(maps))
    rows = -(-len(maps) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=names, horizontal_spacing=0.02, vertical_spacing=min(0.14, 0.3 / rows)
    )
    for head, values in enumerate(maps):
        row, column = head // columns + 1, head % columns + 1
        value = RELEVANCE_HOVER if diverging else "gradient × relevance = %{z:.3e}"
        hover = f"block {block}, {names[head]} in all<br>{value}"
        figure.add_trace(pale_picture(found.image), row, column)
        figure.add_trace(overlay(values, found.image.shape, hover, diverging=diverging), row, column)
    bar = bar_below(RELEVANCE_BAR if diverging else "gradient × relevance", y=0, ypad=14)
    figure.update_layout(coloraxis=colours(limit, diverging=diverging, bar=bar))
    finish(figure, 90 + _HEAD_HEIGHT * rows, margin={"l": 5, "r": 5, "t": 30, "b": 70})
    figure.update_annotations(font_size=13)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain", autorange="reversed")
    return figure


def head_frame(maps: np.ndarray) -> pd.DataFrame:
    """Return maps `[heads, h, w]` as a table of row, column and one value per head."""
    rows, columns = np.indices(maps.shape[1:])
    values = {f"head {head}": found.ravel() for head, found in enumerate(maps)}
    return pd.DataFrame({"row": rows.ravel(), "column": columns.ravel(), **values})


def probability_bars(found: "ImageRelevance", names: Sequence[str]) -> go.Figure:
    """Draw the probabilities of the likeliest classes, the true and the explained one always among them.

    Args:
        found: The relevance of an image.
        names: Whole names of all classes; the axis has their first synonyms.
    """
    frame = probability_frame(found, names)
    if len(frame) > _CLASSES_SHOWN:  # a few classes keep their order, so that they stay in place
        frame = frame.sort_values("probability", ascending=False, kind="stable")
    frame = frame[frame["shown"]]
    shorts = short_names(names)
    shorts = [shortened(shorts[index]) for index in frame.index]
    names, values, roles = (frame[column].tolist() for column in ("class", "probability", "role"))
    places = list(range(len(names)))
    bars = go.Bar(
        orientation="h",
        x=values,
        y=places,
        marker={"color": ["#0072b2" if "explained" in role else "#9aa5ab" for role in roles]},
        text=[f"{percent(value)}{' ✓' if 'true' in role else ''}" for value, role in zip(values, roles, strict=True)],
        textposition="auto",
        customdata=list(zip(names, roles, strict=True)),
        hovertemplate="<b>%{customdata[0]}</b> %{customdata[1]}<br>probability %{x:.4f}<extra></extra>",
    )
    margin = {"l": 5, "r": 5, "t": 34, "b": 10}
    marks = "▸ explained" if found.label is None else "▸ explained, ✓ true"
    figure = finish(go.Figure(bars), PANEL_HEIGHT, title=title(f"Probabilities ({marks})"), bargap=0.2, margin=margin)
    figure.update_xaxes(range=[0, 1], tickformat=".0%", nticks=4)
    figure.update_yaxes(
        autorange="reversed",
        tickvals=places,
        ticktext=[("▸ " if "explained" in role else "") + short for short, role in zip(shorts, roles, strict=True)],
    )
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
