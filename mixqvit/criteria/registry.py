"""All criteria. A new one is named here and in no other file than its own.

The order is that in which they are shown, so they are listed, not collected as they are imported.
"""

from collections.abc import Mapping

from mixqvit.criteria.clado import CLADO
from mixqvit.criteria.criterion import Criterion
from mixqvit.criteria.hawq_v2 import HAWQV2
from mixqvit.criteria.inverse import Inverse
from mixqvit.criteria.limpq import LIMPQ
from mixqvit.criteria.lrp_qvit import LRPQViT
from mixqvit.criteria.mix_qvit import MixQViT
from mixqvit.criteria.mpqco import MPQCO
from mixqvit.criteria.random_importance import RandomImportance
from mixqvit.criteria.sensitivity.criterion import Sensitivity
from mixqvit.criteria.uniform import Uniform
from mixqvit.errors import AllocationError

__all__ = ["CRITERIA", "DEFAULT", "WITHOUT_IMPORTANCE", "find_criterion"]

CRITERIA: Mapping[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        MixQViT(),
        LRPQViT(),
        Sensitivity(),
        HAWQV2(),
        MPQCO(),
        CLADO(),
        LIMPQ(),
        Uniform(),
        RandomImportance(),
        Inverse(),
    )
}
"""All criteria by name, the controls last."""

DEFAULT, WITHOUT_IMPORTANCE = MixQViT.name, Sensitivity.name
"""What bits are chosen by where nobody says otherwise, and where the model has no relevance."""


def find_criterion(name: str) -> Criterion:
    """Return a criterion by name.

    Raises:
        AllocationError: There is none of this name.
    """
    if name not in CRITERIA:
        raise AllocationError(f"There is no allocation strategy {name!r}; choose one of {', '.join(CRITERIA)}.")
    return CRITERIA[name]
