"""Allocation strategies side by side: what each one's bits are predicted and measured to do."""

from math import isnan, log10
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from mixqvit.criteria.registry import CRITERIA
from mixqvit.tasks.evaluation import AGREEMENT, TOP1
from mixqvit.views.accuracy import accuracy_columns
from mixqvit.views.numbers import nats, percent
from mixqvit.views.style import finish

if TYPE_CHECKING:
    from mixqvit.study.records import StrategyComparison, StrategyResult

__all__ = ["MEASURES", "measures", "strategy_figure", "strategy_frame", "strategy_words"]

MEASURES = (TOP1.title, AGREEMENT.short, "KL divergence", "Predicted harm")
"""What the figure can compare."""

_COLOUR, _CONTROL, _CHOSEN = "#0072b2", "#8a8f94", "#d55e00"
_ROW_HEIGHT, _FRAME_HEIGHT = 34, 90  # pixels
_ORDINALS = {1: "best", 2: "second", 3: "third"}


def measures(has_labels: bool) -> list[str]:
    """Return those of `MEASURES` that images with or without labels have."""
    return [name for name in MEASURES if has_labels or name != TOP1.title]


def strategy_figure(comparison: "StrategyComparison", measure: str, chosen: str) -> go.Figure:
    """Draw one number per strategy with its 95 % interval, in a fixed order, the controls last.

    Args:
        comparison: What is finished.
        measure: One of `MEASURES`.
        chosen: The strategy that the page shows now, in a colour and with a marker of its own.
    """
    rows = [name for name in CRITERIA if name in comparison.results]
    figure = go.Figure()
    for title, names, colour, symbol in (
        ("shown above", [name for name in rows if name == chosen], _CHOSEN, "star"),
        ("strategies", [n for n in rows if n != chosen and not CRITERIA[n].is_control], _COLOUR, "circle"),
        ("controls", [n for n in rows if n != chosen and CRITERIA[n].is_control], _CONTROL, "diamond"),
    ):
        found = [(name, *_value(comparison.results[name], measure)) for name in names]
        found = [(name, value, interval) for name, value, interval in found if value is not None]
        figure.add_scatter(
            x=[value for _, value, _ in found],
            y=[name for name, *_ in found],
            error_x=_error_bars(found, colour),
            name=title,
            mode="markers",
            marker={"size": 12, "symbol": symbol, "color": colour},
            text=[_hover(name, comparison.results[name]) for name, *_ in found],
            hovertemplate="%{text}<extra></extra>",
            cliponaxis=False,
        )
    finish(figure, _FRAME_HEIGHT + _ROW_HEIGHT * max(len(rows), 1), margin={"l": 10, "r": 20, "t": 40, "b": 10})
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=rows[::-1], range=[-0.6, len(rows) - 0.4])
    if measure in ("KL divergence", "Predicted harm"):
        # Ticks at 1, 2 and 5 would collide on narrow screens when values span decades.
        figure.update_xaxes(type="log", exponentformat="power", dtick=1 if _span(comparison, measure) > 1.5 else None)
    unit = {"KL divergence": "nats", "Predicted harm": "Σ Λ"}.get(measure, "%")
    figure.update_xaxes(title=f"{measure} ({unit})")
    return figure


def _span(comparison: "StrategyComparison", measure: str) -> float:
    values = [value for found in comparison.results.values() if (value := _value(found, measure)[0])]
    return log10(max(values) / min(values)) if values else 0.0


def _value(found: "StrategyResult", measure: str) -> tuple[float | None, tuple[float, float] | None]:
    measured = found.evaluation
    if measure == "Predicted harm":
        return found.predicted_harm, None
    if measure == "KL divergence":
        return measured.kl, None
    chosen = TOP1 if measure == TOP1.title else AGREEMENT
    value, interval = chosen.value(measured), chosen.interval(measured)
    return (None, None) if value is None else (100 * value, (100 * interval[0], 100 * interval[1]))


def _error_bars(found: list[tuple[str, float, tuple[float, float] | None]], colour: str) -> dict | None:
    if any(interval is None for *_, interval in found):
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [interval[1] - value for _, value, interval in found],
        "arrayminus": [value - interval[0] for _, value, interval in found],
        "color": colour,
        "thickness": 1,
    }


def _hover(name: str, found: "StrategyResult") -> str:
    measured = found.evaluation
    top1 = "" if measured.top1 is None else f"top-1 {percent(measured.top1)}<br>"
    return (
        f"<b>{name}</b><br>{top1}agreement {percent(measured.agreement)}<br>KL divergence {nats(measured.kl)}<br>"
        f"predicted harm Σ Λ = {found.predicted_harm:.3g}<br>{found.allocation.cost.average_bits:.2f} average bits"
    )


def strategy_frame(comparison: "StrategyComparison") -> pd.DataFrame:
    """Return all numbers, a row per strategy: accuracies in percent, times in seconds, sizes in bytes."""
    rows = []
    for name in CRITERIA:
        if name not in comparison.results:
            continue
        found = comparison.results[name]
        measured, spent = found.evaluation, found.allocation.cost
        rows.append(
            {
                "strategy": name,
                "predicted harm": found.predicted_harm,
                **accuracy_columns(measured),
                "KL (nats)": measured.kl,
                "average bits": spent.average_bits,
                "size (bytes)": spent.size_bytes,
                "BitOps": spent.bitops,
                "scoring (s)": found.score_seconds,
                "solving (s)": found.solve_seconds,
                "gap (%)": 100 * found.allocation.gap,
            }
        )
    return pd.DataFrame(rows)


def strategy_words(comparison: "StrategyComparison", chosen: str) -> str:
    """Say which strategy comes closest to full precision by measured KL, and where the chosen one is."""
    ranked = sorted(comparison.results, key=lambda name: comparison.results[name].evaluation.kl)
    if len(ranked) < 2 or isnan(comparison.results[ranked[0]].evaluation.kl):
        return ""
    best, worst = ranked[0], ranked[-1]
    kl = {name: nats(comparison.results[name].evaluation.kl) for name in ranked}
    words = f"Closest to full precision by measured KL divergence: **{best}** ({kl[best]})"
    if chosen in kl and chosen != best:
        place = ranked.index(chosen) + 1
        rank = _ORDINALS.get(place, f"number {place}")
        words += f"; {chosen} is {rank} of {len(ranked)} ({kl[chosen]})"
    words += f". Farthest: {worst} ({kl[worst]})."
    if CRITERIA[worst].is_control and not CRITERIA[best].is_control:
        words += " So the criterion matters at this budget."
    elif CRITERIA[best].is_control:
        words += " A control comes out first: at this budget the criterion does not help."
    return words
