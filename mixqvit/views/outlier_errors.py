"""Figures of the Outliers page: errors by channel and variant, clipping, and the weights of the layer."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mixqvit.quantization.channels import VARIANTS, ChannelRanges, ClipCurve
from mixqvit.views.outliers import CHOSEN, channel_axis, channel_order, mark_channel
from mixqvit.views.style import finish

__all__ = [
    "ERRORS",
    "VARIANT_COLOURS",
    "channel_errors",
    "clip_figure",
    "clip_frame",
    "clip_words",
    "error_bars",
    "error_figure",
    "error_frame",
    "output_error_frame",
    "weight_columns",
    "weight_frame",
    "weight_row_frame",
    "weight_rows",
    "weight_words",
]

ERRORS = ("in the output", "of the values", "of the weights")
"""Where the error of a channel may be looked at."""

VARIANT_COLOURS = dict(zip(VARIANTS, ("#7a868d", "#e69f00", "#0072b2", "#009e73"), strict=True))
_SYMBOLS = dict(zip(VARIANTS, ("x", "circle-open", "diamond", "triangle-up-open"), strict=True))
_AXES = {
    "in the output": "adds to the output's error (%)",
    "of the values": "error of its values (%)",
    "of the weights": "error of its weight column (%)",
}
_HEIGHT, _SMALL_HEIGHT, _TALL_HEIGHT = 340, 280, 420  # pixels


def channel_errors(ranges: ChannelRanges, variant: str, where: str) -> np.ndarray:
    """Return the error of every channel in percent, `[C]`.

    Args:
        ranges: Measured channels.
        variant: One of `VARIANTS`.
        where: One of `ERRORS`: what the channel adds to the squared error of the output over the squared output; or
            the root mean square error of its values over their root mean square; or the same of its weight column.
    """
    found, statistics = ranges.variants[variant], ranges.statistics
    if where == "in the output":
        return 100 * found.contribution
    if where == "of the values":
        error, size = found.value_error, statistics.mean**2 + statistics.deviation**2
    else:
        columns = ranges.variants["per tensor"].weight_columns
        error, size = found.weight_error, columns.astype(float) ** 2 * len(found.weight_rows)
    return 100 * np.sqrt(error / np.maximum(size, np.finfo(float).tiny))


def error_figure(ranges: ChannelRanges, where: str, order: str, chosen: int) -> go.Figure:
    """Draw the error of every channel in all variants.

    Args:
        ranges: Measured channels.
        where: One of `ERRORS`.
        order: One of `ORDERS` of the ranges.
        chosen: The channel to mark.
    """
    places = channel_order(ranges.statistics, order)
    figure = go.Figure()
    for variant in VARIANTS:
        errors = channel_errors(ranges, variant, where)[places]
        figure.add_scatter(
            name=variant,
            x=[str(channel) for channel in places],
            y=np.where(errors > 0, errors, np.nan),  # a logarithmic axis has no place for zero
            mode="markers",
            marker={"symbol": _SYMBOLS[variant], "color": VARIANT_COLOURS[variant], "size": 6},
            hovertemplate=f"<b>channel %{{x}}</b><br>{variant}: %{{y:.3g}} %<extra></extra>",
        )
    mark_channel(figure, places, chosen, label=False)
    channel_axis(figure, places, f"channel, {'in network order' if order == 'network' else order}")
    figure.update_yaxes(type="log", title=_AXES[where], dtick=1)
    return finish(figure, _HEIGHT, margin={"l": 10, "r": 10, "t": 50, "b": 10})


def error_frame(ranges: ChannelRanges) -> pd.DataFrame:
    """Return one row per channel with its error in percent in every variant and at every place of `ERRORS`."""
    return pd.DataFrame(
        {
            "channel": np.arange(len(ranges.statistics.width)),
            **{
                f"{where}, {variant} (%)": channel_errors(ranges, variant, where)
                for where in ERRORS
                for variant in VARIANTS
            },
        }
    )


def error_bars(ranges: ChannelRanges) -> go.Figure:
    """Draw the relative squared error of the layer's output by variant."""
    frame = output_error_frame(ranges)
    least = frame["output error (%)"].idxmin()
    bars = go.Bar(
        orientation="h",
        x=frame["output error (%)"],
        y=frame["variant"],
        marker={"color": [VARIANT_COLOURS[variant] for variant in frame["variant"]]},
        text=[
            f"{value:.3g} %" + (" least" if index == least else "")
            for index, value in frame["output error (%)"].items()
        ],
        textposition="auto",
        hovertemplate="<b>%{y}</b><br>%{x:.4f} % of the squared output<extra></extra>",
    )
    figure = finish(go.Figure(bars), _SMALL_HEIGHT, bargap=0.25)
    figure.update_xaxes(title="squared error of the output (%)", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", type="category")
    return figure


def output_error_frame(ranges: ChannelRanges) -> pd.DataFrame:
    """Return the squared error of the layer's output in percent of the squared output, by variant."""
    errors = {variant: 100 * ranges.variants[variant].output_error for variant in VARIANTS}
    return pd.DataFrame({"variant": list(errors), "output error (%)": list(errors.values())})


def clip_figure(curve: ClipCurve, clip: float, harms: Mapping[float, float] | None = None) -> go.Figure:
    """Draw the error of the layer's output against clipping, and the network's harm below where it is measured.

    Args:
        curve: Errors by clip.
        clip: The chosen clip, which is marked.
        harms: KL at the network's output in nats by clip, as far as measured; None to leave it out.
    """
    frame = clip_frame(curve, harms)
    figure = make_subplots(rows=1 if harms is None else 2, shared_xaxes=True, vertical_spacing=0.08)
    panels = [("output error (%)", "error of the<br>layer's output (%)")]
    if harms is not None:
        panels.append(("KL at the network's output (nats)", "KL at the network's<br>output (nats)"))
    for row, (column, title) in enumerate(panels, 1):
        known = frame.dropna(subset=column)
        figure.add_scatter(
            x=known["clip (%)"],
            y=known[column],
            mode="lines+markers",
            line={"color": VARIANT_COLOURS["clipped"], "width": 2},
            marker={"size": 4},
            name="measured",
            showlegend=False,
            hovertemplate="%{x:g} % a side: %{y:.4g}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(title=title, rangemode="tozero", exponentformat="none", row=row, col=1)
        if known.empty:
            continue
        for name, symbol, colour, rows in (
            ("least", "star", "#d55e00", known.loc[[known[column].idxmin()]]),
            ("chosen", "circle-open", CHOSEN, known[known["clip"] == clip]),
        ):
            figure.add_scatter(
                x=rows["clip (%)"],
                y=rows[column],
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                marker={
                    "symbol": symbol,
                    "color": colour,
                    "size": 13,
                    "line": {"width": 2.5 if name == "chosen" else 0},
                },
                hovertemplate=f"{name}: %{{x:g}} % a side, %{{y:.4g}}<extra></extra>",
                row=row,
                col=1,
            )
    figure.update_xaxes(title="channels clipped at either side (%)", row=len(panels), col=1)
    return finish(figure, _SMALL_HEIGHT if harms is None else _TALL_HEIGHT, margin={"l": 10, "r": 10, "t": 40, "b": 10})


def clip_frame(curve: ClipCurve, harms: Mapping[float, float] | None = None) -> pd.DataFrame:
    """Return the error of the layer's output and, where measured, the network's harm by clip."""
    clips = list(curve.output_errors)
    frame = pd.DataFrame(
        {
            "clip": clips,
            "clip (%)": [round(100 * clip, 6) for clip in clips],
            "output error (%)": [100 * error for error in curve.output_errors.values()],
        }
    )
    if harms is not None:
        frame["KL at the network's output (nats)"] = [harms.get(clip, np.nan) for clip in clips]
    return frame


def clip_words(curve: ClipCurve, clip: float, harms: Mapping[float, float] | None = None) -> str:
    """Say what was measured of clipping at this layer, without promising that it helps."""
    errors = {at: 100 * error for at, error in curve.output_errors.items()}
    chosen = "" if clip == 0 else f" {errors[clip]:.3g} % at the chosen {100 * clip:g} %,"
    words = (
        f"The layer's output error is {errors[0.0]:.3g} % without clipping,{chosen} and least with "
        f"{_clip_name(curve.least)} ({errors[curve.least]:.3g} %)."
    )
    if not harms or len(harms) < len(errors):
        return words
    best = min(harms, key=lambda at: (harms[at], at))
    words += f" At the network's output, with this layer alone quantized, {_clip_name(best)} does the least harm "
    words += f"({harms[best]:.2g} nats; {harms[0.0]:.2g} without clipping)."
    if best != curve.least:
        words += (
            f" The layer's own best choice, {_clip_name(curve.least)}, is not the network's: it does "
            f"{harms[curve.least]:.2g}."
        )
    return words


def _clip_name(clip: float) -> str:
    return f"{100 * clip:g} % clipped" if clip else "no clipping"


def weight_columns(ranges: ChannelRanges, order: str, chosen: int) -> go.Figure:
    """Draw the root mean square of every weight column before, after reparameterization, and after clipping too."""
    places = channel_order(ranges.statistics, order)
    frame = weight_frame(ranges).iloc[places]
    figure = go.Figure()
    for name, variant in (("before", "per tensor"), ("reparameterized", "reparameterized"), ("clipped", "clipped")):
        figure.add_scatter(
            name=name,
            x=frame["channel"].astype(str),
            y=frame[f"column, {name}"],
            mode="markers",
            marker={"symbol": _SYMBOLS[variant], "color": VARIANT_COLOURS[variant], "size": 6},
            hovertemplate=f"channel %{{x}}, {name}: %{{y:.4g}}<extra></extra>",
        )
    mark_channel(figure, places, chosen, label=False)
    channel_axis(figure, places, f"channel, {'in network order' if order == 'network' else order}")
    figure.update_yaxes(title="root mean square of its column", rangemode="tozero")
    return finish(figure, _SMALL_HEIGHT + 20, margin={"l": 10, "r": 10, "t": 40, "b": 10})


def weight_rows(ranges: ChannelRanges) -> go.Figure:
    """Draw the range that each row's weight quantizer has to cover, after against before."""
    frame = weight_row_frame(ranges)
    figure = go.Figure()
    for name in ("reparameterized", "clipped"):
        figure.add_scatter(
            name=name,
            x=frame["before"],
            y=frame[name],
            customdata=frame["output"],
            mode="markers",
            marker={"symbol": _SYMBOLS[name], "color": VARIANT_COLOURS[name], "size": 5, "opacity": 0.7},
            hovertemplate=f"<b>output %{{customdata}}</b><br>before: %{{x:.4g}}<br>{name}: %{{y:.4g}}<extra></extra>",
        )
    widest = float(frame[["before", "reparameterized", "clipped"]].to_numpy().max())
    figure.add_shape(type="line", x0=0, y0=0, x1=widest, y1=widest, line={"color": "#7a868d", "dash": "dash"})
    figure.update_xaxes(title="width of the row before", range=[0, 1.05 * float(frame["before"].max())])
    figure.update_yaxes(title="width of the row after", range=[0, 1.05 * widest])
    return finish(figure, _SMALL_HEIGHT + 20, margin={"l": 10, "r": 10, "t": 40, "b": 10})


def weight_frame(ranges: ChannelRanges) -> pd.DataFrame:
    """Return ratio r and the root mean square of every weight column before and after, one row per channel."""
    variants = ranges.variants
    return pd.DataFrame(
        {
            "channel": np.arange(len(ranges.statistics.width)),
            "ratio r, reparameterized": variants["reparameterized"].ratio,
            "ratio r, clipped": variants["clipped"].ratio,
            "column, before": variants["per tensor"].weight_columns,
            "column, reparameterized": variants["reparameterized"].weight_columns,
            "column, clipped": variants["clipped"].weight_columns,
        }
    )


def weight_row_frame(ranges: ChannelRanges) -> pd.DataFrame:
    """Return the width of every weight row's range before and after, one row per output channel."""
    variants = ranges.variants
    return pd.DataFrame(
        {
            "output": np.arange(len(variants["per tensor"].weight_rows)),
            "before": variants["per tensor"].weight_rows,
            "reparameterized": variants["reparameterized"].weight_rows,
            "clipped": variants["clipped"].weight_rows,
        }
    )


def weight_words(ranges: ChannelRanges) -> str:
    """Say how far weight columns are spread before and after, and what that does to the range of the median row."""
    columns, rows = weight_frame(ranges), weight_row_frame(ranges)
    spread = [_spread(columns[f"column, {name}"]) for name in ("before", "reparameterized", "clipped")]
    before, moved, clipped = (max(float(rows[name].median()), np.finfo(float).tiny) for name in rows.columns[1:])
    return (
        f"Left: column c is multiplied by r_c. The largest column is {spread[0]:.1f} times the median one before, "
        f"{spread[1]:.1f} times after reparameterization, {spread[2]:.1f} times with the chosen clipping. Right: the "
        f"weight quantizer has one scale per row (output), so a row above the dashed line gets coarser steps. The "
        f"median row becomes {moved / before:.2f} times as wide, with the chosen clipping {clipped / before:.2f} times."
    )


def _spread(columns: pd.Series) -> float:
    return float(columns.max() / max(float(columns.median()), np.finfo(float).tiny))
