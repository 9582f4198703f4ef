"""What an allocation takes that a budget may state the most of: average bits, model size, BitOps.

A quantity knows its name, its words, what one layer's choice takes of it, and what all layers may take together under a
ceiling. Budgets, the exact solver, what is said where nothing fits, files, command line and dashboard ask it. So a new
one, such as latency, is one more entry here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor

from mixqvit.allocation.costs import Storage, bitops, bits_of_uniform_bitops, layer_bytes, uniform_bitops
from mixqvit.errors import AllocationError
from mixqvit.network.bits import BIT_WIDTHS, NUMBER_FORMATS, Bits
from mixqvit.network.layers import Layer

__all__ = ["QUANTITIES", "Quantity", "spent", "weight_bits_ceiling"]

_MOST = 10**18  # no model comes near it, and sums in float64 are exact to about here


def _as_it_is(layers: Sequence[Layer], storage: Storage, number: float) -> float:
    return number


@dataclass(frozen=True)
class Quantity:
    """Something that an allocation takes.

    Attributes:
        name: In requests, from Python and in files.
        shown_name: In links; on the command line after `--`, with hyphens. In the unit that people see.
        title: In sentences.
        description: What it is, in a sentence that follows "ceiling on".
        amount: What one layer's bits take, a whole number from 0: called with (layer, bits, storage).
        room: What the amounts of all layers may add up to under a ceiling: called with (layers, storage, ceiling).
        value: The quantity of an allocation whose amounts add up to so much: called with (layers, storage, sum).
        range: What a control for its ceiling goes from and to, in the unit that people see.
        step: Of that control.
        unit: How much of it the unit that people see is.
        symbol: The unit that people see, empty where it has none.
        digits: Digits after the point that a person is shown.
        is_whole: Whether ceilings are whole numbers.
        measure: The quantity whose amounts a ceiling bounds, by name, where that is another one.
        cap: Another quantity that the ceiling's number bounds too where the budget says so; None for nothing.
    """

    name: str
    shown_name: str
    title: str
    description: str
    amount: Callable[[Layer, Bits, Storage], int]
    range: tuple[float, float]
    step: float
    room: Callable[[Sequence[Layer], Storage, float], float] = _as_it_is
    value: Callable[[Sequence[Layer], Storage, float], float] = _as_it_is
    unit: float = 1.0
    symbol: str = ""
    digits: int = 3
    is_whole: bool = True
    measure: str | None = None
    cap: "Quantity | None" = None

    @property
    def bounds(self) -> str:
        """Name of the quantity whose amounts a ceiling bounds: usually its own."""
        return self.measure or self.name

    def check(self, ceiling: float) -> None:
        """Refuse what is no ceiling.

        Raises:
            AllocationError: It is no positive number, or larger than any model needs.
        """
        self._check(ceiling, ceiling)

    def _check(self, ceiling: float, given: float) -> None:
        if not 0 < ceiling < _MOST:
            shown = repr(given) if isinstance(given, float) or abs(given) < _MOST else "a number that large"
            raise AllocationError(f"The budget for {self.title} must be a positive number, not {shown}.")

    def from_shown(self, number: float) -> float:
        """Return the ceiling that a person gave in the unit that people see.

        Raises:
            AllocationError: It is no positive number, or larger than any model needs.
        """
        ceiling = number * self.unit
        self._check(ceiling, number)
        return round(ceiling) if self.is_whole else ceiling

    def written(self, value: float, digits: int | None = None) -> str:
        """Write a value with its unit."""
        text = f"{value / self.unit:.{self.digits if digits is None else digits}f}"
        return f"{text} {self.symbol}" if self.symbol else text


def weight_bits_ceiling(layers: Sequence[Layer], average_bits: float) -> int:
    """Return the most weight bits whose average over all weights is at most `average_bits`."""
    parameters = sum(layer.parameters for layer in layers)
    most = floor(average_bits * parameters)
    # The product is rounded, and so is the average that is reported; this is decided by the latter.
    return most + 1 if (most + 1) / parameters <= average_bits else most


def _fixed_bytes(storage: Storage) -> int:
    return storage.full_precision_bytes + storage.container_bytes


_UNIFORM_BITOPS = Quantity(
    "uniform_bitops",
    "uniform_bitops",
    "BitOps of uniform bits",
    "uniform bits, which may be fractional, that take as many BitOps",
    lambda layer, bits, storage: bitops(layer, bits),
    range=(float(BIT_WIDTHS[0]), float(BIT_WIDTHS[-1])),
    step=0.1,
    room=lambda layers, storage, ceiling: uniform_bitops(layers, ceiling),
    value=lambda layers, storage, taken: bits_of_uniform_bitops(layers, taken),
    is_whole=False,
    measure="bitops",
)

QUANTITIES: dict[str, Quantity] = {
    one.name: one
    for one in (
        Quantity(
            "average_bits",
            "average_bits",
            "average bits",
            "weight bits per quantized weight, averaged over all weights",
            lambda layer, bits, storage: layer.parameters * NUMBER_FORMATS[bits[0]].bits,
            range=(float(BIT_WIDTHS[0]), float(BIT_WIDTHS[-1])),
            step=0.1,
            room=lambda layers, storage, ceiling: weight_bits_ceiling(layers, ceiling),
            value=lambda layers, storage, taken: taken / sum(layer.parameters for layer in layers),
            digits=2,
            is_whole=False,
            cap=_UNIFORM_BITOPS,  # alone they would leave activations free (METHOD.md)
        ),
        Quantity(
            "size_bytes",
            "size_mb",
            "model size",
            "the size of the packed file in MB (10^6 bytes): weight codes at their true width, scales and zero points, "
            "what stays in full precision, and the file's header",
            lambda layer, bits, storage: layer_bytes(layer, bits, storage),
            range=(0.001, 1e6),
            step=0.01,
            room=lambda layers, storage, ceiling: ceiling - _fixed_bytes(storage),
            value=lambda layers, storage, taken: taken + _fixed_bytes(storage),
            unit=1e6,
            symbol="MB",
        ),
        Quantity(
            "bitops",
            "bitops_g",
            "BitOps",
            "multiply-accumulates × weight bits × activation bits, summed over layers, for one image, in G (10^9)",
            lambda layer, bits, storage: bitops(layer, bits),
            range=(0.001, 1e6),
            step=0.05,
            room=lambda layers, storage, ceiling: ceiling - storage.full_precision_bitops,
            value=lambda layers, storage, taken: taken + storage.full_precision_bitops,
            unit=1e9,
            symbol="G",
        ),
    )
}
"""All quantities by name, in the order in which people see them."""


def spent(layers: Sequence[Layer], bits: Mapping[str, Bits], storage: Storage) -> dict[str, float]:
    """Return what an allocation takes of every quantity, by its name."""
    return {
        name: one.value(layers, storage, sum(one.amount(layer, bits[layer.name], storage) for layer in layers))
        for name, one in QUANTITIES.items()
    }
