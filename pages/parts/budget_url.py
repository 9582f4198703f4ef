"""The part of the Budget page's state that no single widget holds, in the URL: restrictions, and what is held as A.

Compact and readable: `pinned=head-8~blocks.0.attn.qkv-4.6` (weight and input bits where they differ), `at_least` and
`at_most` alike, `allowed=fc1-248`, and `held` with two characters per layer in network order, f for full precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixqvit.allocation.restrictions import RESTRICTIONS, Restrictions
from mixqvit.network.bits import (
    BIT_WIDTHS,
    NUMBER_FORMATS,
    Bits,
    BitsPerLayer,
    bits_with_character,
    read_bits,
    written_bits,
)
from mixqvit.network.layers import Layer
from pages.parts.budget_request import RANGES, can_pin

BETWEEN, BEFORE_BITS, BETWEEN_BITS = "~", "-", "."
PARAMETERS = (*RESTRICTIONS, "held")


@dataclass(frozen=True)
class Found:
    """What a URL says; `problems` are sentences about the parts of it that could not be used.

    Attributes:
        restrictions: Those that fit the model.
        held: (weight bits, activation bits) by layer name, None for nothing.
        problems: One sentence per part that was dropped.
    """

    restrictions: Restrictions
    held: BitsPerLayer | None
    problems: list[str] = field(default_factory=list)


def written(restrictions: Restrictions, held: Mapping[str, Bits] | None) -> dict[str, str]:
    """Return the parameters by name; empty texts for those that the URL does not need."""
    found = {
        name: BETWEEN.join(
            f"{place}{BEFORE_BITS}{written_bits(bits, '' if name == 'allowed' else BETWEEN_BITS)}"
            for place, bits in getattr(restrictions, name).items()
        )
        for name in RESTRICTIONS
    }
    return found | {
        "held": ""
        if held is None
        else "".join(NUMBER_FORMATS[bits].character for pair in held.values() for bits in pair)
    }


def read(parameters: Mapping[str, str], layers: Sequence[Layer], tied: bool) -> Found:
    """Return what the parameters say; what they say wrongly becomes a sentence and is dropped.

    Numbers are bound to widgets, which drop what is out of their range without a word: here they get their sentence.

    Args:
        parameters: Texts by name; others than those of this page are passed over.
        layers: The table of layers.
        tied: Whether both operands of a layer share their bits.
    """
    problems = [
        f"`{name}` of the link says `{_short(parameters[name])}`, but goes from {low:g} to {high:.9g}."
        for name, (low, high) in RANGES.items()
        if parameters.get(name) and not _is_number_within(parameters[name], low, high)
    ]
    by_name = {layer.name: layer for layer in layers}
    kinds = {layer.kind for layer in layers}
    restrictions: dict[str, dict[str, Any]] = {}
    for name in RESTRICTIONS:
        known, parse = (kinds, _widths) if name == "allowed" else (by_name, _pin if name == "pinned" else _width)
        restrictions[name] = {}
        for part in filter(None, parameters.get(name, "").split(BETWEEN)):
            place, _, text = part.rpartition(BEFORE_BITS)
            bits = parse(text)
            if place not in known or bits is None:
                problems.append(f"`{name}` of the link says `{_short(part)}`, which does not fit this model.")
            elif name == "pinned" and not can_pin(by_name[place], bits, tied):
                problems.append(
                    f"`pinned` of the link says `{_short(part)}`, which cannot be chosen"
                    f"{' as long as weights and inputs are tied' if can_pin(by_name[place], bits, False) else ''}."
                )
            else:
                restrictions[name][place] = bits
    held = _held(parameters.get("held", ""), layers)
    if held is None and parameters.get("held"):
        problems.append("`held` of the link is no allocation of this model.")
    return Found(Restrictions(**restrictions), held, problems)


def _is_number_within(text: str, low: float, high: float) -> bool:
    try:
        return low <= type(low)(text) <= high
    except ValueError:
        return False


def _short(text: str) -> str:
    return (text if len(text) <= 40 else f"{text[:40]}…").replace("`", "'")


def _width(text: str) -> int | None:
    bits = read_bits(text, BETWEEN_BITS)
    return bits if bits in BIT_WIDTHS else None


def _pin(text: str) -> int | Bits | None:
    return read_bits(text, BETWEEN_BITS)


def _widths(text: str) -> tuple[int, ...] | None:
    widths = tuple(bits for bits in BIT_WIDTHS if NUMBER_FORMATS[bits].character in text)
    return widths if text and "".join(NUMBER_FORMATS[bits].character for bits in widths) == text else None


def _held(text: str, layers: Sequence[Layer]) -> BitsPerLayer | None:
    widths = [bits_with_character(one) for one in text]
    if None in widths or len(widths) != 2 * len(layers):
        return None
    return {layer.name: (widths[2 * place], widths[2 * place + 1]) for place, layer in enumerate(layers)}
