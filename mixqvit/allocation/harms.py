"""Harms that need no measured sensitivity: importance alone, and the controls that show that the criterion matters."""

from collections.abc import Mapping, Sequence

import numpy as np

from mixqvit.allocation.choices import ChoiceHarms, weighted
from mixqvit.network.bits import BIT_WIDTHS, Bits, possible_bits
from mixqvit.network.layers import Layer

__all__ = ["importance_only", "inverse_harms", "random_harms"]

_DECADES = 2.0  # random importances lie between 10^-2 and 10^2: a factor of 4 is worth one bit


def importance_only(
    layers: Sequence[Layer], importance: Mapping[str, float], tied: bool = True
) -> dict[str, dict[Bits, float]]:
    """Return Ω · (4^(−w) + 4^(−a)), the error power of uniform quantizers: LRP-QViT (arXiv 2401.11243, METHOD.md).

    Args:
        layers: The table of layers.
        importance: Ω by layer.
        tied: Whether both operands of a layer share one bit-width; else attention products alone do.
    """
    power = {width: 4.0**-width for width in BIT_WIDTHS}
    errors = {layer.name: {(w, a): power[w] + power[a] for w, a in possible_bits(layer, tied)} for layer in layers}
    return weighted(errors, importance, 1.0)


def random_harms(layers: Sequence[Layer], seed: int, tied: bool = True) -> dict[str, dict[Bits, float]]:
    """Return `importance_only` of a random importance, log-uniform over four decades: a feasible, uninformed control.

    Args:
        layers: The table of layers.
        seed: Seed of the random importance.
        tied: As in `importance_only`.
    """
    random = np.random.default_rng(seed)
    importance = {layer.name: float(10.0 ** random.uniform(-_DECADES, _DECADES)) for layer in layers}
    return importance_only(layers, importance, tied)


def inverse_harms(layers: Sequence[Layer], harms: ChoiceHarms, tied: bool = True) -> dict[str, dict[Bits, float]]:
    """Return `importance_only` of the reciprocal of every layer's summed harm: the worst-informed control.

    Layers that are hurt least get the most bits. A sum that is not positive counts as the least positive one.

    Args:
        layers: The table of layers.
        harms: Harm of every choice, e.g. Ω^γ · Λ.
        tied: As in `importance_only`.
    """
    sums = {layer.name: sum(harms[layer.name].values()) for layer in layers}
    least = min((value for value in sums.values() if value > 0), default=1.0)
    importance = {name: least / max(value, least) for name, value in sums.items()}
    return importance_only(layers, importance, tied)
