"""The control that treats all layers alike."""

from typing import TYPE_CHECKING

from mixqvit.criteria.choices import ChoiceHarms
from mixqvit.criteria.criterion import NOTHING, Asked, Criterion, Given, Search
from mixqvit.criteria.error_power import error_powers

if TYPE_CHECKING:
    from mixqvit.stages.context import Context

__all__ = ["Uniform"]


class Uniform(Criterion):
    """The same bits everywhere."""

    name = "uniform"
    sentence = "The same bits everywhere, the largest that fit; restricted layers get the nearest that they may have."
    search = Search.UNIFORM
    is_control = True

    def harms(self, study: "Context", asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        """Return 4^(−w) + 4^(−a), by which all layers are alike; operands are tied whatever is asked."""
        return error_powers(study.layers)
