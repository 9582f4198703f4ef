"""Mix-QViT (Ranjan and Savakis 2025, arXiv 2501.06357): importance times sensitivity."""

from typing import TYPE_CHECKING

from mixqvit.criteria.by_importance import importance, importance_stages
from mixqvit.criteria.choices import ChoiceHarms, weighted
from mixqvit.criteria.criterion import NOTHING, Asked, Criterion, Given

if TYPE_CHECKING:
    from mixqvit.stages.context import Context
    from mixqvit.stages.stage import Stage

__all__ = ["MixQViT"]


class MixQViT(Criterion):
    """Σ Ω^γ · Λ."""

    name = "mix-qvit"
    sentence = "Importance to the power γ times sensitivity, Σ Ω^γ · Λ (Mix-QViT, arXiv 2501.06357)."
    has_gamma = True
    weighs_sensitivity = True

    def needs(self, study: "Context", asked: Asked) -> list["Stage"]:
        """Return relevance and the sweeps."""
        from mixqvit.criteria.sensitivity.harms import sweeps

        return [*importance_stages(study, asked), *sweeps(study, asked.tied)]

    def harms(self, study: "Context", asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        """Return Ω^γ · Λ."""
        from mixqvit.criteria.sensitivity.harms import sensitivity_choices

        weights = importance(study, asked, given)
        return weighted(sensitivity_choices(study, asked.tied, given.sensitivity), weights, asked.gamma)
