"""What a person demands of single layers or kinds beside the budget."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mixqvit.errors import AllocationError, BitWidthError
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, PATCH_EMBED_INPUT_BITS, Bits, resolve_bits
from mixqvit.network.layers import KINDS, Layer

__all__ = ["Restrictions", "allowed_bits", "single_restrictions"]


@dataclass(frozen=True)
class Restrictions:
    """Which bits layers may get; they bind weights and activations alike, except the patch embedding's 8-bit input.

    Attributes:
        pinned: Bits fixed by hand, by layer name; the only way to full precision (32). They go before `allowed`.
        allowed: Bit-widths that the layers of a kind may get; any for kinds that are not named.
        at_least: Least bits by layer name.
        at_most: Most bits by layer name.
    """

    pinned: Mapping[str, int | Bits] = field(default_factory=dict)
    allowed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    at_least: Mapping[str, int] = field(default_factory=dict)
    at_most: Mapping[str, int] = field(default_factory=dict)


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
            pair = pinned[layer.name]
            if layer.kind == "patch_embed" and pair[0] != FULL_PRECISION:
                pair = (pair[0], PATCH_EMBED_INPUT_BITS)
            for width in _bound(layer, pair):
                if width < low or (layer.name in restrictions.at_most and width > high):
                    raise AllocationError(
                        f"Layer {layer.name} cannot be pinned to {_shown(restrictions.pinned[layer.name])} bits and "
                        f"have {f'at least {low}' if width < low else f'at most {high}'}."
                    )
            tests.append(pair.__eq__)
        else:
            widths = frozenset(restrictions.allowed.get(layer.kind, BIT_WIDTHS)) & frozenset(range(low, high + 1))
            if not widths:
                others = ", ".join(map(str, sorted(restrictions.allowed[layer.kind]))) or "none"
                raise AllocationError(
                    f"No bit-width is left for layer {layer.name}: {layer.kind} layers may have {others}, "
                    f"this one {low} to {high}."
                )
            tests.append(lambda bits, layer=layer, widths=widths: widths.issuperset(_bound(layer, bits)))
    return tests


def _bound(layer: Layer, bits: Bits) -> Bits | tuple[int]:
    """Return those of a layer's bits that restrictions bind."""
    return bits[:1] if layer.kind == "patch_embed" else bits


def _check(layers: Sequence[Layer], restrictions: Restrictions) -> None:
    known = {layer.name for layer in layers}
    for bounds in (restrictions.at_least, restrictions.at_most):
        for name, width in bounds.items():
            if name not in known:
                raise BitWidthError(
                    f"There is no layer {name!r} in this model. `python -m mixqvit layers` lists the names."
                )
            _check_width(width, f"layer {name}")
    for kind, widths in restrictions.allowed.items():
        if kind not in KINDS:
            raise AllocationError(f"There is no kind of layer {kind!r}; the kinds are {', '.join(KINDS)}.")
        for width in widths:
            _check_width(width, f"{kind} layers")


def _check_width(width: object, where: str) -> None:
    if isinstance(width, bool) or not isinstance(width, int) or width not in BIT_WIDTHS:
        raise BitWidthError(f"{width!r} bits are not possible for {where}: use {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}.")


def single_restrictions(restrictions: Restrictions) -> Iterator[tuple[str, Restrictions]]:
    """Yield every single restriction in words, with all the others."""
    words = {
        "pinned": lambda name, bits: f"layer {name} pinned to {_shown(bits)} bits",
        "at_least": lambda name, bits: f"layer {name} with at least {bits} bits",
        "at_most": lambda name, bits: f"layer {name} with at most {bits} bits",
        "allowed": lambda kind, widths: f"{kind} layers with {', '.join(map(str, widths))} bits only",
    }
    for attribute, say in words.items():
        every = getattr(restrictions, attribute)
        for name, value in every.items():
            others = {other: kept for other, kept in every.items() if other != name}
            yield say(name, value), replace(restrictions, **{attribute: others})


def _shown(bits: int | Bits) -> str:
    return str(bits) if isinstance(bits, int) else "/".join(map(str, bits))
