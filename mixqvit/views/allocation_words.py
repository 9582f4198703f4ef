"""Bits of layers in words: short for cells, long for hovers, and what changed between two allocations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mixqvit.network.bits import UNQUANTIZED, Bits, is_tied, resolve_pair, written_bits
from mixqvit.network.layers import Layer
from mixqvit.tasks.metrics import Metric
from mixqvit.views.numbers import millions, percent

__all__ = ["LayerFacts", "bits_text", "changes", "mark"]

_NO_BREAK = "\u00a0"


@dataclass(frozen=True)
class LayerFacts:
    """What the figures of an allocation say of a layer on hover.

    Attributes:
        bits: (weight bits, activation bits) by layer name.
        previous: Those before, None for the first.
        importance: Ω by layer name, None where it is not known.
        sensitivity: Λ by layer name and bit-width, as measured.
        metric: What Λ is measured as.
        pinned: Bits fixed by hand, by layer name.
        at_least: Least bits that were demanded, by layer name.
        at_most: Most bits that were allowed, by layer name.
    """

    bits: Mapping[str, Bits]
    previous: Mapping[str, Bits] | None
    importance: Mapping[str, float] | None
    sensitivity: Mapping[str, Mapping[int, float]]
    metric: Metric
    pinned: Mapping[str, int | Bits] = field(default_factory=dict)
    at_least: Mapping[str, int] = field(default_factory=dict)
    at_most: Mapping[str, int] = field(default_factory=dict)

    def is_held(self, layer: Layer) -> bool:
        """Return whether the layer has the bits that it was pinned to; one of a budget too small may not."""
        pin = self.pinned.get(layer.name)
        return pin is not None and self.bits[layer.name] == resolve_pair(layer, pin)

    def mark(self, name: str) -> str:
        """Return ▲ or ▼ where the layer got more or fewer bits than before."""
        return "" if self.previous is None else mark(self.previous[name], self.bits[name])

    def hover(self, layer: Layer) -> str:
        """Return all of it in words, in lines that end in `<br>`; the layer's name is not among them."""
        name = layer.name
        first, second = self.bits[name]
        operands = ("first operand", "second operand") if layer.is_matmul else ("weights", "input")
        harm = self.sensitivity[name].get(first) if is_tied(layer, self.bits[name]) else None
        lines = [
            f"kind {layer.kind}" + ("" if layer.block is None else f", block {layer.block}"),
            f"{first} bits for the {operands[0]}, {second} bits for the {operands[1]}",
        ]
        if self.mark(name):
            lines.append(f"before: {bits_text(layer, self.previous[name])} bits")
        if self.is_held(layer):
            lines.append("pinned by hand ●")
        if name in self.at_least:
            lines.append(f"at least {self.at_least[name]} bits by hand")
        if name in self.at_most:
            lines.append(f"at most {self.at_most[name]} bits by hand")
        lines.append(f"{layer.parameters:,} parameters, {millions(layer.macs)} MACs")
        if self.importance is not None:
            lines.append(f"importance Ω = {percent(self.importance[name], 2)}")
        if harm is not None:
            lines.append(f"sensitivity Λ = {self.metric.in_words(harm)}")
        elif (first, second) == UNQUANTIZED:
            lines.append("full precision: no harm")
        return "<br>".join(lines) + "<br>"


def bits_text(layer: Layer, bits: Bits) -> str:
    """Write bits for a cell: one number, or weight and activation bits where they differ."""
    return written_bits(bits[0] if is_tied(layer, bits) else bits)


def mark(before: Bits, now: Bits) -> str:
    """Return ▲ for more bits than before, ▼ for fewer, ◆ for more here and fewer there, nothing for the same."""
    if before == now:
        return ""
    rises, falls = (any(sign * (b - a) > 0 for a, b in zip(before, now, strict=True)) for sign in (1, -1))
    return "◆" if rises and falls else "▲" if rises else "▼"


def changes(layers: Sequence[Layer], bits: Mapping[str, Bits], previous: Mapping[str, Bits] | None) -> str:
    """Say in Markdown which layers got more and which fewer bits than before."""
    if previous is None:
        return "Move the budget: what changes is listed here."
    groups: dict[str, list[str]] = {"▲": [], "▼": [], "◆": []}
    for layer in layers:
        then, now = previous[layer.name], bits[layer.name]
        if then != now:
            words = f"`{layer.name}`{_NO_BREAK}{bits_text(layer, then)}→{bits_text(layer, now)}"
            groups[mark(then, now)].append(words)
    titles = {"▲": "more bits", "▼": "fewer bits", "◆": "moved between weights and input"}
    said = [f"**{sign} {titles[sign]} ({len(names)}):** {', '.join(names)}" for sign, names in groups.items() if names]
    return "\n\n".join(said) or "No layer changed against the previous position."
