"""Number formats of operands, which of them a layer may have together, and what a request means for every layer.

A layer's bits are a pair of numbers, each of which stands for a number format: an integer of 2 to 8 bits by its width,
float32 by 32. Which formats there are, how they are written and read, and what they take is said in `NUMBER_FORMATS`
alone; what else asks for bits asks here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from mixqvit.errors import BitWidthError
from mixqvit.network.layers import Layer

__all__ = [
    "BIT_WIDTHS",
    "FULL_PRECISION",
    "NUMBER_FORMATS",
    "UNQUANTIZED",
    "WIDTHS_TEXT",
    "Bits",
    "BitsPerLayer",
    "NumberFormat",
    "bits_with_character",
    "bound_bits",
    "check_bits",
    "check_names",
    "input_bits",
    "is_tied",
    "kept_input_bits",
    "possible_bits",
    "read_bits",
    "resolve_bits",
    "resolve_pair",
    "tied_bits",
    "uniform",
    "written_bits",
]

Bits = tuple[int, int]
"""(weight bits, activation bits) of a layer; for an attention product the bits of its first and second operand."""

BitsPerLayer = dict[str, Bits]


@dataclass(frozen=True)
class NumberFormat:
    """What an operand is stored as.

    Attributes:
        number: What stands for it in `Bits`, and how people write it.
        title: What it is called.
        character: The one character that stands for it where every character counts.
        bits: What one element takes, in memory and in BitOps.
        is_quantized: Whether elements are codes with a scale; else they are the values themselves.
    """

    number: int
    title: str
    character: str
    bits: int
    is_quantized: bool = True


NUMBER_FORMATS: Mapping[int, NumberFormat] = {
    one.number: one
    for one in (
        *(NumberFormat(bits, f"{bits}-bit integers", str(bits), bits) for bits in range(2, 9)),
        NumberFormat(32, "float32", "f", 32, is_quantized=False),
    )
}
"""All number formats by the number that stands for them, the coarsest first."""

BIT_WIDTHS = tuple(number for number, one in NUMBER_FORMATS.items() if one.is_quantized)

FULL_PRECISION = next(number for number, one in NUMBER_FORMATS.items() if not one.is_quantized)
"""Bit-width of an operand that is left in float32."""

UNQUANTIZED: Bits = (FULL_PRECISION, FULL_PRECISION)

_QUANTIZED_TEXT = f"{BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}"
WIDTHS_TEXT = f"{_QUANTIZED_TEXT}, or {FULL_PRECISION} for full precision"
"""All bit-widths in words."""


# Text


def written_bits(bits: int | Bits, between: str = "/") -> str:
    """Write one bit-width, or the two of a layer."""
    return str(bits) if isinstance(bits, int) else between.join(map(str, bits))


def read_bits(text: str, between: str = "/") -> int | Bits | None:
    """Return the bit-width, or the two of a layer, that a text says exactly as `written_bits` does; None for others."""
    found = [next((number for number in NUMBER_FORMATS if str(number) == part), None) for part in text.split(between)]
    if None in found or len(found) > 2:
        return None
    return found[0] if len(found) == 1 else (found[0], found[1])


def bits_with_character(character: str) -> int | None:
    """Return the bit-width that one character stands for, None where it stands for none."""
    return next((number for number, one in NUMBER_FORMATS.items() if one.character == character), None)


def check_bits(bits: object, where: str, quantized: bool = False) -> None:
    """Refuse what is no bit-width.

    Args:
        bits: What may be one.
        where: What it is for, in words.
        quantized: Whether full precision is refused too.

    Raises:
        BitWidthError: It is none.
    """
    possible = BIT_WIDTHS if quantized else NUMBER_FORMATS
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in possible:
        raise BitWidthError(
            f"{bits!r} bits are not possible for {where}: use {_QUANTIZED_TEXT if quantized else WIDTHS_TEXT}."
        )


# What goes together in a layer


def kept_input_bits(layer: Layer) -> int | None:
    """Return the bits that a quantized layer's input has whatever is asked for; None where it has what is asked for.

    Images arrive as 8-bit codes, so the input of the patch embedding keeps 8 bits (METHOD.md).
    """
    return 8 if layer.kind == "patch_embed" else None


def input_bits(layer: Layer, bits: float) -> float:
    """Return the bits of a layer's input where `bits`, which may be fractional, are asked for it."""
    kept = kept_input_bits(layer)
    return bits if kept is None or bits == FULL_PRECISION else kept


def tied_bits(layer: Layer, bit_widths: Sequence[int] = BIT_WIDTHS) -> tuple[Bits, ...]:
    """Return the bits of both operands for every bit-width that they share; the input keeps what it must."""
    return tuple((bits, input_bits(layer, bits)) for bits in bit_widths)


def possible_bits(layer: Layer, tied: bool, bit_widths: Sequence[int] = BIT_WIDTHS) -> tuple[Bits, ...]:
    """Return all bits that a quantized layer may have, the weights' changing last.

    Args:
        layer: The layer.
        tied: Whether both operands share their bits. Those of an attention product always do.
        bit_widths: Bit-widths to choose from.
    """
    if tied or layer.is_matmul:
        return tied_bits(layer, bit_widths)
    inputs = sorted({bits for _, bits in tied_bits(layer, bit_widths)})
    return tuple(product(bit_widths, inputs))


def is_tied(layer: Layer, bits: Bits) -> bool:
    """Return whether both operands share one bit-width, what the input keeps anyway aside."""
    return bits[1] == input_bits(layer, bits[0])


def bound_bits(layer: Layer, bits: Bits) -> tuple[int, ...]:
    """Return those of a layer's bits that a person's restrictions bind: not what its input keeps anyway."""
    return bits if kept_input_bits(layer) is None else bits[:1]


# What a request means


def uniform(layers: Sequence[Layer], bits: int) -> BitsPerLayer:
    """Return the same bits for every layer; only the input of the patch embedding stays at 8 (METHOD.md).

    Raises:
        BitWidthError: `bits` is not 2 to 8 or 32.
    """
    check_bits(bits, "every layer")
    return {layer.name: tied_bits(layer, (bits,))[0] for layer in layers}


def resolve_pair(layer: Layer, pin: int | Bits) -> Bits:
    """Return the bits that a person means for one layer by a pair, or by one number for both operands."""
    return tied_bits(layer, (pin,))[0] if isinstance(pin, int) else pin


def resolve_bits(layers: Sequence[Layer], request: int | Mapping[str, int | Bits]) -> BitsPerLayer:
    """Return (weight bits, activation bits) for every layer in network order.

    Args:
        layers: The table of layers.
        request: One bit-width for all layers, or bits per layer name: a pair, or one number for both operands.
            Layers that a mapping does not name stay in full precision.

    Raises:
        BitWidthError: A bit-width is not 2 to 8 or 32, or a name is not in the table.
    """
    if isinstance(request, int):
        return uniform(layers, request)
    check_names(layers, request)
    resolved = {}
    for layer in layers:
        bits = request.get(layer.name, FULL_PRECISION)
        pair = (bits, bits) if isinstance(bits, int) else tuple(bits)
        if len(pair) != 2:
            raise BitWidthError(f"Layer {layer.name} needs (weight bits, activation bits), not {bits!r}.")
        for width in pair:
            check_bits(width, f"layer {layer.name}")
        resolved[layer.name] = pair
    return resolved


def check_names(layers: Sequence[Layer], names: Mapping[str, object]) -> None:
    """Refuse names of layers that are not in the table.

    Raises:
        BitWidthError: A name is not.
    """
    known = {layer.name for layer in layers}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BitWidthError(
            f"There is no layer {unknown[0]!r} in this model. `python -m mixqvit layers` lists the names."
        )
