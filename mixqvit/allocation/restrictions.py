"""What a person demands of single layers or kinds beside the budget."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

from mixqvit.errors import AllocationError
from mixqvit.network.bits import (
    BIT_WIDTHS,
    Bits,
    bound_bits,
    check_bits,
    check_names,
    resolve_bits,
    resolve_pair,
    written_bits,
)
from mixqvit.network.layers import KINDS, Layer

__all__ = ["RESTRICTIONS", "Restrictions", "allowed_bits", "single_restrictions"]


@dataclass(frozen=True)
class Restrictions:
    """Which bits layers may get; they bind weights and activations alike, except the patch embedding's 8-bit input.

    They are copied and cannot be changed; in which order they were named does not matter.

    Attributes:
        pinned: Bits fixed by hand, by layer name; the only way to full precision (32). They go before `allowed`.
        at_least: Least bits by layer name.
        at_most: Most bits by layer name.
        allowed: Bit-widths that the layers of a kind may get; any for kinds that are not named.
    """

    pinned: Mapping[str, int | Bits] = field(default_factory=dict)
    allowed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    at_least: Mapping[str, int] = field(default_factory=dict)
    at_most: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for one in fields(self):
            values = {place: _frozen(value) for place, value in (getattr(self, one.name) or {}).items()}
            object.__setattr__(self, one.name, MappingProxyType(values))

    def __hash__(self) -> int:
        return hash(tuple(frozenset(getattr(self, name).items()) for name in RESTRICTIONS))

    def __reduce__(self) -> tuple[type["Restrictions"], tuple[dict, ...]]:
        # Read-only views can neither be sent to another process nor copied deeply.
        return Restrictions, tuple(dict(getattr(self, one.name)) for one in fields(self))

    def __bool__(self) -> bool:
        """Return whether anything is restricted."""
        return any(getattr(self, name) for name in RESTRICTIONS)


RESTRICTIONS = ("pinned", "at_least", "at_most", "allowed")
"""All sorts of restrictions, in the order in which people see them; the last is by kind, the others by layer."""


def _frozen(value: int | Sequence[int]) -> int | tuple[int, ...]:
    return value if isinstance(value, int) else tuple(value)


def allowed_bits(layers: Sequence[Layer], restrictions: Restrictions) -> list[Callable[[Bits], bool]]:
    """Return for every layer the test that bits must pass.

    Raises:
        BitWidthError: A layer's name is unknown, or a bit-width is not possible.
        AllocationError: A kind is unknown, or restrictions of a layer contradict each other.
    """
    _check(layers, restrictions)
    pinned = resolve_bits(layers, restrictions.pinned)
    tests = []
    for layer in layers:
        low = restrictions.at_least.get(layer.name, BIT_WIDTHS[0])
        high = restrictions.at_most.get(layer.name, BIT_WIDTHS[-1])
        if low > high:
            raise AllocationError(f"Layer {layer.name} cannot have at least {low} and at most {high} bits.")
        if layer.name in restrictions.pinned:
            bound = bound_bits(layer, pinned[layer.name])
            for width in bound:
                if width < low or (layer.name in restrictions.at_most and width > high):
                    raise AllocationError(
                        f"Layer {layer.name} cannot be pinned to {written_bits(restrictions.pinned[layer.name])} bits "
                        f"and have {f'at least {low}' if width < low else f'at most {high}'}."
                    )
            tests.append((bound if len(bound) == 2 else resolve_pair(layer, bound[0])).__eq__)
        else:
            widths = frozenset(restrictions.allowed.get(layer.kind, BIT_WIDTHS)) & frozenset(range(low, high + 1))
            if not widths:
                others = ", ".join(map(str, sorted(restrictions.allowed[layer.kind]))) or "none"
                raise AllocationError(
                    f"No bit-width is left for layer {layer.name}: {layer.kind} layers may have {others}, "
                    f"this one {low} to {high}."
                )
            tests.append(lambda bits, layer=layer, widths=widths: widths.issuperset(bound_bits(layer, bits)))
    return tests


def _check(layers: Sequence[Layer], restrictions: Restrictions) -> None:
    for bounds in (restrictions.at_least, restrictions.at_most):
        check_names(layers, bounds)
        for name, width in bounds.items():
            check_bits(width, f"layer {name}", quantized=True)
    for kind, widths in restrictions.allowed.items():
        if kind not in KINDS:
            raise AllocationError(f"There is no kind of layer {kind!r}; the kinds are {', '.join(KINDS)}.")
        for width in widths:
            check_bits(width, f"{kind} layers", quantized=True)


def single_restrictions(restrictions: Restrictions) -> Iterator[tuple[str, Restrictions]]:
    """Yield every single restriction in words, with all the others."""
    words = {
        "pinned": lambda name, bits: f"layer {name} pinned to {written_bits(bits)} bits",
        "at_least": lambda name, bits: f"layer {name} with at least {bits} bits",
        "at_most": lambda name, bits: f"layer {name} with at most {bits} bits",
        "allowed": lambda kind, widths: f"{kind} layers with {', '.join(map(str, widths))} bits only",
    }
    for attribute, say in words.items():
        every = getattr(restrictions, attribute)
        for name, value in every.items():
            others = {other: kept for other, kept in every.items() if other != name}
            yield say(name, value), replace(restrictions, **{attribute: others})
