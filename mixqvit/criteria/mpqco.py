"""MPQCO (Chen et al. 2021, arXiv 2110.06554) as a criterion; `mixqvit.criteria.loss_change` measures it."""

from typing import TYPE_CHECKING

from mixqvit.criteria.choices import ChoiceHarms, scores_apart, tied_scores
from mixqvit.criteria.criterion import NOTHING, Asked, Criterion, Given

if TYPE_CHECKING:
    from mixqvit.stages.context import Context
    from mixqvit.stages.stage import Stage

__all__ = ["MPQCO"]


class MPQCO(Criterion):
    """The second-order loss change."""

    name = "mpqco"
    sentence = (
        "Second-order loss change from calibration gradients, at the output of each layer (ours; MPQCO, arXiv "
        "2110.06554)."
    )

    def needs(self, study: "Context", asked: Asked) -> list["Stage"]:
        """Return the loss changes."""
        from mixqvit.criteria.loss_change import LossChanges

        return [LossChanges(asked.tied)]

    def harms(self, study: "Context", asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        """Return the loss change of both operands together, or the sum of each one's."""
        (stage,) = self.needs(study, asked)
        return (tied_scores if asked.tied else scores_apart)(study.layers, study.result(stage))
