"""What a report is made of beside the study itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixqvit.allocation.costs import Cost
from mixqvit.allocation.request import Request
from mixqvit.network.bits import BitsPerLayer
from mixqvit.relevance.records import Importance
from mixqvit.study.records import FrontierPoint, MethodComparison, StrategyComparison

if TYPE_CHECKING:  # it brings torch, and pages that offer a report do not
    from mixqvit.tasks.evaluation import Evaluation

__all__ = ["Findings"]


@dataclass(frozen=True)
class Findings:
    """What a report is made of beside the study itself.

    Attributes:
        bits: (weight bits, activation bits) of every layer.
        how: How they were chosen, in words.
        request: What they were solved for; of given bits, what everything beside them is solved for.
        is_given: Whether the bits were given.
        measured: Evaluations by setting: `full precision`, `mixed`, and `uniform N bits` where one fits the budget.
        costs: Costs by setting.
        importance: Ω; None where the model has none.
        refused: Why not.
        frontier: The optimum of every budget; empty where it cannot be solved.
        strategies: The comparison of strategies, if asked for.
        methods: That of kinds of importance, if asked for.
    """

    bits: BitsPerLayer
    how: str
    request: Request
    is_given: bool
    measured: Mapping[str, "Evaluation"]
    costs: Mapping[str, Cost]
    importance: Importance | None
    refused: str
    frontier: Sequence[FrontierPoint]
    strategies: StrategyComparison | None
    methods: MethodComparison | None

    @property
    def asked(self) -> dict[str, Any]:
        """What the bits were solved for, as a document; empty for given bits."""
        return {} if self.is_given else self.request.to_json()
