"""All criteria in the order they are shown, the controls last. A new one is named here and in no other file."""

from mixqvit.criteria.criterion import CRITERIA, Criterion
from mixqvit.errors import AllocationError

# isort: off
import mixqvit.criteria.mix_qvit
import mixqvit.criteria.lrp_qvit
import mixqvit.criteria.sensitivity.criterion
import mixqvit.criteria.hawq_v2
import mixqvit.criteria.mpqco
import mixqvit.criteria.clado
import mixqvit.criteria.limpq
import mixqvit.criteria.uniform
import mixqvit.criteria.random_importance
import mixqvit.criteria.inverse  # noqa: F401 - to be registered
# isort: on

__all__ = ["CRITERIA", "DEFAULT", "WITHOUT_IMPORTANCE", "find_criterion"]

DEFAULT, WITHOUT_IMPORTANCE = "mix-qvit", "sensitivity"
"""What is chosen by where nobody says otherwise, and where the model has no relevance."""


def find_criterion(name: str) -> Criterion:
    """Return a criterion by name.

    Raises:
        AllocationError: There is none of this name.
    """
    if name not in CRITERIA:
        raise AllocationError(f"There is no allocation strategy {name!r}; choose one of {', '.join(CRITERIA)}.")
    return CRITERIA[name]
