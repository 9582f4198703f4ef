"""Step sizes before and after training: their histogram, and how far each operand's moved."""

from collections.abc import Sequence
from math import log10

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mixqvit.network.layers import Layer
from mixqvit.training.settings import StepSizes
from mixqvit.views.style import finish

__all__ = ["OPERANDS", "change_figure", "change_frame", "histogram_figure", "histogram_frame", "step_words"]

OPERANDS = {"weights": ("weight",), "activations": ("input", "first", "second")}
"""Kinds of operands that a histogram shows, and the names of theirs in `StepSizes`."""

_LOOKS = {
    "weight": ("weights (median channel)", "#0072b2", "circle"),
    "input": ("inputs", "#d55e00", "square"),
    "first": ("first factor (Q, A)", "#009e73", "triangle-up"),
    "second": ("second factor (K, V)", "#cc79a7", "triangle-down"),
}
"""Title, colour and symbol by operand."""

_BEFORE, _AFTER = "#e69f00", "#0072b2"
_HEIGHT = 360  # pixels
_MIDDLE = (5, 95)  # percentiles of the channels of a weight
_MOST_BINS = 40
_TICKS = {1 / 8: "⅛", 1 / 4: "¼", 1 / 2: "½", 1: "1", 2: "2", 4: "4", 8: "8"}
_MOST_CHANGE = 8  # beyond which a change is drawn at the edge: a step size can shrink to nothing


def histogram_figure(steps: Sequence[StepSizes], kind: str) -> go.Figure:
    """Draw how many step sizes lie where, before and after training.

    Args:
        steps: Of all operands.
        kind: A key of `OPERANDS`.
    """
    frame = histogram_frame(steps, kind)
    low, high = frame["from"].to_numpy(), frame["to"].to_numpy()
    figure = go.Figure()
    figure.add_bar(
        x=((low + high) / 2).tolist(),
        y=frame["after"].tolist(),
        width=(high - low).tolist(),
        name="after training",
        marker={"color": _AFTER, "line": {"width": 0}},
        opacity=0.65,
        text=_bin_words(frame),
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
    )
    # An outline in front, so that what is behind stays to be seen.
    figure.add_scatter(
        x=np.repeat(np.append(low, high[-1:]), 2)[1:-1].tolist(),
        y=np.repeat(frame["before"], 2).tolist(),
        name="calibrated, before",
        mode="lines",
        line={"color": _BEFORE, "width": 2.5},
        hoverinfo="skip",
    )
    finish(figure, _HEIGHT, bargap=0, margin={"l": 10, "r": 10, "t": 50, "b": 10})
    figure.update_xaxes(title="step size s", type="log", exponentformat="power", dtick=1, minor={"dtick": "D1"})
    figure.update_yaxes(title="channels" if kind == "weights" else "operands")
    return figure


def histogram_frame(steps: Sequence[StepSizes], kind: str) -> pd.DataFrame:
    """Return the numbers of step sizes before and after training in bins of equal width on a logarithmic scale.

    What is more than 8 times below or above all step sizes before training counts in the first or the last bin.
    """
    chosen = [found for found in steps if found.operand in OPERANDS[kind]]
    before, after = ([s for found in chosen for s in getattr(found, when)] for when in ("before", "after"))
    if not before:
        return pd.DataFrame({"from": [], "to": [], "before": [], "after": []})
    both = np.log10(np.clip([before, after], min(before) / _MOST_CHANGE, max(before) * _MOST_CHANGE))
    bins = int(np.clip(np.sqrt(len(before)) * 1.5, 8, _MOST_BINS))
    edges = np.linspace(both.min() - 1e-6, both.max() + 1e-6, bins + 1)
    counts = [np.histogram(values, edges)[0] for values in both]
    return pd.DataFrame({"from": 10 ** edges[:-1], "to": 10 ** edges[1:], "before": counts[0], "after": counts[1]})


def _bin_words(frame: pd.DataFrame) -> list[str]:
    ranges = [f"{low:.3g} to {high:.3g}" for low, high in zip(frame["from"], frame["to"], strict=True)]
    if ranges:
        ranges[0], ranges[-1] = f"up to {frame['to'].iloc[0]:.3g}", f"from {frame['from'].iloc[-1]:.3g} on"
    return [
        f"<b>{words}</b><br>before training {before}<br>after training {after}"
        for words, before, after in zip(ranges, frame["before"], frame["after"], strict=True)
    ]


def change_figure(steps: Sequence[StepSizes], layers: Sequence[Layer]) -> go.Figure:
    """Draw after ÷ before of every operand's step size in network order, with most of a weight's channels as a bar.

    What is beyond a factor of 8 either way is drawn there; hover says what it is.

    Args:
        steps: Of all operands.
        layers: Of the model, for the blocks on the axis.
    """
    figure = go.Figure()
    drawn: list[float] = []
    places = {name: place for place, name in enumerate(dict.fromkeys(found.layer for found in steps))}
    for operand, (title, colour, symbol) in _LOOKS.items():
        chosen = [found for found in steps if found.operand == operand]
        if not chosen:
            continue
        ratios = [_ratios(found) for found in chosen]
        middle = [_within(np.median(found)) for found in ratios]
        ends = [[_within(end) for end in np.percentile(found, _MIDDLE)] for found in ratios]
        drawn += [*middle, *(end for pair in ends for end in pair)]
        figure.add_scatter(
            x=[places[found.layer] for found in chosen],
            y=middle,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [high - ratio for ratio, (_, high) in zip(middle, ends, strict=True)],
                "arrayminus": [ratio - low for ratio, (low, _) in zip(middle, ends, strict=True)],
                "visible": operand == "weight",
                "color": colour,
                "thickness": 1,
                "width": 2,
            },
            name=title,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 8},
            text=[_change_words(found) for found in chosen],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.add_hline(1, line={"dash": "dash", "width": 1.5, "color": "#7f8a92"})
    finish(figure, _HEIGHT, margin={"l": 10, "r": 10, "t": 70, "b": 10})
    starts = _block_starts(list(places), layers)
    figure.update_xaxes(
        title="layers in network order",
        tickvals=list(starts.values()),
        ticktext=list(starts),
        range=[-0.8, len(places) - 0.2],
        ticks="outside",
    )
    reach = max([log10(2), *(abs(log10(value)) for value in drawn)])
    figure.update_yaxes(
        title="step size after ÷ before",
        type="log",
        range=[-1.08 * reach, 1.08 * reach],
        tickvals=list(_TICKS),
        ticktext=list(_TICKS.values()),
    )
    return figure


def _within(ratio: float) -> float:
    return float(np.clip(ratio, 1 / _MOST_CHANGE, _MOST_CHANGE))


def _ratios(found: StepSizes) -> np.ndarray:
    return np.array(found.after) / np.array(found.before)


def _change_words(found: StepSizes) -> str:
    ratios = _ratios(found)
    first = f"<b>{found.layer}</b><br>{_LOOKS[found.operand][0].partition(' (')[0]} at {found.bits} bits<br>"
    if len(ratios) == 1:
        return first + f"step size {found.before[0]:.4g} → {found.after[0]:.4g}, × {ratios[0]:.3f}"
    low, high = np.percentile(ratios, _MIDDLE)
    return (
        f"{first}{len(ratios)} channels, median step size {np.median(found.before):.4g} → {np.median(found.after):.4g}"
        f"<br>ratio of the median channel × {np.median(ratios):.3f}, most × {low:.3f} to × {high:.3f}"
    )


def _block_starts(names: Sequence[str], layers: Sequence[Layer]) -> dict[str, int]:
    """Return where each block begins; a layer that training made, such as a merged one, is where its neighbours are."""
    blocks = {layer.name: layer.block for layer in layers}
    beside = {layer.name.rpartition(".")[0]: layer.block for layer in layers}
    starts: dict[str, int] = {}
    for place, name in enumerate(names):
        block = blocks[name] if name in blocks else beside.get(name.rpartition(".")[0])
        if block is not None:
            starts.setdefault(f"block {block}", place)
    return starts


def change_frame(steps: Sequence[StepSizes]) -> pd.DataFrame:
    """Return all step sizes, a row per channel or activation operand."""
    return pd.DataFrame(
        [
            {
                "layer": found.layer,
                "operand": found.operand,
                "bits": found.bits,
                "channel": channel if len(found.after) > 1 else None,
                "before": before,
                "after": after,
                "ratio": after / before,
            }
            for found in steps
            for channel, (before, after) in enumerate(zip(found.before, found.after, strict=True))
        ]
    )


def step_words(steps: Sequence[StepSizes]) -> str:
    """Say how far the median step sizes moved, and which operand's moved farthest."""
    if not steps:
        return ""
    middle = {place: float(np.median(_ratios(found))) for place, found in enumerate(steps)}
    farthest = max(middle, key=lambda place: abs(np.log(middle[place])))
    found = steps[farthest]
    title = _LOOKS[found.operand][0].partition(" (")[0]
    return (
        f"The median operand's step size is × {np.median(list(middle.values())):.2f} of the calibrated one. Farthest "
        f"moved the {title} of `{found.layer}`, at {found.bits} bits: × {middle[farthest]:.2f}."
    )
