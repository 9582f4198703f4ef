"""A request for an allocation as the controls of the Budget page, and back; what they cannot show becomes sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.quantities import QUANTITIES, Quantity
from mixqvit.allocation.request import Request
from mixqvit.allocation.restrictions import RESTRICTIONS, Restrictions
from mixqvit.network.bits import (
    BIT_WIDTHS,
    UNQUANTIZED,
    Bits,
    is_tied,
    possible_bits,
    resolve_pair,
    written_bits,
)
from mixqvit.network.layers import Layer

TIED, INDEPENDENT = "tied", "independent"

SLIDER = QUANTITIES["average_bits"]
"""The quantity whose ceiling is always stated, on the slider."""

FURTHER: tuple[Quantity, ...] = tuple(one for one in QUANTITIES.values() if one is not SLIDER)
"""The quantities whose ceilings can be stated beside it."""

START = Request(Budget(average_bits=4.0))
"""What the page asks for at first."""

RANGES: dict[str, tuple[float, float]] = {
    **{one.shown_name: one.range for one in QUANTITIES.values()},
    "gamma": (0.0, 2.0),
    "random_seed": (0, 10**6),
}
"""What the controls that hold a number go from and to."""

_TITLES = {
    SLIDER.shown_name: f"budget in {SLIDER.title}",
    **{one.shown_name: f"{one.title} in {one.symbol}" for one in FURTHER},
    "gamma": "γ",
    "random_seed": "seed",
}
_MOST_NAMES = 3  # of which a sentence lists so many


def request_from(controls: Mapping[str, Any]) -> Request:
    """Return the request that controls say.

    Args:
        controls: All of them by name, restrictions included, as `controls_of` returns them.
    """
    further = {one.name: controls[one.shown_name] for one in FURTHER}
    return Request().changed(
        **{SLIDER.name: controls[SLIDER.shown_name]},
        **{name: None if shown is None else QUANTITIES[name].from_shown(shown) for name, shown in further.items()},
        cap_bitops=controls["cap_bitops"],
        strategy=controls["strategy"],
        gamma=controls["gamma"],
        tied=controls["operand_bits"] == TIED,
        seed=int(controls["random_seed"]),
        **{name: getattr(controls["restrictions"], name) for name in RESTRICTIONS},
    )


def controls_of(request: Request, layers: Sequence[Layer]) -> tuple[dict[str, Any], list[str]]:
    """Return what the controls are set to by a request, and what of it they cannot show.

    Args:
        request: What is asked for.
        layers: The table of layers.

    Returns:
        All controls by name, restrictions included, and one sentence per thing that is set otherwise or left out.
    """
    given = dict(request.budget.ceilings)
    numbers: dict[str, float | None] = {
        # Without a ceiling on average bits: the highest position of the slider, with no cap, allows anything.
        SLIDER.shown_name: float(given.get(SLIDER.name, SLIDER.range[1])),
        **{one.shown_name: given[one.name] / one.unit if one.name in given else None for one in FURTHER},
        "gamma": float(request.gamma),
        "random_seed": request.seed,
    }
    problems = []
    for name, value in numbers.items():
        low, high = RANGES[name]
        if value is not None and not low <= value <= high:
            numbers[name] = low if value < low else high
            problems.append(
                f"Its {_TITLES[name]} is {value:.9g}, but the control goes from {low:g} to {high:.9g}: it is set to "
                f"{numbers[name]:.9g}."
            )
    restrictions, left_out = _restrictions(request, layers)
    return {
        **numbers,
        "cap_bitops": SLIDER.name in given and request.budget.cap_bitops,
        "strategy": request.strategy,
        "operand_bits": TIED if request.tied else INDEPENDENT,
        "restrictions": restrictions,
    }, problems + left_out


def can_pin(layer: Layer, pin: int | Bits, tied: bool) -> bool:
    """Return whether the tables of restrictions can hold a pin, and the allocation has it among its choices."""
    return resolve_pair(layer, pin) in (*possible_bits(layer, tied), UNQUANTIZED)


def is_tied_everywhere(layers: Sequence[Layer], bits: Mapping[str, int | Bits]) -> bool:
    """Return whether no layer has other bits for its weights than for its input; the 8-bit images aside."""
    return all(is_tied(layer, resolve_pair(layer, bits[layer.name])) for layer in layers if layer.name in bits)


def _restrictions(request: Request, layers: Sequence[Layer]) -> tuple[Restrictions, list[str]]:
    """Return the restrictions as the tables write them, and sentences about those that they cannot hold."""
    by_name = {layer.name: layer for layer in layers}
    kinds = {layer.kind for layer in layers}
    found: dict[str, dict[str, Any]] = {}
    problems = []
    for restriction in RESTRICTIONS:
        wanted = getattr(request.restrictions, restriction)
        known = kinds if restriction == "allowed" else by_name.keys()
        unknown = [place for place in wanted if place not in known]
        if unknown:
            what = "kinds of layers" if restriction == "allowed" else "layers"
            problems.append(f"`{restriction}` names {what} that this model does not have: {_listed(unknown)}.")
        found[restriction] = {place: bits for place, bits in wanted.items() if place in known}
    tied, pinned = request.tied, found["pinned"]
    impossible = [name for name, pin in pinned.items() if not can_pin(by_name[name], pin, tied)]
    if impossible:
        pins = [f"{name} at {written_bits(pinned[name])}" for name in impossible]
        problems.append(
            f"`pinned` has bits that cannot be chosen with {TIED if tied else INDEPENDENT} operands: {_listed(pins)}."
        )
    found["pinned"] = {
        name: _as_in_table(by_name[name], pin, tied) for name, pin in pinned.items() if name not in impossible
    }
    allowed = {kind: tuple(bits for bits in BIT_WIDTHS if bits in chosen) for kind, chosen in found["allowed"].items()}
    found["allowed"] = {kind: chosen for kind, chosen in allowed.items() if chosen != BIT_WIDTHS}
    return Restrictions(**found), problems


def _as_in_table(layer: Layer, pin: int | Bits, tied: bool) -> int | Bits:
    pair = resolve_pair(layer, pin)
    return pair[0] if pair[0] == pair[1] or (tied and is_tied(layer, pair)) else pin


def _listed(names: Sequence[str]) -> str:
    names = [(name if len(name) <= 60 else f"{name[:60]}…").replace("`", "'") for name in names]
    more = len(names) - _MOST_NAMES
    return ", ".join(f"`{name}`" for name in names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


DEFAULTS, _ = controls_of(START, ())
"""What the controls are set to at first, restrictions included."""
