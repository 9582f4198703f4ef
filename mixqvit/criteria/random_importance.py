"""The control that knows nothing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mixqvit.criteria.choices import ChoiceHarms
from mixqvit.criteria.criterion import NOTHING, Asked, Criterion, Given
from mixqvit.criteria.error_power import importance_only
from mixqvit.network.bits import Bits
from mixqvit.network.layers import Layer

if TYPE_CHECKING:
    from mixqvit.stages.context import Context

__all__ = ["RandomImportance", "random_harms"]

_DECADES = 2.0  # importances lie between 10^-2 and 10^2: a factor of 4 is worth one bit


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


class RandomImportance(Criterion):
    """Σ of a random importance times the error power of uniform quantizers."""

    name = "random"
    sentence = "A random importance in place of Ω: seeded, within the budget."
    is_control = True
    has_seed = True

    def harms(self, study: "Context", asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        """Return the harms by a random importance."""
        return random_harms(study.layers, asked.seed, asked.tied)
