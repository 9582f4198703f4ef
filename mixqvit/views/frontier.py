"""The frontier: predicted harm and measured accuracy of many settings against their average bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mixqvit.allocation.costs import Cost
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.tasks.evaluation import AGREEMENT, TOP1, Evaluation
from mixqvit.views.numbers import billions, megabytes, nats, percent
from mixqvit.views.style import finish

__all__ = ["MEASURES", "Measure", "Point", "frontier_figure", "frontier_frame", "frontier_words", "measures"]

_COLOURS = {"mixed": "#0072b2", "uniform": "#e69f00", "A": "#009e73"}
_SYMBOLS = {"mixed": "circle", "uniform": "square", "A": "diamond"}
_LINES = "#7f8a92"
_HEIGHT = 560  # pixels
_LEAST_HARM = 1e-12  # what a logarithmic scale shows of no harm at all


@dataclass(frozen=True)
class Measure:
    """What the axis of the measured settings can show.

    Attributes:
        value: Name of the number in an `Evaluation`.
        interval: Name of its 95 % interval there; None where there is none.
        unit: Behind a number.
        factor: From the number to the axis.
    """

    value: str
    interval: str | None
    unit: str
    factor: float


MEASURES = {
    **{found.title: Measure(found.field, found.interval_field, "%", 100.0) for found in (TOP1, AGREEMENT)},
    "KL divergence": Measure("kl", None, "nats", 1.0),
}
"""What is measured, by title."""


def measures(has_labels: bool) -> list[str]:
    """Return the keys of `MEASURES` that images with or without labels have, what stands for accuracy first."""
    return [name for name in MEASURES if has_labels or name != TOP1.title]


@dataclass(frozen=True)
class Point:
    """One setting.

    Attributes:
        name: `mixed`, `uniform` or `A`.
        cost: Its cost.
        harm: Its predicted harm, by the same rule for all points shown together; NaN where it is not known.
        evaluation: What was measured, on all evaluation images; None for nothing.
        budget: Average bits that were allowed, where it is a point of the frontier.
    """

    name: str
    cost: Cost
    harm: float
    evaluation: Evaluation | None = None
    budget: float | None = None


def frontier_figure(
    frontier: Sequence[Point],
    points: Sequence[Point],
    current: Point,
    full: Evaluation | None,
    measure: str,
) -> go.Figure:
    """Draw predicted harm above what was measured, both against the average bits that a setting spends.

    Args:
        frontier: The optimum of every budget, in order of the budget; empty where there is none.
        points: Uniform settings, measured or not, and other settings that were measured.
        current: The allocation shown now, ringed in both panels.
        full: Full precision, drawn as a line with its interval as a band.
        measure: A key of `MEASURES`.
    """
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.07)
    figure.add_trace(
        go.Scatter(
            x=[point.cost.average_bits for point in frontier],
            y=[max(point.harm, _LEAST_HARM) for point in frontier],
            name="best of every budget",
            mode="lines",
            line={"width": 2, "color": _COLOURS["mixed"]},
            text=[_predicted_hover(point) for point in frontier],
            hovertemplate="%{text}<extra></extra>",
        ),
        row=1,
        col=1,
    )
    for name in ("uniform", "mixed", "A"):
        chosen = sorted((point for point in points if point.name == name), key=lambda point: point.cost.average_bits)
        if chosen:
            figure.add_trace(_predicted(chosen, name), row=1, col=1)
            figure.add_trace(_measured(chosen, name, MEASURES[measure]), row=2, col=1)
    for row, height in ((1, current.harm), (2, _value(current, MEASURES[measure]))):
        if height is not None and not isnan(height):
            figure.add_trace(_ring(current.cost.average_bits, height, row == 1), row=row, col=1)
    _add_full_precision(figure, full, MEASURES[measure])
    finish(figure, _HEIGHT, margin={"l": 10, "r": 10, "t": 50, "b": 10})
    figure.update_xaxes(range=[BIT_WIDTHS[0] - 0.3, BIT_WIDTHS[-1] + 0.3], dtick=1)
    figure.update_xaxes(title="average bits per weight, as spent", row=2, col=1)
    figure.update_yaxes(title="predicted harm", type="log", exponentformat="power", dtick=1, row=1, col=1)
    chosen = MEASURES[measure]
    figure.update_yaxes(
        title=f"{measure} ({chosen.unit})", type="log" if measure == "KL divergence" else "linear", row=2, col=1
    )
    return figure


def _predicted(points: Sequence[Point], name: str) -> go.Scatter:
    known = [point for point in points if not isnan(point.harm)]
    return go.Scatter(
        x=[point.cost.average_bits for point in known],
        y=[max(point.harm, _LEAST_HARM) for point in known],
        mode="lines+markers" if name == "uniform" else "markers",
        line={"dash": "dot", "width": 1.5, "color": _COLOURS[name]},
        marker={"symbol": _SYMBOLS[name], "size": 8, "color": _COLOURS[name]},
        name=_title(name),
        legendgroup=name,
        showlegend=False,
        text=[_predicted_hover(point) for point in known],
        hovertemplate="%{text}<extra></extra>",
    )


def _measured(points: Sequence[Point], name: str, measure: Measure) -> go.Scatter:
    known = [point for point in points if _value(point, measure) is not None]
    return go.Scatter(
        x=[point.cost.average_bits for point in known],
        y=[_value(point, measure) for point in known],
        error_y=_error_bars(known, measure, _COLOURS[name]),
        mode="lines+markers" if name == "uniform" else "markers",
        line={"dash": "dot", "width": 1.5, "color": _COLOURS[name]},
        marker={"symbol": _SYMBOLS[name], "size": 10, "color": _COLOURS[name]},
        name=_title(name),
        legendgroup=name,
        text=[_measured_hover(point) for point in known],
        hovertemplate="%{text}<extra></extra>",
    )


def _title(name: str) -> str:
    return "held as A" if name == "A" else f"{name} bits"


def _ring(average_bits: float, height: float, first: bool) -> go.Scatter:
    return go.Scatter(
        x=[average_bits],
        y=[max(height, _LEAST_HARM)],
        name="shown now",
        legendgroup="shown now",
        showlegend=first,
        mode="markers",
        marker={"symbol": "circle-open", "size": 18, "color": "#d55e00", "line": {"width": 2.5}},
        hoverinfo="skip",
    )


def _add_full_precision(figure: go.Figure, full: Evaluation | None, measure: Measure) -> None:
    level = None if full is None or measure.interval is None else getattr(full, measure.value)
    if level is None or isnan(level):
        return
    figure.add_hline(
        measure.factor * level,
        line={"dash": "dash", "width": 1.5, "color": _LINES},
        annotation_text=f"full precision {measure.factor * level:.1f} %",
        annotation_position="bottom right",
        row=2,
        col=1,
    )
    lowest, highest = getattr(full, measure.interval)
    figure.add_hrect(
        measure.factor * lowest, measure.factor * highest, fillcolor=_LINES, opacity=0.15, line_width=0, row=2, col=1
    )


def _value(point: Point, measure: Measure) -> float | None:
    found = None if point.evaluation is None else getattr(point.evaluation, measure.value)
    return None if found is None else measure.factor * found


def _error_bars(points: Sequence[Point], measure: Measure, colour: str) -> dict[str, Any] | None:
    if measure.interval is None:
        return None
    ends = [(_value(point, measure), getattr(point.evaluation, measure.interval)) for point in points]
    return {
        "type": "data",
        "symmetric": False,
        "array": [measure.factor * high - middle for middle, (_, high) in ends],
        "arrayminus": [middle - measure.factor * low for middle, (low, _) in ends],
        "color": colour,
        "thickness": 1,
    }


def _cost_words(point: Point) -> str:
    return (
        f"<b>{_title(point.name)}, {point.cost.average_bits:.2f} on average</b><br>"
        f"{megabytes(point.cost.size_bytes)}, {billions(point.cost.bitops)} BitOps<br>"
    )


def _predicted_hover(point: Point) -> str:
    budget = "" if point.budget is None else f"<br>the best within {point.budget:.1f} average bits"
    return _cost_words(point) + f"predicted harm {point.harm:.3g}{budget}"


def _measured_hover(point: Point) -> str:
    found = point.evaluation
    lines = []
    for measure in (TOP1, AGREEMENT):
        value, interval = measure.value(found), measure.interval(found)
        if value is not None:
            lines.append(
                f"{measure.word} {percent(value)}, 95 % interval {percent(interval[0])} to {percent(interval[1])}<br>"
            )
    return (
        _cost_words(point)
        + "".join(lines)
        + f"KL divergence {nats(found.kl)}"
        + ("" if isnan(point.harm) else f"<br>predicted harm {point.harm:.3g}")
    )


def frontier_frame(frontier: Sequence[Point], points: Sequence[Point]) -> pd.DataFrame:
    """Return the frontier and all settings as a table: fractions from 0 to 1, KL in nats, empty where not measured."""
    return pd.DataFrame(
        [
            {
                "setting": "best of budget" if point.budget is not None else point.name,
                "budget (average bits)": point.budget,
                "average bits": point.cost.average_bits,
                "model size (bytes)": point.cost.size_bytes,
                "weight codes (bytes)": point.cost.weight_bytes,
                "BitOps": point.cost.bitops,
                "predicted harm": point.harm,
                "top-1": point.evaluation and point.evaluation.top1,
                "agreement": point.evaluation and point.evaluation.agreement,
                "KL (nats)": point.evaluation and point.evaluation.kl,
                "images": point.evaluation and point.evaluation.images,
            }
            for point in (*frontier, *points)
        ]
    )


def frontier_words(uniforms: Sequence[Point], current: Point) -> str:
    """Say what mixing buys: which uniform setting is predicted to do more harm although it is larger; else nothing."""
    beaten = [
        point
        for point in uniforms
        if point.harm >= current.harm
        and point.cost.average_bits > current.cost.average_bits
        and point.cost.size_bytes > current.cost.size_bytes
    ]
    if not beaten:
        return ""
    largest = max(beaten, key=lambda point: point.cost.average_bits)
    saved = largest.cost.size_bytes - current.cost.size_bytes
    return (
        f"At {current.cost.average_bits:.2f} average bits these mixed bits are predicted to do less harm "
        f"({current.harm:.3g}) than uniform {largest.cost.average_bits:.0f} bits ({largest.harm:.3g}), and are "
        f"{megabytes(saved)} smaller."
    )
