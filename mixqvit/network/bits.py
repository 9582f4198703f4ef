"""Bit-widths: which are allowed, and what a person's request means for every layer."""

from collections.abc import Mapping, Sequence

from mixqvit.errors import BitWidthError
from mixqvit.network.layers import Layer

__all__ = ["BIT_WIDTHS", "FULL_PRECISION", "PATCH_EMBED_INPUT_BITS", "Bits", "BitsPerLayer", "resolve_bits", "uniform"]

BIT_WIDTHS = (2, 3, 4, 5, 6, 7, 8)
FULL_PRECISION = 32
"""Bit-width of an operand that is left in float32."""

PATCH_EMBED_INPUT_BITS = 8
"""Images arrive as 8-bit codes, so the input of the patch embedding keeps 8 bits in every uniform setting."""

Bits = tuple[int, int]
"""(weight bits, activation bits) of a layer; for an attention product the bits of its first and second operand."""

BitsPerLayer = dict[str, Bits]


def uniform(layers: Sequence[Layer], bits: int) -> BitsPerLayer:
    """Return the same bits for every layer; only the input of the patch embedding stays at 8 (METHOD.md).

    Raises:
        BitWidthError: `bits` is not 2 to 8 or 32.
    """
    _check(bits, "every layer")
    resolved = {layer.name: (bits, bits) for layer in layers}
    if bits != FULL_PRECISION:
        resolved |= {layer.name: (bits, PATCH_EMBED_INPUT_BITS) for layer in layers if layer.kind == "patch_embed"}
    return resolved


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
    known = {layer.name for layer in layers}
    unknown = [name for name in request if name not in known]
    if unknown:
        raise BitWidthError(
            f"There is no layer {unknown[0]!r} in this model. `python -m mixqvit layers` lists the names."
        )
    resolved = {}
    for layer in layers:
        bits = request.get(layer.name, FULL_PRECISION)
        pair = (bits, bits) if isinstance(bits, int) else tuple(bits)
        if len(pair) != 2:
            raise BitWidthError(f"Layer {layer.name} needs (weight bits, activation bits), not {bits!r}.")
        for width in pair:
            _check(width, f"layer {layer.name}")
        resolved[layer.name] = pair
    return resolved


def _check(width: object, where: str) -> None:
    is_integer = isinstance(width, int) and not isinstance(width, bool)
    if not is_integer or (width not in BIT_WIDTHS and width != FULL_PRECISION):
        raise BitWidthError(
            f"{width!r} bits are not possible for {where}: use {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}, "
            f"or {FULL_PRECISION} for full precision."
        )
