"""What every quantizer knows of itself, and what every fit of one does."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from torch import Tensor

from mixqvit.quantization.operands import Operand
from mixqvit.quantization.roles import ChannelParameters

__all__ = ["QUANTIZERS", "Described", "Fit", "OperandQuantizers", "Quantizer", "fit", "saved_by_name"]


class Quantizer(ABC):
    """A quantizer: a frozen dataclass of tensors and settings, called with values.

    Attributes:
        bits: Bit-width.
        channel_bytes: Bytes that each tensor which may have one number per channel is stored in, by field name
            (`field/field` where nested): 4 for float32, 1 for whole numbers of one byte.
        moves_input: Whether it returns values of a moved input, which weight and bias have to undo.
    """

    bits: int
    channel_bytes: ClassVar[Mapping[str, int]] = {}
    moves_input: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, values: Tensor) -> Tensor:
        """Return `values` quantized, same shape."""

    @abstractmethod
    def grid(self, channel: int) -> Tensor:
        """Return the values it can return in any order, in units of its input; those of one channel, over all heads."""

    def levels(self, channel: int = 0) -> Tensor:
        """Return the values it can return, ascending, in float64 and in units of its input.

        Args:
            channel: Whose grid, counted over all heads, where channels have grids of their own.
        """
        return (self.grid(channel).double() + 0.0).unique()  # no -0 beside 0

    @property
    def is_per_channel(self) -> bool:
        """Whether channels have grids of their own."""
        return False

    @property
    def uniform(self) -> "Quantizer | None":
        """The `UniformQuantizer` that it is on the moved input; None where its levels are no such grid."""
        return None

    @property
    def move(self) -> tuple[Tensor, Tensor] | None:
        """Factor and offset `[C]` of the moved input; None where the input is quantized as it is."""
        return None

    @property
    def unmoved(self) -> "Quantizer":
        """The same grid in units of the input, where the layer's weight undoes nothing."""
        return self

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return weight `[out, ...]` and bias `[out]` that undo the move of the input."""
        return weight, bias

    def unfold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias as they were before `fold`, up to rounding."""
        return weight, bias


QUANTIZERS: dict[str, type[Quantizer]] = {}
"""Classes of quantizers by the name that saved calibrations and packed files know them by."""

_Kind = TypeVar("_Kind", bound=type[Quantizer])


def saved_by_name(kind: _Kind) -> _Kind:
    """Enter a class of quantizers into `QUANTIZERS`; files of older versions are read as long as its name stays."""
    QUANTIZERS[kind.__name__] = kind
    return kind


OperandQuantizers = Mapping[int, Quantizer]
"""Quantizers of one activation operand by bit-width."""


@dataclass(frozen=True)
class Described:
    """A choice of the menu in words.

    Attributes:
        name: What users call it.
        what: What its levels are and how they are found.
        when: When it wins, and what it pays for that.
        source: The paper it comes from.
    """

    name: str
    what: str
    when: str
    source: str


@dataclass(frozen=True)
class Fit:
    """From an operand and bit-widths to its quantizers.

    Attributes:
        described: What people read.
        search: What finds the quantizers.
        stored: What they store for every channel; None where one quantizer serves the tensor.
    """

    described: Described
    search: Callable[[Operand, Sequence[int]], OperandQuantizers]
    stored: ChannelParameters | None = None

    @property
    def name(self) -> str:
        """Its name on the menu."""
        return self.described.name

    def __call__(self, operand: Operand, bit_widths: Sequence[int]) -> OperandQuantizers:
        """Return the quantizers of an operand by bit-width."""
        return self.search(operand, bit_widths)


def fit(
    described: Described, per_channel: type[Quantizer] | None = None
) -> Callable[[Callable[[Operand, Sequence[int]], OperandQuantizers]], Fit]:
    """Make a function from an operand and bit-widths to its quantizers a choice of the menu.

    Args:
        described: What people read.
        per_channel: The class of its quantizers, if channels get parameters of their own.
    """
    stored = None
    if per_channel is not None:
        stored = ChannelParameters(sum(per_channel.channel_bytes.values()), per_channel.moves_input)
    return lambda search: Fit(described, search, stored)
