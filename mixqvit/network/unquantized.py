"""Operations with weights that are in no layer: they stay in full precision, and sizes and BitOps count them so."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["WARNING_SHARE", "UnquantizedOperation", "sentence"]

WARNING_SHARE = 0.05
"""From this share of the weights or of the multiply-accumulates on, bits say little about the whole model."""

_NAMED = 3


@dataclass(frozen=True)
class UnquantizedOperation:
    """An operation that multiplies with weights and is no layer.

    Attributes:
        name: Path of its module.
        kind: Its class or function: `LSTM`, `Conv1d`, ...
        parameters: Elements of its weights, biases left out.
        macs: Multiply-accumulate operations for one image, all calls together; where the class is unknown one for each
            weight, the least there can be.
    """

    name: str
    kind: str
    parameters: int
    macs: int


def sentence(operations: Sequence[UnquantizedOperation], parameters: int, macs: int) -> str:
    """Return what is not quantized, in words.

    Args:
        operations: At least one.
        parameters: Parameters of the whole model.
        macs: Multiply-accumulates of the whole model for one image.
    """
    own, work = sum(found.parameters for found in operations), sum(found.macs for found in operations)
    named = ", ".join(f"{found.name} ({found.kind})" for found in operations[:_NAMED])
    more = f" and {len(operations) - _NAMED} more" if len(operations) > _NAMED else ""
    return (
        f"{_percent(own / parameters)} of the weights and {_percent(work / macs)} of the multiply-accumulates are not "
        f"quantized: {named}{more}. They stay in 32-bit floating point whatever the bits are; model size and BitOps "
        "count them so."
    )


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"{100 * share:.0f} %"
