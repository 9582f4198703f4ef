"""The control that does the opposite."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mixqvit.criteria.choices import ChoiceHarms
from mixqvit.criteria.criterion import NOTHING, Asked, Criterion, Given
from mixqvit.criteria.error_power import importance_only
from mixqvit.network.bits import Bits
from mixqvit.network.layers import Layer

if TYPE_CHECKING:
    from mixqvit.stages.context import Context
    from mixqvit.stages.stage import Stage

__all__ = ["Inverse", "inverse_harms"]


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


class Inverse(Criterion):
    """Σ of one over the harm of a layer times the error power of uniform quantizers."""

    name = "inverse"
    sentence = "The worst informed: layers count by one over their harm, so that those that break get the fewest bits."
    is_control = True

    def needs(self, study: "Context", asked: Asked) -> list["Stage"]:
        """Return the sweeps."""
        from mixqvit.criteria.sensitivity.harms import sweeps

        return [*sweeps(study, asked.tied)]

    def harms(self, study: "Context", asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        """Return the harms by the reciprocal of the sensitivity."""
        from mixqvit.criteria.sensitivity.harms import sensitivity_choices

        harms = sensitivity_choices(study, asked.tied, given.sensitivity)
        return inverse_harms(study.layers, harms, asked.tied)
