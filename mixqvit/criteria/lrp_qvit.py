"""LRP-QViT (Ranjan and Savakis 2024, arXiv 2401.11243): importance alone."""

from typing import TYPE_CHECKING

from mixqvit.criteria.by_importance import importance, importance_stages
from mixqvit.criteria.choices import ChoiceHarms, weighted
from mixqvit.criteria.criterion import NOTHING, Asked, Criterion, Given
from mixqvit.criteria.error_power import error_powers

if TYPE_CHECKING:
    from mixqvit.stages.context import Context
    from mixqvit.stages.stage import Stage

__all__ = ["LRPQViT"]


class LRPQViT(Criterion):
    """Σ Ω^γ · (4^(−w) + 4^(−a))."""

    name = "lrp-qvit"
    sentence = "Importance to the power γ alone, Σ Ω^γ · (4^(−w) + 4^(−a)) (LRP-QViT, arXiv 2401.11243)."
    has_gamma = True

    def needs(self, study: "Context", asked: Asked) -> list["Stage"]:
        """Return relevance."""
        return [*importance_stages(study, asked)]

    def harms(self, study: "Context", asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        """Return Ω^γ times the error power of uniform quantizers."""
        return weighted(error_powers(study.layers, asked.tied), importance(study, asked, given), asked.gamma)
