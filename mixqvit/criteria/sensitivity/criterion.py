"""Sensitivity alone as a criterion."""

from typing import TYPE_CHECKING

from mixqvit.criteria.choices import ChoiceHarms
from mixqvit.criteria.criterion import NOTHING, Asked, Criterion, Given

if TYPE_CHECKING:
    from mixqvit.stages.context import Context
    from mixqvit.stages.stage import Stage

__all__ = ["Sensitivity"]


class Sensitivity(Criterion):
    """Σ Λ."""

    name = "sensitivity"
    sentence = "Sensitivity alone, Σ Λ: the measured harm of each layer."

    def needs(self, study: "Context", asked: Asked) -> list["Stage"]:
        """Return the sweeps."""
        from mixqvit.criteria.sensitivity.harms import sweeps

        return [*sweeps(study, asked.tied)]

    def harms(self, study: "Context", asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        """Return Λ."""
        from mixqvit.criteria.sensitivity.harms import sensitivity_choices

        return sensitivity_choices(study, asked.tied, given.sensitivity)
