"""Harms of criteria that measure no error: the error power of uniform quantizers, for all layers alike."""

from collections.abc import Mapping, Sequence

from mixqvit.criteria.choices import weighted
from mixqvit.network.bits import BIT_WIDTHS, Bits, possible_bits
from mixqvit.network.layers import Layer

__all__ = ["error_powers", "importance_only"]


def error_powers(layers: Sequence[Layer], tied: bool = True) -> dict[str, dict[Bits, float]]:
    """Return 4^(−w) + 4^(−a) of every choice.

    Args:
        layers: The table of layers.
        tied: Whether both operands of a layer share one bit-width; else attention products alone do.
    """
    power = {width: 4.0**-width for width in BIT_WIDTHS}
    return {layer.name: {(w, a): power[w] + power[a] for w, a in possible_bits(layer, tied)} for layer in layers}


def importance_only(
    layers: Sequence[Layer], importance: Mapping[str, float], tied: bool = True
) -> dict[str, dict[Bits, float]]:
    """Return Ω · (4^(−w) + 4^(−a)) of every choice (LRP-QViT, arXiv 2401.11243; METHOD.md).

    Args:
        layers: The table of layers.
        importance: Ω by layer.
        tied: As in `error_powers`.
    """
    return weighted(error_powers(layers, tied), importance, 1.0)
