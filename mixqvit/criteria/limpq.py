"""LIMPQ (Tang et al. 2022, arXiv 2203.08368): learned quantization step sizes as importance indicators of layers.

A layer that ends with a large step is said to need more bits. What that is worth here: between layers the steps do not
follow the measured harm Λ (rank correlations of -0.18 to 0.14 at 3 and 4 bits on digits_vit and digits_swin); what
makes allocations better than uniform bits is how steps fall with bits. Σ Λ of the allocations at 3 and 4 bits on
average, means of two seeds, in thousandths, first of digits_vit (uniform bits 33.5 and 6.8, sensitivity 6.1 and 1.2),
then of digits_swin (23.9 and 5.0; 10.0 and 2.2):

- Steps as they are, as published: 18.8 and 4.9; 24.3 and 3.6.
- Divided by the standard deviation of their tensor: 15.7 and 4.2; 20.3 and 4.1. No better for certain, so not done.
- As they begin, without any training: 18.6 and 3.5; 18.4 and 3.4. So short a training adds nothing to them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mixqvit.criteria.choices import ChoiceHarms, monotone_choices, tied_scores
from mixqvit.criteria.criterion import NOTHING, Asked, Criterion, Given
from mixqvit.network.bits import Bits

if TYPE_CHECKING:
    from mixqvit.criteria.indicators import Indicators
    from mixqvit.stages.context import Context
    from mixqvit.stages.stage import Stage

__all__ = ["LIMPQ", "indicator_harms"]

WEIGHT_FACTOR = 2.0
"""What a weight's indicator counts next to an activation's: α of the published search."""


def indicator_harms(
    indicators: Mapping[str, "Indicators"], weight_factor: float = WEIGHT_FACTOR
) -> dict[str, dict[Bits, float]]:
    """Return s_a + α · s_w for all (weight bits, activation bits) of each layer.

    The operands of an attention product are added (ours). Steps of large values are large by themselves, and stay as
    they are, as published. A step at fewer bits should be the larger one. Where it ends below that at the next more
    bits, the published search gives the choice up; here it counts twice the other's, as if the range were the same
    (ours), so that every budget keeps a solution.

    Args:
        indicators: By layer name, of a finished `IndicatorState`.
        weight_factor: α.
    """
    harms: dict[str, dict[Bits, float]] = {}
    for name, found in indicators.items():
        operands = [_falling(steps) for steps in found.operands]
        if found.weight is None:
            first, second = operands
            harms[name] = {(bits, bits): first[bits] + second[bits] for bits in first}
        else:
            activations = {bits: sum(steps[bits] for steps in operands) for bits in operands[0]}
            weights = _falling(found.weight)
            harms[name] = {
                (w, a): weight_factor * weight + step
                for w, weight in weights.items()
                for a, step in activations.items()
            }
    return harms


def _falling(steps: Mapping[int, float]) -> dict[int, float]:
    """Return step sizes by bits that fall with more bits."""
    found: dict[int, float] = {}
    following = None
    for bits in sorted(steps, reverse=True):
        step = steps[bits]
        if following is not None and step < following:
            step = 2 * following
        found[bits] = following = step
    return dict(sorted(found.items()))


class LIMPQ(Criterion):
    """Learned step sizes."""

    name = "limpq"
    sentence = (
        "Step sizes learned in a short training at all bit-widths together, Σ s_a + 2 · s_w (LIMPQ, arXiv 2203.08368; "
        "on calibration images, by distillation, ours)."
    )

    def needs(self, study: "Context", asked: Asked) -> list["Stage"]:
        """Return the training of the step sizes."""
        from mixqvit.criteria.indicators import LearnedSteps

        return [LearnedSteps()]

    def harms(self, study: "Context", asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        """Return s_a + α · s_w."""
        scores = indicator_harms(*map(study.result, self.needs(study, asked)))
        return tied_scores(study.layers, scores) if asked.tied else monotone_choices(scores)
