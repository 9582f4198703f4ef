"""CLADO (Deng et al. 2023, arXiv 2307.05657) as a criterion; `mixqvit.criteria.pairwise` measures the pairs."""

from typing import TYPE_CHECKING

from mixqvit.criteria.choices import ChoiceHarms, PairHarms, tied_choices
from mixqvit.criteria.criterion import NOTHING, Asked, Criterion, Given, Search
from mixqvit.network.bits import FULL_PRECISION

if TYPE_CHECKING:
    from mixqvit.stages.context import Context
    from mixqvit.stages.stage import Stage

__all__ = ["CLADO"]


class CLADO(Criterion):
    """KL of each layer and of pairs of layers, over full precision whatever the study's metric and baseline are."""

    name = "clado"
    sentence = (
        "Sensitivity (KL over full precision) and what two layers quantized together add to it, pair by pair: an "
        "integer quadratic program (CLADO, arXiv 2307.05657; noise in the pairs is projected away relative to the "
        "layers' own harms, ours)."
    )
    search = Search.PAIRWISE
    is_independent = False
    is_costly = True

    def needs(self, study: "Context", asked: Asked) -> list["Stage"]:
        """Return the sweep over full precision and the pairs."""
        from mixqvit.criteria.pairwise import Pairs
        from mixqvit.criteria.sensitivity.stage import Sweep

        return [Sweep("both", FULL_PRECISION), Pairs()]

    def harms(self, study: "Context", asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        """Return the KL of each layer alone, at the bits that pairs are measured at."""
        from mixqvit.criteria.pairwise import PairPlan
        from mixqvit.criteria.sensitivity.harms import layer_harms

        widths = PairPlan.of(study).bit_widths
        alone = tied_choices(study.layers, layer_harms(study, "both", study.task.divergence_metric, FULL_PRECISION))
        return {name: {bits: harm for bits, harm in row.items() if bits[0] in widths} for name, row in alone.items()}

    def pairs(self, study: "Context") -> PairHarms:
        """Return the pairwise terms."""
        from mixqvit.criteria.pairwise import Pairs

        return study.result(Pairs())
