"""Figures of the Relevance page that compare methods: which importance predicts the damage of quantization?"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from mixqvit.network.layers import Layer
from mixqvit.tasks.evaluation import Accuracy, Evaluation
from mixqvit.views.accuracy import accuracy_columns
from mixqvit.views.grid import layer_frame
from mixqvit.views.maps import STAYS
from mixqvit.views.sensitivity import FLOOR, brief
from mixqvit.views.style import DIVERGING, KIND_COLOURS, KIND_SYMBOLS, finish

if TYPE_CHECKING:
    from mixqvit.study.records import MethodComparison

__all__ = [
    "agreement_figure",
    "agreement_frame",
    "comparison_words",
    "correlation_column",
    "methods_frame",
    "outcome_figure",
    "outcome_frame",
    "scatter_figure",
    "scatter_frame",
]

ALONE, TOGETHER, REFERENCE = "Ω alone", "Ω · Λ", "reference"
"""How bits were chosen: by importance as LRP-QViT does, with sensitivity as Mix-QViT does, or without importance."""

_LOOKS = {
    ALONE: ("#e69f00", "square", 0.16),
    TOGETHER: ("#0072b2", "circle", -0.16),
    REFERENCE: ("#5c6b73", "diamond", 0),
}
_CHOSEN, _LINE = "#d55e00", "#7a868d"
_ROW, _SCATTER_HEIGHT = 40, 440  # pixels
_Z_95 = 1.96


def correlation_column(bits: int) -> str:
    """Return the name of the column with the rank correlation of Ω and Λ."""
    return f"Spearman with Λ at {bits} bits"


def methods_frame(comparison: "MethodComparison", bits: int) -> pd.DataFrame:
    """Return the table of the comparison: one row per method, then one per reference.

    Args:
        comparison: What is finished.
        bits: Bit-width of the sensitivity that importance is correlated with.
    """
    rows = [
        {
            "method": name,
            "images": found.images,
            "s per image": found.seconds,
            correlation_column(bits): found.correlation.get(bits),
            **_measured(ALONE, found.importance_only[1]),
            **_measured(TOGETHER, found.with_sensitivity[1]),
            "infidelity": found.infidelity,
            "max sensitivity": found.max_sensitivity,
        }
        for name, found in comparison.methods.items()
    ]
    rows += [
        {"method": name, **_measured(ALONE, evaluation), **_measured(TOGETHER, evaluation)}
        for name, (_, evaluation) in comparison.references.items()
    ]
    frame = pd.DataFrame(rows)
    return frame.astype({"images": "Int64"}) if "images" in frame else frame


def _measured(how: str, evaluation: Evaluation) -> dict[str, float | None]:
    accuracy = evaluation.accuracy
    return {f"{accuracy.word}, {how} (%)": 100 * accuracy.value(evaluation), f"KL, {how} (nats)": evaluation.kl}


def outcome_frame(comparison: "MethodComparison") -> pd.DataFrame:
    """Return what every allocation measures: one row per method and way of choosing, then the references."""
    found = [
        (name, how, pair)
        for name, result in comparison.methods.items()
        for how, pair in ((ALONE, result.importance_only), (TOGETHER, result.with_sensitivity))
    ]
    found += [(name, REFERENCE, pair) for name, pair in comparison.references.items()]
    rows = []
    for name, how, (allocation, evaluation) in found:
        rows.append(
            {
                "method": name,
                "chosen by": how,
                **accuracy_columns(evaluation),
                "KL (nats)": evaluation.kl,
                "images": evaluation.images,
                "average bits": allocation.cost.average_bits,
                "model size (bytes)": allocation.cost.size_bytes,
                "BitOps": allocation.cost.bitops,
            }
        )
    return pd.DataFrame(rows)


def _accuracy_in(comparison: "MethodComparison") -> Accuracy:
    results = [*comparison.references.values(), *(found.importance_only for found in comparison.methods.values())]
    return results[0][1].accuracy


def outcome_figure(comparison: "MethodComparison") -> go.Figure:
    """Draw the measured accuracy of every allocation with its 95 % interval."""
    frame = outcome_frame(comparison)
    accuracy, measure = frame.columns[2], _accuracy_in(comparison)
    names = list(dict.fromkeys(frame["method"]))
    figure = go.Figure()
    for how, (colour, symbol, offset) in _LOOKS.items():
        rows = frame[frame["chosen by"] == how]
        if rows.empty:
            continue
        figure.add_scatter(
            name={REFERENCE: "without importance"}.get(how, f"bits chosen by {how}"),
            x=rows[accuracy],
            y=[names.index(name) - offset for name in rows["method"]],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11},
            error_x={
                "array": rows["to (%)"] - rows[accuracy],
                "arrayminus": rows[accuracy] - rows["from (%)"],
                "thickness": 1.5,
                "width": 4,
            },
            customdata=rows[["method", "chosen by", "from (%)", "to (%)", "KL (nats)", "average bits", "images"]],
            hovertemplate=f"<b>%{{customdata[0]}}, %{{customdata[1]}}</b><br>{measure.word} %{{x:.1f}} %, 95 % "
            "interval %{customdata[2]:.1f} to %{customdata[3]:.1f} %<br>KL %{customdata[4]:.4f} nats at "
            "%{customdata[5]:.3f} average bits<br>%{customdata[6]} evaluation images<extra></extra>",
        )
    finish(figure, 120 + _ROW * len(names), margin={"l": 10, "r": 10, "t": 60, "b": 10})
    figure.update_xaxes(title=f"{measure.title} (%)")
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6], zeroline=False
    )
    return figure


def agreement_frame(comparison: "MethodComparison", bits: int) -> pd.DataFrame:
    """Return the rank correlations between methods, and of each with Λ, as a square table with named rows."""
    names, sensitivity = list(comparison.methods), f"Λ at {bits} bits"
    table = {
        row: {column: 1.0 if row == column else comparison.agreement.get((row, column)) for column in names}
        | {sensitivity: comparison.methods[row].correlation.get(bits)}
        for row in names
    }
    table[sensitivity] = {name: comparison.methods[name].correlation.get(bits) for name in names} | {sensitivity: 1.0}
    frame = pd.DataFrame.from_dict(table, orient="index", dtype=float)
    return frame.rename_axis("method").reset_index()


def agreement_figure(comparison: "MethodComparison", bits: int) -> go.Figure:
    """Draw the rank correlations between methods, and of each with Λ, −1 to 1."""
    frame = agreement_frame(comparison, bits).set_index("method")
    values = frame.to_numpy()
    heatmap = go.Heatmap(
        z=values,
        x=list(frame.columns),
        y=list(frame.index),
        text=[["" if value != value else f"{value:.2f}".replace("-", "−") for value in row] for row in values],
        texttemplate="%{text}",
        customdata=[[(row, column) for column in frame.columns] for row in frame.index],
        hovertemplate="<b>%{customdata[0]}</b> and <b>%{customdata[1]}</b><br>rank correlation over the layers "
        "%{z:.3f}<extra></extra>",
        hoverongaps=False,
        colorscale=DIVERGING,
        zmin=-1,
        zmax=1,
        xgap=2,
        ygap=2,
        colorbar={"title": {"text": "Spearman's ρ", "side": "right"}, "thickness": 12},
    )
    figure = finish(go.Figure(heatmap), 120 + _ROW * len(frame))
    figure.update_xaxes(type="category", side="top", tickangle=-40, showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def scatter_figure(
    layers: Sequence[Layer],
    importance: Mapping[str, float],
    harms: Mapping[str, Mapping[int, float]],
    bits: int,
    chosen: str | None,
) -> go.Figure:
    """Draw importance against sensitivity, a marker per layer, on logarithmic axes; a chosen layer has a ring.

    Args:
        layers: The table of layers.
        importance: Ω by layer name.
        harms: Λ by layer name and bit-width.
        bits: Bit-width of Λ.
        chosen: Name of the layer to mark.
    """
    frame = scatter_frame(layers, importance, harms, bits)
    positive = [value for value in importance.values() if value > 0]
    least = min(positive, default=1e-6)  # Ω of exactly zero is drawn here: a logarithmic axis has no zero
    frame["x"] = frame["importance Ω"].clip(lower=least)
    frame["y"] = frame.iloc[:, 4].clip(lower=FLOOR)
    frame["text"] = [brief(value) for value in frame.iloc[:, 4]]
    figure = go.Figure()
    for name, row in frame[frame["layer"] == chosen].set_index("layer").iterrows():
        figure.add_scatter(
            x=[row["x"]],
            y=[row["y"]],
            name="looked at",
            mode="markers",
            marker={"size": 20, "symbol": "circle-open", "line": {"width": 3}, "color": _CHOSEN},
            customdata=[[name]],
            hoverinfo="skip",
        )
    for kind, rows in frame.groupby("kind", sort=False):
        figure.add_scatter(
            x=rows["x"],
            y=rows["y"],
            name=kind,
            mode="markers",
            marker={"color": KIND_COLOURS[kind], "symbol": KIND_SYMBOLS[kind], "size": 10},
            unselected=STAYS,
            customdata=rows[["layer", "importance Ω", "text"]],
            hovertemplate="<b>%{customdata[0]}</b><br>importance Ω = %{customdata[1]:.3%}<br>"
            f"at {bits} bits alone: Λ = %{{customdata[2]}} nats<extra></extra>",
        )
    finish(figure, _SCATTER_HEIGHT, margin={"l": 10, "r": 10, "t": 70, "b": 10})
    figure.update_xaxes(type="log", title="importance Ω", tickformat=".1~%", dtick="D2")
    figure.update_yaxes(type="log", title=f"sensitivity Λ at {bits} bits (nats)", exponentformat="power", dtick=1)
    return figure


def scatter_frame(
    layers: Sequence[Layer], importance: Mapping[str, float], harms: Mapping[str, Mapping[int, float]], bits: int
) -> pd.DataFrame:
    """Return Ω and Λ by layer."""
    at_bits = {name: curve[bits] for name, curve in harms.items()}
    return layer_frame(layers, {"importance Ω": importance, f"Λ at {bits} bits (nats)": at_bits})


def comparison_words(comparison: "MethodComparison", bits: int, layers: int) -> str:
    """Say in words which importance goes with the damage, and whether the measured differences mean anything.

    Args:
        comparison: What is finished.
        bits: Bit-width of the sensitivity.
        layers: Number of layers that were ranked.
    """
    ranked = {name: found.correlation[bits] for name, found in comparison.methods.items() if bits in found.correlation}
    if not ranked:
        return "No method is finished yet."
    best = max(ranked, key=ranked.__getitem__)
    chance = _Z_95 / sqrt(max(layers - 1, 1))
    text = (
        f"**{best}** orders the layers most like the damage measured at {bits} bits (Spearman's ρ "
        f"{ranked[best]:.2f}). Over {layers} layers, unrelated orders give up to ±{chance:.2f} by chance"
    )
    text += ", so even this says little. " if ranked[best] < chance else ". "
    return text + _difference_words(outcome_frame(comparison), _accuracy_in(comparison).in_sentence)


def _difference_words(frame: pd.DataFrame, measure: str) -> str:
    accuracy = frame.columns[2]
    if frame[accuracy].isna().all():
        return "There is one class, so no accuracy tells the allocations apart."
    best, worst = frame.loc[frame[accuracy].idxmax()], frame.loc[frame[accuracy].idxmin()]
    described = [
        f"{row['method']}{'' if row['chosen by'] == REFERENCE else ' by ' + row['chosen by']} ({row[accuracy]:.1f} %)"
        for row in (best, worst)
    ]
    if best["from (%)"] <= worst["to (%)"]:
        return (
            f"Measured {measure} runs from {worst[accuracy]:.1f} to {best[accuracy]:.1f} %: all 95 % intervals "
            "overlap, so these images do not tell the allocations apart."
        )
    beaten = int((frame["to (%)"] < best["from (%)"]).sum())
    return (
        f"The best {measure} is that of {described[0]}, the worst that of {described[1]}. The 95 % intervals of "
        f"{beaten} of the {len(frame) - 1} others lie wholly below the best one's; differences inside the intervals "
        "say nothing."
    )
