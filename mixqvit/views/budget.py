"""What the Budget page shows of one allocation: bits per layer, what it costs, and tables to read and to edit."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan

import pandas as pd
import plotly.graph_objects as go

from mixqvit.allocation.costs import Cost, bitops, code_bytes
from mixqvit.allocation.quantities import QUANTITIES, Quantity
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.network.layers import Layer
from mixqvit.tasks.evaluation import AGREEMENT, TOP1, Accuracy, Evaluation
from mixqvit.views.allocation_strip import FULL_PRECISION_STEP, bit_step
from mixqvit.views.allocation_words import LayerFacts, bits_text
from mixqvit.views.grid import blocks_by_kinds, layer_frame
from mixqvit.views.numbers import NOTHING, billions, megabytes, nats, percent
from mixqvit.views.style import BIT_COLOURS, bit_scale

__all__ = [
    "allocation_frame",
    "bits_grid",
    "comparison",
    "gauges",
    "harm_text",
    "solved_words",
]

_WAITING = "…"
_NO_BREAK = "\u00a0"


def bits_grid(layers: Sequence[Layer], facts: LayerFacts) -> go.Figure:
    """Draw the bits of every layer as blocks × kinds; ▲ and ▼ mark what changed, ● what is pinned.

    Args:
        layers: The table of layers.
        facts: The allocation, the one before, and what is known of the layers.
    """

    def text(layer: Layer, value: float) -> str:
        marks = [facts.mark(layer.name), "●" if facts.is_held(layer) else ""]
        return " ".join([bits_text(layer, facts.bits[layer.name]), *filter(None, marks)])

    figure = blocks_by_kinds(
        layers,
        {name: bit_step(pair[0]) for name, pair in facts.bits.items()},
        colours=bit_scale(tuple(BIT_COLOURS)),
        title="weight bits",
        text=text,
        hover=lambda layer, value: facts.hover(layer),
        limits=(BIT_WIDTHS[0] - 0.5, FULL_PRECISION_STEP + 0.5),
        ticks=(*BIT_WIDTHS, FULL_PRECISION_STEP),
    )
    figure.data[0].colorbar.ticktext = [*map(str, BIT_WIDTHS), str(FULL_PRECISION)]
    return figure


def harm_text(harm: float) -> str:
    """Write a predicted harm; that of bits whose harm was not measured as a dash."""
    return NOTHING if isnan(harm) else f"{harm:.3g}"


def solved_words(gap: float, strategy: str, is_search: bool) -> str:
    """Say how good an allocation is by its own strategy.

    Args:
        gap: How far at most it is from the best, relative to its own harm; 0 where it is proven optimal.
        strategy: The strategy's name.
        is_search: Whether the strategy minimises anything.
    """
    if not is_search:
        return "The largest uniform bits within the ceilings."
    if gap == 0:
        return f"Proven optimal: no allocation within these ceilings has a smaller score by {strategy}."
    return f"Within {percent(gap)} of the best possible score by {strategy}, by a proven bound."


def gauges(
    spent: Mapping[str, float], full: Mapping[str, float], ceilings: Mapping[str, float]
) -> list[tuple[str, float]]:
    """Return what an allocation takes of every quantity in words, each with the fraction used of what is allowed.

    Without a ceiling, the fraction is that of full precision.

    Args:
        spent: What it takes, by name of the quantity, as `quantities.spent` says.
        full: What full precision takes.
        ceilings: The most that its budget allows, as `budget.ceilings` says.
    """
    return [_gauge(QUANTITIES[name], spent[name], ceilings.get(name), full[name]) for name in spent]


def _gauge(one: Quantity, spent: float, ceiling: float | None, full: float) -> tuple[str, float]:
    title = f"{one.title[0].upper()}{one.title[1:]} **{one.written(spent)}**"
    if ceiling is None:
        return f"{title}, {percent(spent / full)} of full precision", min(spent / full, 1.0)
    return f"{title} of {one.written(ceiling)} allowed", min(spent / ceiling, 1.0)


def comparison(columns: Mapping[str, tuple[Cost, float, Evaluation | None] | None], has_labels: bool = True) -> str:
    """Return a Markdown table of settings side by side.

    Args:
        columns: (cost, predicted harm, what was measured) by title; an evaluation of None is still to come, a column
            of None does not exist.
        has_labels: Whether the images have labels; without them there is no top-1 accuracy to show.
    """
    rows = {
        "Average bits": lambda cost, harm, found: f"{cost.average_bits:.2f}",
        "Model size": lambda cost, harm, found: megabytes(cost.size_bytes),
        "· weight codes": lambda cost, harm, found: megabytes(cost.weight_bytes),
        "· scales, zero points": lambda cost, harm, found: megabytes(cost.scale_bytes),
        "· kept in float32": lambda cost, harm, found: megabytes(cost.full_precision_bytes),
        "· file header": lambda cost, harm, found: megabytes(cost.container_bytes),
        "BitOps": lambda cost, harm, found: billions(cost.bitops),
        "Predicted harm": lambda cost, harm, found: harm_text(harm),
        **(_accuracy_rows(TOP1.title, TOP1, "its 95 % interval") if has_labels else {}),
        **_accuracy_rows(AGREEMENT.short, AGREEMENT, "its 95 % interval "),  # another key: with a blank
        "KL divergence": lambda cost, harm, found: _WAITING if found is None else nats(found.kl),
    }
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for title, write in rows.items():
        entries = ["–" if column is None else write(*column) for column in columns.values()]
        lines.append(f"| {title} | " + " | ".join(entries) + " |")
    return "\n".join(lines).replace("95 % ", f"95{_NO_BREAK}%{_NO_BREAK}")


def _accuracy_rows(title: str, measure: Accuracy, interval: str) -> dict[str, Callable]:
    return {
        title: lambda cost, harm, found: _fraction(found and measure.value(found)),
        interval: lambda cost, harm, found: _interval(found and measure.interval(found)),
    }


def _fraction(value: float | None) -> str:
    return _WAITING if value is None else percent(value)


def _interval(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return _WAITING
    return NOTHING if isnan(ends[0]) else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def allocation_frame(layers: Sequence[Layer], facts: LayerFacts) -> pd.DataFrame:
    """Return an allocation as a table: bits, costs, and of every layer Ω where it is known and Λ at its weight bits."""
    bits = facts.bits
    columns = {
        "weight bits": {name: pair[0] for name, pair in bits.items()},
        "activation bits": {name: pair[1] for name, pair in bits.items()},
        "codes (bytes)": {layer.name: code_bytes(layer, bits[layer.name][0]) for layer in layers},
        "BitOps": {layer.name: bitops(layer, bits[layer.name]) for layer in layers},
    }
    if facts.importance is not None:
        columns["importance"] = facts.importance
    columns["sensitivity"] = {name: facts.sensitivity[name].get(pair[0], 0.0) for name, pair in bits.items()}
    return layer_frame(layers, columns)
