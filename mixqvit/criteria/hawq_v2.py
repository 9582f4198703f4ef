"""HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852): mean Hessian traces times squared perturbations."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mixqvit.criteria.choices import ChoiceHarms, monotone_choices, tied_scores
from mixqvit.criteria.criterion import NOTHING, Asked, Criterion, Given
from mixqvit.network.bits import Bits

if TYPE_CHECKING:
    from mixqvit.criteria.hessian import LayerTraces
    from mixqvit.criteria.perturbation import Perturbation
    from mixqvit.stages.context import Context
    from mixqvit.stages.stage import Stage

__all__ = ["HAWQV2", "hawq_harms"]


def hawq_harms(
    traces: Mapping[str, "LayerTraces"], perturbations: Iterable["Perturbation"]
) -> dict[str, dict[Bits, float]]:
    """Return T̄_W · ‖Ŵ - W‖² + Σ T̄_x · ‖x̂ - x‖² for all (weight bits, activation bits) of each layer.

    The sum of the paper (Ω of eq. 8, without a factor ½) with one term more per activation operand. Estimates of a mean
    trace below zero count as zero, since no perturbation is expected to help. The two operands of an
    attention product share their bits; the patch embedding's input has 8.

    Args:
        traces: What `mean_traces` returned.
        perturbations: What `squared_perturbations` yielded, for the same layers.
    """
    harms: dict[str, dict[Bits, float]] = {}
    for perturbation in perturbations:
        trace = traces[perturbation.layer]
        scores = [
            {bits: max(0.0, own.mean) * square for bits, square in squares.items()}
            for own, squares in zip(trace.operands, perturbation.operands, strict=True)
        ]
        if perturbation.weight is None:
            first, second = scores
            harms[perturbation.layer] = {(bits, bits): first[bits] + second[bits] for bits in first}
        else:
            activations = {bits: sum(own[bits] for own in scores) for bits in scores[0]}
            scale = max(0.0, trace.weight.mean)
            harms[perturbation.layer] = {
                (w, a): scale * square + harm
                for w, square in perturbation.weight.items()
                for a, harm in activations.items()
            }
    return harms


class HAWQV2(Criterion):
    """Mean Hessian traces times squared perturbations."""

    name = "hawq-v2"
    sentence = (
        "Mean Hessian trace of the loss times squared perturbation, of weights and (ours) of activation operands "
        "(HAWQ-V2, arXiv 1911.03852)."
    )

    def needs(self, study: "Context", asked: Asked) -> list["Stage"]:
        """Return the traces and the perturbations."""
        from mixqvit.criteria.hessian import HessianTraces
        from mixqvit.criteria.perturbation import Perturbations

        return [HessianTraces(), Perturbations()]

    def harms(self, study: "Context", asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        """Return the sum of traces times perturbations over the operands."""
        scores = hawq_harms(*map(study.result, self.needs(study, asked)))
        return tied_scores(study.layers, scores) if asked.tied else monotone_choices(scores)
