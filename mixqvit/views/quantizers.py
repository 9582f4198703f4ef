"""Figures of the Quantizers page: errors of all quantizers of an operand, their grids, and the recipes compared."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.quantization.roles import ROLES
from mixqvit.tasks.evaluation import AGREEMENT, TOP1, Evaluation
from mixqvit.views.accuracy import accuracy_columns
from mixqvit.views.numbers import relative_error
from mixqvit.views.style import finish

if TYPE_CHECKING:
    from mixqvit.quantization.quantizer_comparison import FittedQuantizer, OperandComparison

__all__ = [
    "by_error",
    "error_bars",
    "error_curves",
    "error_frame",
    "error_words",
    "grid_figure",
    "grid_frame",
    "recipe_figure",
    "recipe_frame",
    "recipe_words",
]

_LOOKS = (
    ("#7a868d", "x"),
    ("#e69f00", "circle"),
    ("#b8a500", "circle-open"),
    ("#cc79a7", "triangle-down"),
    ("#7f5fc7", "triangle-up"),
    ("#d55e00", "square"),
    ("#0072b2", "diamond"),
    ("#009e73", "star"),
)
"""Colours and symbols by `FittedQuantizer.look`."""

_VALUES = "#56b4e9"
_LINE = "#7a868d"
_WHOLE_OUTPUT = 100.0  # percent: an error as large as the output itself; bars end here
_HEIGHT, _GRID_HEIGHT, _RECIPE_HEIGHT = 350, 105, 400  # pixels
_TICKS, _FLOOR, _ONE_VALUE = 0.22, 0.08, 0.6  # heights below the histogram on its logarithmic axis


def _look(quantizer: "FittedQuantizer") -> tuple[str, str]:
    return _LOOKS[quantizer.look % len(_LOOKS)]


def by_error(comparison: "OperandComparison", bits: int) -> list["FittedQuantizer"]:
    """Return the quantizers, that with the least error at these bits first."""
    return sorted(comparison.quantizers, key=lambda quantizer: quantizer.errors[bits])


def error_bars(comparison: "OperandComparison", bits: int, default: str) -> go.Figure:
    """Draw the error of every quantizer at these bits, the least on top.

    Args:
        comparison: The fitted quantizers.
        bits: Bit-width.
        default: Name of the recipe whose choice is marked.
    """
    ordered = by_error(comparison, bits)
    shown = [min(100 * quantizer.errors[bits], _WHOLE_OUTPUT) for quantizer in ordered]
    is_default = [default in quantizer.recipes for quantizer in ordered]
    bars = go.Bar(
        orientation="h",
        x=shown,
        y=[quantizer.name for quantizer in ordered],
        marker={
            "color": [_look(quantizer)[0] for quantizer in ordered],
            "pattern": {"shape": ["/" if marked else "" for marked in is_default], "fgcolor": "white", "size": 6},
        },
        text=[
            relative_error(quantizer.errors[bits]) + ("  ◀ default" if marked else "")
            for quantizer, marked in zip(ordered, is_default, strict=True)
        ],
        textposition="outside",
        cliponaxis=False,
        customdata=[
            (relative_error(quantizer.errors[bits]), quantizer.described.source, ", ".join(quantizer.recipes) or "none")
            for quantizer in ordered
        ],
        hovertemplate="<b>%{y}</b>: %{customdata[0]}<br>%{customdata[1]}<br>recipes that use it here: %{customdata[2]}"
        "<extra></extra>",
    )
    figure = finish(go.Figure(bars), _HEIGHT, bargap=0.25)
    # Room for the numbers beside the bars.
    figure.update_xaxes(title="error of the output (%)", range=[0, 1.55 * max([*shown, 1e-9])], nticks=6)
    figure.update_yaxes(autorange="reversed", type="category")
    return figure


def error_curves(comparison: "OperandComparison", bits: int) -> go.Figure:
    """Draw the error of every quantizer against bits; the chosen bit-width is marked."""
    figure = go.Figure()
    for quantizer in comparison.quantizers:
        colour, symbol = _look(quantizer)
        errors = [100 * quantizer.errors[width] for width in BIT_WIDTHS]
        figure.add_scatter(
            name=quantizer.name,
            x=BIT_WIDTHS,
            y=[error if error > 0 else None for error in errors],  # a logarithmic axis has no place for zero
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 8},
            hovertemplate=f"<b>{quantizer.name}</b> at %{{x}} bits: %{{y:.3g}} %<extra></extra>",
        )
    figure.add_vline(bits, line={"color": _LINE, "dash": "dot", "width": 1})
    figure.update_xaxes(title="bit-width of the operand", tickvals=BIT_WIDTHS, range=[BIT_WIDTHS[0] - 0.3, 8.3])
    figure.update_yaxes(title="error of the output (%)", type="log", dtick=1, exponentformat="none")
    return finish(figure, _HEIGHT, margin={"l": 10, "r": 10, "t": 70, "b": 10})


def error_frame(comparison: "OperandComparison") -> pd.DataFrame:
    """Return one row per quantizer: its error in percent at every bit-width, its source, the recipes that use it."""
    return pd.DataFrame(
        {
            "layer": comparison.layer,
            "operand": ROLES[comparison.role],
            "quantizer": [quantizer.name for quantizer in comparison.quantizers],
            **{
                f"error at {bits} bits (%)": [100 * quantizer.errors[bits] for quantizer in comparison.quantizers]
                for bits in BIT_WIDTHS
            },
            "source": [quantizer.described.source for quantizer in comparison.quantizers],
            "recipes": [", ".join(quantizer.recipes) for quantizer in comparison.quantizers],
        }
    )


def error_words(comparison: "OperandComparison", bits: int, default: str) -> str:
    """Say which quantizer errs least at these bits, how far the plainest is behind, and where the default's choice is.

    The plainest is the first of the menu.
    """
    ordered = by_error(comparison, bits)
    best = ordered[0]
    plainest = comparison.quantizers[0]
    least = relative_error(best.errors[bits])
    words = f"At {bits} bits **{best.name}** changes the layer's output least: by {least} of it"
    if best.errors[bits] < plainest.errors[bits] < float("inf") and best.errors[bits] > 0:
        words += f"; {plainest.name} by {plainest.errors[bits] / best.errors[bits]:.1f} times as much"
    chosen = next((quantizer for quantizer in ordered if default in quantizer.recipes), None)
    if chosen is None:
        return f"{words}."
    if chosen is best:
        return f"{words}. The default recipe, {default}, uses it."
    return (
        f"{words}. The default recipe, {default}, uses {chosen.name} ({relative_error(chosen.errors[bits])}): one "
        "choice for all layers and bits, made for the network's accuracy, not for this layer's error."
    )


def grid_figure(comparison: "OperandComparison", bits: int, names: Collection[str]) -> go.Figure:
    """Draw the values' histogram once per quantizer, its levels as ticks underneath, all on one axis.

    Args:
        comparison: The fitted quantizers.
        bits: Bit-width.
        names: Which quantizers to draw; the one with the least error comes first.
    """
    drawn = [quantizer for quantizer in by_error(comparison, bits) if quantizer.name in names]
    titles = [
        f"<b>{quantizer.name}</b>  {relative_error(quantizer.errors[bits])}"
        + (f", channel {comparison.channel}" if quantizer.is_per_channel else "")
        for quantizer in drawn
    ]
    # Gaps of equal height in pixels, whatever the number of rows.
    spacing = 0.27 / len(drawn)
    figure = make_subplots(
        rows=len(drawn), shared_xaxes=True, shared_yaxes="all", vertical_spacing=spacing, subplot_titles=titles
    )
    edges = comparison.values.edges
    most = max(1, int(comparison.values.counts.max()))
    for row, quantizer in enumerate(drawn, 1):
        found = comparison.channel_values if quantizer.is_per_channel else comparison.values
        there = found.counts > 0
        levels = quantizer.levels[bits]
        figure.add_bar(
            x=((edges[:-1] + edges[1:]) / 2)[there],
            y=(found.counts - _ONE_VALUE)[there],
            base=_ONE_VALUE,
            width=np.diff(edges)[there],
            marker={"color": _VALUES, "line": {"width": 0}},
            customdata=np.stack([edges[:-1], edges[1:], found.counts], axis=1)[there],
            hovertemplate="%{customdata[0]:.3g} to %{customdata[1]:.3g}: %{customdata[2]} values<extra></extra>",
            row=row,
            col=1,
        )
        figure.add_scatter(
            x=levels,
            y=np.full(len(levels), _TICKS),
            mode="markers",
            marker={
                "symbol": "line-ns",
                "size": 13,
                "line": {"width": 1.6 if len(levels) <= 40 else 1, "color": _look(quantizer)[0]},
            },
            hovertemplate=f"level %{{x:.4g}} of {quantizer.name}<extra></extra>",
            row=row,
            col=1,
        )
    ends = [edges[0], edges[-1], *(end for quantizer in drawn for end in quantizer.levels[bits][[0, -1]])]
    margin = 0.02 * (max(ends) - min(ends))
    figure.update_xaxes(range=[min(ends) - margin, max(ends) + margin], showgrid=False, zeroline=False)
    figure.update_xaxes(title="value", row=len(drawn), col=1)
    decades = range(0, int(np.log10(most)) + 1, 2)
    figure.update_yaxes(
        type="log",
        range=[np.log10(_FLOOR), 1.05 * np.log10(max(most, 10))],
        tickvals=[10**decade for decade in decades],
        ticktext=[f"{10**decade:,}" for decade in decades],
        showgrid=False,
    )
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    return finish(figure, _GRID_HEIGHT * len(drawn) + 60, barmode="overlay", showlegend=False)


def grid_frame(comparison: "OperandComparison", bits: int, names: Collection[str]) -> pd.DataFrame:
    """Return the levels of the drawn quantizers and the bins of the values, one row each."""
    tables = [
        pd.DataFrame({"what": "level", "of": quantizer.name, "from": levels, "to": levels, "values": None})
        for quantizer in by_error(comparison, bits)
        if quantizer.name in names
        for levels in [quantizer.levels[bits]]
    ]
    histograms = {"all values": comparison.values, f"channel {comparison.channel}": comparison.channel_values}
    tables += [
        pd.DataFrame(
            {"what": "bin", "of": name, "from": found.edges[:-1], "to": found.edges[1:], "values": found.counts}
        )
        for name, found in histograms.items()
        if found is not None
    ]
    return pd.concat([table.astype({"values": "Int64"}) for table in tables], ignore_index=True)


def recipe_figure(found: Mapping[str, Evaluation], names: Sequence[str], bits: int, default: str) -> go.Figure:
    """Draw top-1 accuracy and agreement of every measured recipe with their 95 % intervals.

    Args:
        found: What is measured, by recipe and `full precision`.
        names: All recipes, in the order of the rows.
        bits: Uniform bit-width.
        default: Name of the recipe that is marked.
    """
    figure = go.Figure()
    labels = {name: f"<b>{name}</b> ◀" if name == default else name for name in names}
    measured = [name for name in names if name in found]
    for measure, colour, symbol in ((TOP1, "#0072b2", "circle"), (AGREEMENT, "#e69f00", "diamond-open")):
        rows = [
            (name, measure.value(found[name]), measure.interval(found[name]))
            for name in measured
            if measure.value(found[name]) is not None
        ]
        if measured and not rows:
            continue
        figure.add_scatter(
            name=f"{measure.word}, 95 % interval",
            orientation="h",
            x=[100 * middle for _, middle, _ in rows],
            y=[labels[name] for name, _, _ in rows],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * (high - middle) for _, middle, (_, high) in rows],
                "arrayminus": [100 * (middle - low) for _, middle, (low, _) in rows],
                "thickness": 1.5,
                "width": 4,
            },
            mode="markers",
            marker={"symbol": symbol, "size": 10, "color": colour},
            offsetgroup=measure.word,
            customdata=[(name, 100 * low, 100 * high) for name, _, (low, high) in rows],
            hovertemplate=f"<b>%{{customdata[0]}}</b><br>{measure.word} %{{x:.1f}} % (%{{customdata[1]:.1f}} to "
            "%{customdata[2]:.1f})<extra></extra>",
        )
    full = found.get("full precision")
    if full is not None and full.top1 is not None and full.has_choice:
        figure.add_vline(
            100 * full.top1,
            line={"color": _LINE, "dash": "dash", "width": 1.5},
            annotation={"text": "full precision", "yanchor": "bottom"},
            annotation_position="top left",
        )
    lowest = min([100.0, *(100 * one.accuracy.interval(one)[0] for one in found.values())])
    figure.update_xaxes(
        title=f"of the evaluation images (%), W{bits}A{bits}", range=[max(0, lowest - 2), 100 + (102 - lowest) / 50]
    )
    order = [labels[name] for name in reversed(names)]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order, range=[-0.5, len(names) - 0.5])
    margin = {"l": 10, "r": 10, "t": 80, "b": 10}
    return finish(figure, _RECIPE_HEIGHT, scattermode="group", showlegend=True, margin=margin)


def recipe_frame(found: Mapping[str, Evaluation], descriptions: Mapping[str, str]) -> pd.DataFrame:
    """Return one row per measured recipe, full precision first."""
    rows = []
    for name in ("full precision", *descriptions):
        if name in found:
            one = found[name]
            rows.append({"recipe": name, **accuracy_columns(one), "KL (nats)": one.kl, "images": one.images})
    frame = pd.DataFrame(rows)
    return frame.assign(what=frame["recipe"].map(dict(descriptions)).fillna("the model as it is"))


def recipe_words(found: Mapping[str, Evaluation], bits: int, default: str) -> str:
    """Say which measured recipe is nearest to full precision, and whether intervals tell it from the next."""
    measured = {name: one for name, one in found.items() if name != "full precision"}
    if len(measured) < 2 or not all(one.has_choice for one in measured.values()):
        return ""
    best, second = sorted(measured, key=lambda name: measured[name].kl)[:2]
    words = (
        f"At {bits} bits **{best}** stays nearest to full precision: KL {measured[best].kl:.3g} nats, against "
        f"{measured[second].kl:.3g} of {second}."
    )
    low, high = measured[best].agreement_interval[0], measured[second].agreement_interval[1]
    if low <= high:
        words += " Their 95 % intervals overlap in agreement: these images do not tell the two apart by it."
    if default in measured and default != best:
        words += f" The default, {default}, has {measured[default].kl:.3g}."
    return words
