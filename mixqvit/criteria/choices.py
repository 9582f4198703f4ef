"""The choices of every layer with the harm that they are predicted to do."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import isfinite

from mixqvit.errors import AllocationError
from mixqvit.network.bits import FULL_PRECISION, UNQUANTIZED, Bits, kept_input_bits, tied_bits
from mixqvit.network.layers import Layer

__all__ = [
    "ChoiceHarms",
    "Harms",
    "Pair",
    "PairHarms",
    "choices",
    "independent_choices",
    "monotone_choices",
    "monotone_envelope",
    "predicted_harm",
    "scores_apart",
    "tied_choices",
    "tied_scores",
    "total_harm",
    "weighted",
]

MOST_GAMMA = 10.0
"""Largest exponent of importance."""

Harms = Mapping[str, Mapping[int, float]]
"""Λ by layer name and bit-width."""

ChoiceHarms = Mapping[str, Mapping[Bits, float]]
"""Predicted harm by layer name and (weight bits, activation bits); what is not named cannot be chosen."""

Pair = tuple[str, str]
"""Names of two layers, in network order."""

PairHarms = Mapping[Pair, Mapping[tuple[Bits, Bits], float]]
"""What two layers do together beyond what each does alone, by pair and bits of both; what is not named is 0."""


def monotone_envelope(harms: Mapping[int, float]) -> dict[int, float]:
    """Return harms that never rise with bits: the least harm measured at that many bits or fewer.

    Measured curves can rise by noise; more bits can always be used as if they were fewer.
    """
    widths = sorted(harms)
    return dict(zip(widths, accumulate((harms[width] for width in widths), min), strict=True))


def monotone_choices(harms: ChoiceHarms) -> dict[str, dict[Bits, float]]:
    """Return harms that rise neither with weight bits nor with activation bits: the least at no more bits of either."""
    return {
        name: {(w, a): min(harm for (x, y), harm in row.items() if x <= w and y <= a) for w, a in row}
        for name, row in harms.items()
    }


def choices(layer: Layer, harms: Mapping[int, float]) -> dict[Bits, float]:
    """Return the layer's possible bits with their harm where both operands share one bit-width."""
    envelope = monotone_envelope(harms)
    return dict(zip(tied_bits(layer, tuple(envelope)), envelope.values(), strict=True))


def tied_choices(layers: Sequence[Layer], harms: Harms) -> dict[str, dict[Bits, float]]:
    """Return every layer's choices where both operands share one bit-width, by the monotone envelope of Λ."""
    return {layer.name: choices(layer, harms[layer.name]) for layer in layers}


def independent_choices(
    layers: Sequence[Layer], weight_harms: Harms, activation_harms: Harms
) -> dict[str, dict[Bits, float]]:
    """Return every layer's choices where weight and activation bits are chosen apart.

    The harm of a pair is the sum of both operands' harms, each by its monotone envelope.

    Args:
        layers: The table of layers.
        weight_harms: Λ of quantizing the weights only, for every layer that has them.
        activation_harms: Λ of quantizing the activations only; for the patch embedding its harm at 8 bits counts, or
            none if it was not measured.
    """
    pairs: dict[str, dict[Bits, float]] = {}
    for layer in layers:
        if layer.is_matmul:
            pairs[layer.name] = choices(layer, activation_harms[layer.name])
            continue
        weights = monotone_envelope(weight_harms[layer.name])
        activations = monotone_envelope(activation_harms.get(layer.name, {}))
        kept = kept_input_bits(layer)
        if kept is not None:
            activations = {kept: activations.get(kept, 0.0)}
        pairs[layer.name] = {(w, a): harm + more for w, harm in weights.items() for a, more in activations.items()}
    return pairs


def tied_scores(layers: Sequence[Layer], scores: ChoiceHarms) -> dict[str, dict[Bits, float]]:
    """Return scores of both operands at the same bits as every layer's choices; others are left out."""
    chosen = {layer.name: {bits[0]: scores[layer.name][bits] for bits in tied_bits(layer)} for layer in layers}
    return tied_choices(layers, chosen)


def scores_apart(layers: Sequence[Layer], scores: ChoiceHarms) -> dict[str, dict[Bits, float]]:
    """Return scores of one operand alone, the other in full precision, as choices where both are chosen apart."""
    weights = {
        layer.name: {w: harm for (w, a), harm in scores[layer.name].items() if a == FULL_PRECISION}
        for layer in layers
        if not layer.is_matmul
    }
    inputs = {
        layer.name: {a: harm for (w, a), harm in scores[layer.name].items() if layer.is_matmul or w == FULL_PRECISION}
        for layer in layers
    }
    return independent_choices(layers, weights, inputs)


def weighted(harms: ChoiceHarms, importance: Mapping[str, float] | None, gamma: float) -> dict[str, dict[Bits, float]]:
    """Return harms multiplied by Ω^γ of their layer; without an importance all layers weigh alike.

    Raises:
        AllocationError: The exponent or an importance is negative or not a number, or a layer has no importance.
    """
    if not 0 <= gamma <= MOST_GAMMA:  # beyond, Ω^γ is too small for numbers to tell apart
        raise AllocationError(f"The exponent of importance must be a number from 0 to {MOST_GAMMA:g}, not {gamma!r}.")
    found = {}
    for name, row in harms.items():
        weight = 1.0 if importance is None else _weight(name, importance, gamma)
        found[name] = {bits: weight * harm for bits, harm in row.items()}
    return found


def _weight(name: str, importance: Mapping[str, float], gamma: float) -> float:
    value = importance.get(name)
    if value is None or not (isfinite(value) and value >= 0):
        raise AllocationError(f"The importance of layer {name} must be 0 or a positive number, not {value!r}.")
    return value**gamma


def total_harm(layers: Sequence[Layer], bits: Mapping[str, Bits], harms: ChoiceHarms) -> float:
    """Return the predicted harm of any bits per layer; full precision does no harm.

    Raises:
        AllocationError: The harm of a layer's bits is not known.
    """
    total = 0.0
    for layer in layers:
        pair = bits[layer.name]
        if pair != UNQUANTIZED:
            if pair not in harms[layer.name]:
                raise AllocationError(f"The harm of {pair} bits at layer {layer.name} was not measured.")
            total += harms[layer.name][pair]
    return total


def predicted_harm(
    layers: Sequence[Layer],
    bits: Mapping[str, Bits],
    harms: Harms,
    importance: Mapping[str, float] | None = None,
    gamma: float = 1.0,
) -> float:
    """Return Σ Ω^γ · Λ of an allocation whose bits were all measured; full precision does no harm."""
    quantized = [layer for layer in layers if bits[layer.name] != UNQUANTIZED]
    return total_harm(quantized, bits, weighted(tied_choices(quantized, harms), importance, gamma))
