"""What of a request for an allocation the controls of the Budget page can show; the rest becomes sentences."""

from collections.abc import Mapping, Sequence

from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, PATCH_EMBED_INPUT_BITS, Bits
from mixqvit.network.layers import Layer
from mixqvit.views.allocation_words import is_tied

TIED, INDEPENDENT = "tied", "independent"
DEFAULTS = {
    "average_bits": 4.0,
    "strategy": "mix-qvit",
    "gamma": 1.0,
    "size_mb": None,
    "bitops_g": None,
    "cap_bitops": True,
    "operand_bits": TIED,
    "random_seed": 0,
}
RANGES = {
    "average_bits": (float(BIT_WIDTHS[0]), float(BIT_WIDTHS[-1])),
    "gamma": (0.0, 2.0),
    "size_mb": (0.001, 1e6),
    "bitops_g": (0.001, 1e6),
    "random_seed": (0, 10**6),
}
"""What the controls that hold a number go from and to."""

RESTRICTIONS = ("pinned", "at_least", "at_most", "allowed")

_TITLES = {
    "average_bits": "budget in average bits",
    "gamma": "γ",
    "size_mb": "model size in MB",
    "bitops_g": "BitOps in G",
    "random_seed": "seed",
}
_MOST_NAMES = 3  # of which a sentence lists so many


def can_pin(layer: Layer, pin: int | Bits, tied: bool) -> bool:
    """Return whether the tables of restrictions can hold a pin, and the allocation has it among its choices."""
    pair = _pair(layer, pin)
    if is_tied(layer, pair):
        return True
    return not (tied or layer.is_matmul or layer.kind == "patch_embed" or FULL_PRECISION in pair)


def is_tied_everywhere(layers: Sequence[Layer], bits: Mapping[str, int | Bits]) -> bool:
    """Return whether no layer has other bits for its weights than for its input; the 8-bit images aside."""
    return all(is_tied(layer, _pair(layer, bits[layer.name])) for layer in layers if layer.name in bits)


def controls_of(request: Mapping, layers: Sequence[Layer]) -> tuple[dict, list[str]]:
    """Return what the controls are set to by a request as `study.allocate` takes it, and what of it they cannot show.

    Args:
        request: As `request_of` returns it.
        layers: The table of layers.

    Returns:
        All controls by name, restrictions included, and one sentence per thing that is set otherwise or left out.
    """
    average_bits, size, bitops = (request.get(name) for name in ("average_bits", "size_bytes", "bitops"))
    tied = request.get("tied", True)
    numbers = {
        # Without a ceiling on average bits: the highest position of the slider, with no cap, allows anything.
        "average_bits": float(BIT_WIDTHS[-1] if average_bits is None else average_bits),
        "gamma": float(request.get("gamma", DEFAULTS["gamma"])),
        "size_mb": None if size is None else size / 1e6,
        "bitops_g": None if bitops is None else bitops / 1e9,
        "random_seed": request.get("seed", DEFAULTS["random_seed"]),
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
    restrictions, left_out = _restrictions(request, layers, tied)
    return {
        **numbers,
        "cap_bitops": average_bits is not None and request.get("cap_bitops", True),
        "strategy": request.get("strategy", DEFAULTS["strategy"]),
        "operand_bits": TIED if tied else INDEPENDENT,
        "restrictions": restrictions,
    }, problems + left_out


def _restrictions(request: Mapping, layers: Sequence[Layer], tied: bool) -> tuple[dict, list[str]]:
    """Return the restrictions as the tables write them, and sentences about those that they cannot hold."""
    by_name = {layer.name: layer for layer in layers}
    kinds = {layer.kind for layer in layers}
    found: dict[str, dict] = {}
    problems = []
    for restriction in RESTRICTIONS:
        wanted = request.get(restriction) or {}
        known = kinds if restriction == "allowed" else by_name.keys()
        unknown = [place for place in wanted if place not in known]
        if unknown:
            what = "kinds of layers" if restriction == "allowed" else "layers"
            problems.append(f"`{restriction}` names {what} that this model does not have: {_listed(unknown)}.")
        found[restriction] = {place: bits for place, bits in wanted.items() if place in known}
    impossible = [name for name, pin in found["pinned"].items() if not can_pin(by_name[name], pin, tied)]
    if impossible:
        pins = [f"{name} at {_written(found['pinned'][name])}" for name in impossible]
        problems.append(
            f"`pinned` has bits that cannot be chosen with {TIED if tied else INDEPENDENT} operands: {_listed(pins)}."
        )
    found["pinned"] = {
        name: _as_in_table(by_name[name], pin, tied) for name, pin in found["pinned"].items() if name not in impossible
    }
    allowed = {kind: tuple(bits for bits in BIT_WIDTHS if bits in chosen) for kind, chosen in found["allowed"].items()}
    found["allowed"] = {kind: chosen for kind, chosen in allowed.items() if chosen != BIT_WIDTHS}
    return found, problems


def _pair(layer: Layer, pin: int | Bits) -> Bits:
    if not isinstance(pin, int):
        return pin
    return (pin, PATCH_EMBED_INPUT_BITS) if layer.kind == "patch_embed" and pin != FULL_PRECISION else (pin, pin)


def _as_in_table(layer: Layer, pin: int | Bits, tied: bool) -> int | Bits:
    pair = _pair(layer, pin)
    return pair[0] if pair[0] == pair[1] or (tied and is_tied(layer, pair)) else pin


def _written(pin: int | Bits) -> str:
    return str(pin) if isinstance(pin, int) else "/".join(map(str, pin))


def _listed(names: Sequence[str]) -> str:
    names = [(name if len(name) <= 60 else f"{name[:60]}…").replace("`", "'") for name in names]
    more = len(names) - _MOST_NAMES
    return ", ".join(f"`{name}`" for name in names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
