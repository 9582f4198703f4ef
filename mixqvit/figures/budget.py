"""What the Budget page shows: bits per layer, what changed, what it costs, what was measured, and the recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from mixqvit.bits import BIT_WIDTHS, FULL_PRECISION, Bits
from mixqvit.costs import Cost, bitops, code_bytes
from mixqvit.figures.grid import blocks_by_kinds, layer_frame
from mixqvit.figures.overview import megabytes, percent
from mixqvit.figures.style import BIT_COLOURS, bit_scale, finish
from mixqvit.layers import Layer

if TYPE_CHECKING:
    from mixqvit.allocation import Allocation, Budget
    from mixqvit.evaluation import Evaluation
    from mixqvit.records import Settings

__all__ = [
    "MEASURES",
    "MeasuredPoint",
    "allocation_frame",
    "bits_grid",
    "changes",
    "comparison",
    "gauges",
    "measured_frame",
    "measured_points",
    "pin_frame",
    "pins",
    "recipe",
]

MEASURES = {
    "Top-1 accuracy": ("top1", "interval"),
    "Agreement with full precision": ("agreement", "agreement_interval"),
}
"""What the vertical axis of the measured points can be: the value and its 95 % interval in an `Evaluation`."""

_FULL_PRECISION_STEP = BIT_WIDTHS[-1] + 1  # the place of full precision on the scale of colours
_COLOURS = {"mixed": "#0072b2", "uniform": "#e69f00"}
_SYMBOLS = {"mixed": "circle", "uniform": "square"}
_LINES = "#7f8a92"
_PINNED = "pinned bits"
_WAITING = "…"
_NO_BREAK = "\u00a0"


@dataclass(frozen=True)
class MeasuredPoint:
    """One allocation with what was measured of it.

    Attributes:
        name: `mixed` or `uniform`.
        cost: Its cost.
        harm: Its predicted harm; with the same γ for all points shown together.
        evaluation: What was measured, on all evaluation images.
    """

    name: str
    cost: Cost
    harm: float
    evaluation: "Evaluation"


def bits_grid(
    layers: Sequence[Layer],
    bits: Mapping[str, Bits],
    previous: Mapping[str, Bits] | None,
    importance: Mapping[str, float],
    sensitivity: Mapping[str, Mapping[int, float]],
    pinned: Mapping[str, int],
) -> go.Figure:
    """Draw the weight bits of every layer over the network; ▲ and ▼ mark what changed against `previous`.

    Args:
        layers: The table of layers.
        bits: (weight bits, activation bits) by layer name.
        previous: The allocation shown before, None for the first.
        importance: Ω by layer name.
        sensitivity: Λ by layer name and bit-width, as measured.
        pinned: Bits fixed by hand, by layer name; ● marks those that `bits` has, which a budget too small may not.
    """
    before = previous or bits
    held = {name for name, width in pinned.items() if bits[name][0] == width}

    def text(layer: Layer, value: float) -> str:
        now, then = bits[layer.name][0], before[layer.name][0]
        mark = "" if now == then else " ▲" if now > then else " ▼"
        return f"{now}{mark}" + (" ●" if layer.name in held else "")

    def hover(layer: Layer, value: float) -> str:
        first, second = bits[layer.name]
        names = ("first operand", "second operand") if layer.is_matmul else ("weights", "input")
        harm = sensitivity[layer.name].get(first)
        lines = [
            f"kind {layer.kind}" + ("" if layer.block is None else f", block {layer.block}"),
            f"{first} bits for the {names[0]}, {second} bits for the {names[1]}",
            *([f"before: {before[layer.name][0]} bits"] if before[layer.name] != bits[layer.name] else []),
            *(["pinned by hand ●"] if layer.name in held else []),
            f"{layer.parameters:,} parameters, {layer.macs / 1e6:.3f} M MACs",
            f"importance Ω = {percent(importance[layer.name], 2)}",
            "full precision: no harm" if harm is None else f"sensitivity Λ = {harm:.3g} nats",
        ]
        return "<br>".join(lines) + "<br>"

    steps = {name: min(pair[0], _FULL_PRECISION_STEP) for name, pair in bits.items()}
    figure = blocks_by_kinds(
        layers,
        steps,
        colours=bit_scale(tuple(BIT_COLOURS)),
        title="weight bits",
        text=text,
        hover=hover,
        limits=(BIT_WIDTHS[0] - 0.5, _FULL_PRECISION_STEP + 0.5),
        ticks=(*BIT_WIDTHS, _FULL_PRECISION_STEP),
    )
    figure.data[0].colorbar.ticktext = [*map(str, BIT_WIDTHS), str(FULL_PRECISION)]
    return figure


def changes(bits: Mapping[str, Bits], previous: Mapping[str, Bits] | None) -> str:
    """Say in Markdown which layers got more and which fewer bits than before."""
    if previous is None:
        return "Move the budget: what changes is listed here."
    moved = {name: (previous[name][0], pair[0]) for name, pair in bits.items() if previous[name][0] != pair[0]}
    if not moved:
        return "No layer changed against the previous position."
    more = [f"`{name}`{_NO_BREAK}{then}→{now}" for name, (then, now) in moved.items() if now > then]
    fewer = [f"`{name}`{_NO_BREAK}{then}→{now}" for name, (then, now) in moved.items() if now < then]
    groups = [("▲ more bits", more), ("▼ fewer bits", fewer)]
    return "\n\n".join(f"**{title} ({len(names)}):** {', '.join(names)}" for title, names in groups if names)


def gauges(allocation: "Allocation", full: Cost, bitops_ceiling: float | None) -> list[tuple[str, float]]:
    """Return the costs of an allocation in words, each with the fraction used of what is allowed.

    Without a ceiling, the fraction is that of full precision.

    Args:
        allocation: Bits per layer with their cost and budget.
        full: Cost of full precision.
        bitops_ceiling: The most BitOps that the budget allows, as `allocation.bitops_ceiling` says; None for no limit.
    """
    budget, spent = allocation.budget, allocation.cost
    return [
        _gauge("Average bits", spent.average_bits, budget.average_bits, full.average_bits, "{:.2f}"),
        _gauge(
            "Model size", spent.size_bytes / 1e6, _scaled(budget.size_bytes, 1e6), full.size_bytes / 1e6, "{:.3f} MB"
        ),
        _gauge("BitOps", spent.bitops / 1e9, _scaled(bitops_ceiling, 1e9), full.bitops / 1e9, "{:.3f} G"),
    ]


def _scaled(amount: float | None, unit: float) -> float | None:
    return None if amount is None else amount / unit


def _gauge(name: str, spent: float, ceiling: float | None, full: float, form: str) -> tuple[str, float]:
    if ceiling is None:
        return f"{name} **{form.format(spent)}**, {percent(spent / full)} of full precision", spent / full
    return f"{name} **{form.format(spent)}** of {form.format(ceiling)} allowed", min(spent / ceiling, 1.0)


def comparison(columns: Mapping[str, tuple[Cost, float, "Evaluation | None"] | None]) -> str:
    """Return a Markdown table of settings side by side.

    Args:
        columns: (cost, predicted harm, what was measured) by title; an evaluation of None is still to come, a column
            of None does not exist.
    """
    rows = {
        "Average bits": lambda cost, harm, found: f"{cost.average_bits:.2f}",
        "Model size": lambda cost, harm, found: megabytes(cost.size_bytes),
        "· weight codes": lambda cost, harm, found: megabytes(cost.weight_bytes),
        "· scales, zero points": lambda cost, harm, found: megabytes(cost.scale_bytes),
        "· kept in float32": lambda cost, harm, found: megabytes(cost.full_precision_bytes),
        "· file header": lambda cost, harm, found: megabytes(cost.container_bytes),
        "BitOps": lambda cost, harm, found: f"{cost.bitops / 1e9:.3f} G",
        "Predicted harm": lambda cost, harm, found: f"{harm:.3g}",
        "Top-1 accuracy": lambda cost, harm, found: _fraction(found and found.top1),
        "its 95 % interval": lambda cost, harm, found: _interval(found and found.interval),
        "Agreement": lambda cost, harm, found: _fraction(found and found.agreement),
        "its 95 % interval ": lambda cost, harm, found: _interval(found and found.agreement_interval),
        "KL divergence": lambda cost, harm, found: _WAITING if found is None else f"{found.kl:.3g} nats",
    }
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for title, write in rows.items():
        entries = ["–" if column is None else write(*column) for column in columns.values()]
        lines.append(f"| {title} | " + " | ".join(entries) + " |")
    return "\n".join(lines).replace("95 % ", f"95{_NO_BREAK}%{_NO_BREAK}")


def _fraction(value: float | None) -> str:
    return _WAITING if value is None else percent(value)


def _interval(ends: tuple[float, float] | None) -> str:
    return _WAITING if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def measured_points(
    points: Sequence[MeasuredPoint], full: "Evaluation | None", current: "Cost | None", measure: str
) -> go.Figure:
    """Draw measured accuracy or agreement against average bits, with 95 % intervals.

    Args:
        points: What was measured so far.
        full: Full precision, drawn as a line with its interval as a band.
        current: Cost of the allocation shown now, ringed.
        measure: A key of `MEASURES`.
    """
    value, interval = MEASURES[measure]
    points = [point for point in points if getattr(point.evaluation, value) is not None]
    figure = go.Figure()
    for name in ("uniform", "mixed"):
        chosen = sorted((point for point in points if point.name == name), key=lambda point: point.cost.average_bits)
        figure.add_trace(
            go.Scatter(
                x=[point.cost.average_bits for point in chosen],
                y=[100 * getattr(point.evaluation, value) for point in chosen],
                error_y=_error_bars(chosen, value, interval, _COLOURS[name]),
                name=f"{name} bits",
                mode="lines+markers" if name == "uniform" else "markers",
                line={"dash": "dot", "width": 1.5, "color": _COLOURS[name]},
                marker={"symbol": _SYMBOLS[name], "size": 10, "color": _COLOURS[name]},
                text=[_point_hover(point, value, interval) for point in chosen],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    ringed = [point for point in points if point.name == "mixed" and point.cost == current]
    figure.add_trace(
        go.Scatter(
            x=[point.cost.average_bits for point in ringed],
            y=[100 * getattr(point.evaluation, value) for point in ringed],
            name="shown now",
            mode="markers",
            marker={"symbol": "circle-open", "size": 18, "color": _COLOURS["mixed"], "line": {"width": 2}},
            hoverinfo="skip",
        )
    )
    if full is not None and getattr(full, value) is not None:
        level = 100 * getattr(full, value)
        figure.add_hline(
            level, line={"dash": "dash", "width": 1.5, "color": _LINES}, annotation_text=f"full precision {level:.1f} %"
        )
        lowest, highest = getattr(full, interval)
        figure.add_hrect(100 * lowest, 100 * highest, fillcolor=_LINES, opacity=0.15, line_width=0)
    finish(figure, 360, xaxis_title="average bits", yaxis_title=f"{measure} (%)")
    figure.update_xaxes(range=[BIT_WIDTHS[0] - 0.3, BIT_WIDTHS[-1] + 0.3], dtick=1)
    return figure


def _error_bars(points: Sequence[MeasuredPoint], value: str, interval: str, colour: str) -> dict[str, Any]:
    middles = [getattr(point.evaluation, value) for point in points]
    ends = [getattr(point.evaluation, interval) for point in points]
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * (highest - middle) for (_, highest), middle in zip(ends, middles, strict=True)],
        "arrayminus": [100 * (middle - lowest) for (lowest, _), middle in zip(ends, middles, strict=True)],
        "color": colour,
        "thickness": 1,
    }


def _point_hover(point: MeasuredPoint, value: str, interval: str) -> str:
    lowest, highest = getattr(point.evaluation, interval)
    return (
        f"<b>{point.name} bits, {point.cost.average_bits:.2f} on average</b><br>"
        f"{percent(getattr(point.evaluation, value))}, 95 % interval {percent(lowest)} to {percent(highest)}<br>"
        f"KL divergence {point.evaluation.kl:.3g} nats<br>"
        f"{megabytes(point.cost.size_bytes)}, {point.cost.bitops / 1e9:.3f} G BitOps<br>"
        f"predicted harm {point.harm:.3g}"
    )


def measured_frame(points: Sequence[MeasuredPoint]) -> pd.DataFrame:
    """Return what was measured as a table: one row per setting, fractions from 0 to 1, KL in nats."""
    return pd.DataFrame(
        [
            {
                "setting": point.name,
                "average bits": point.cost.average_bits,
                "model size (bytes)": point.cost.size_bytes,
                "weight codes (bytes)": point.cost.weight_bytes,
                "BitOps": point.cost.bitops,
                "predicted harm": point.harm,
                "top-1": point.evaluation.top1,
                "agreement": point.evaluation.agreement,
                "KL (nats)": point.evaluation.kl,
                "images": point.evaluation.images,
            }
            for point in points
        ]
    )


def allocation_frame(
    layers: Sequence[Layer],
    bits: Mapping[str, Bits],
    importance: Mapping[str, float],
    sensitivity: Mapping[str, Mapping[int, float]],
) -> pd.DataFrame:
    """Return an allocation as a table: bits, costs, Ω and Λ (nats, as measured) of every layer."""
    return layer_frame(
        layers,
        {
            "weight bits": {name: pair[0] for name, pair in bits.items()},
            "activation bits": {name: pair[1] for name, pair in bits.items()},
            "codes (bytes)": {layer.name: code_bytes(layer, bits[layer.name][0]) for layer in layers},
            "BitOps": {layer.name: bitops(layer, bits[layer.name]) for layer in layers},
            "importance": importance,
            "sensitivity (nats)": {name: sensitivity[name].get(pair[0], 0.0) for name, pair in bits.items()},
        },
    )


def pin_frame(layers: Sequence[Layer], pinned: Mapping[str, int]) -> pd.DataFrame:
    """Return the table in which layers are pinned: bits fixed by hand, empty where the allocation decides."""
    frame = layer_frame(layers, {_PINNED: pinned})[["layer", "kind", _PINNED]]
    return frame.astype({_PINNED: "Int64"})


def pins(frame: pd.DataFrame) -> dict[str, int]:
    """Return the bits fixed by hand by layer name, read from an edited `pin_frame`."""
    chosen = frame.dropna(subset=[_PINNED])
    return {name: int(bits) for name, bits in zip(chosen["layer"], chosen[_PINNED], strict=True)}


def recipe(
    model: str,
    settings: "Settings",
    allocation: "Allocation",
    gamma: float,
    pinned: Mapping[str, int],
    evaluation: "Evaluation | None",
) -> dict[str, Any]:
    """Return an allocation as a document that JSON can write, with all that it was solved with.

    Args:
        model: What `load_model` is called with.
        settings: What the study computed with.
        allocation: Bits per layer with their cost, harm and budget.
        gamma: Exponent of Ω that the allocation was solved with and its harm is predicted with.
        pinned: Bits fixed by hand that the allocation was solved around, by layer name.
        evaluation: What was measured; None if nothing was.

    Returns:
        `model`; `recipe`, the quantization recipe; `settings`, the fields of `Settings` by name, outlier amplification
        included; `budget` with the ceilings, None where there was none; `gamma`; `pinned`, from layer name to bits;
        `bits`, from layer name to [weight bits, activation bits]; `predicted_harm`, Σ Ω^gamma · Λ in nats; `cost` in
        bytes (of the packed file and of its parts), BitOps and bits; `measured` with fractions from 0 to 1 and KL in
        nats, or None.
    """
    budget: Budget = allocation.budget
    return {
        "model": model,
        "recipe": settings.recipe,
        "settings": asdict(settings),
        "budget": {
            "average_bits": budget.average_bits,
            "size_bytes": budget.size_bytes,
            "bitops": budget.bitops,
            "cap_bitops": budget.cap_bitops,
        },
        "gamma": gamma,
        "pinned": dict(pinned),
        "bits": {name: list(pair) for name, pair in allocation.bits.items()},
        "predicted_harm": allocation.harm,
        "cost": asdict(allocation.cost) | {"size_bytes": allocation.cost.size_bytes},
        "measured": evaluation
        and {
            "images": evaluation.images,
            "top1": evaluation.top1,
            "top1_interval": evaluation.interval and list(evaluation.interval),
            "agreement": evaluation.agreement,
            "kl": evaluation.kl,
        },
    }
