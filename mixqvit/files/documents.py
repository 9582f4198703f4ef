"""What documents that JSON can write have in common."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixqvit.tasks.evaluation import Evaluation

__all__ = ["finite", "measurement"]


def finite(value: Any) -> Any:
    """Return a document with null for numbers that JSON does not have, texts for keys and lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measurement(evaluation: "Evaluation") -> dict[str, Any]:
    """Return what was measured: fractions from 0 to 1 with their intervals, KL in nats; NaN where it means nothing."""
    has_choice = evaluation.has_choice
    return {
        "images": evaluation.images,
        "top1": evaluation.top1,
        "top1_interval_95": evaluation.interval if has_choice else None,
        "agreement": evaluation.agreement,
        "agreement_interval_95": evaluation.agreement_interval if has_choice else None,
        "kl": evaluation.kl,
    }
