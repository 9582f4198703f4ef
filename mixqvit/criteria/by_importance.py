"""What criteria that weigh layers by importance Ω to the power γ have in common."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mixqvit.criteria.criterion import Asked, Given

if TYPE_CHECKING:
    from mixqvit.relevance.stages import LayerImportance
    from mixqvit.stages.context import Context

__all__ = ["importance", "importance_stages"]


def importance_stages(study: "Context", asked: Asked) -> Sequence["LayerImportance"]:
    """Return the stage of Ω; none where γ is 0."""
    from mixqvit.relevance.stages import own_importance

    return [] if asked.gamma == 0 else [own_importance(study)]


def importance(study: "Context", asked: Asked, given: Given) -> Mapping[str, float] | None:
    """Return Ω by layer name: the one given or the study's own; None where γ is 0 and none is given."""
    if given.importance is not None:
        return given.importance
    means = [study.result(stage).mean for stage in importance_stages(study, asked)]
    return means[0] if means else None
