"""The JSON recipe of an allocation: bits per layer with all that they were solved with, to save, send and read back.

Schema, version 1 (`RECIPE_VERSION`): `mixqvit_recipe` is the version; `model`; `recipe`, the quantization recipe;
`settings`, the fields of `Settings` by name; `request`, the keywords of `Study.allocate` (strategy, ceilings, γ,
restrictions); `bits`, from layer name to [weight bits, activation bits]; `predicted_harm`, what the strategy
minimised; `cost` in bytes, BitOps and bits; `measured` with fractions from 0 to 1 and KL in nats, or null.
Only `mixqvit_recipe`, `model` and `bits` must be there.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixqvit.bits import BIT_WIDTHS, FULL_PRECISION, BitsPerLayer
from mixqvit.errors import RecipeError

if TYPE_CHECKING:
    from mixqvit.allocation import Allocation
    from mixqvit.evaluation import Evaluation
    from mixqvit.records import Settings

__all__ = [
    "RECIPE_VERSION",
    "parse_recipe",
    "read_recipe",
    "recipe_bits",
    "recipe_document",
    "request_of",
    "settings_of",
]

RECIPE_VERSION = 1

LIMIT_BYTES = 10 * 2**20
"""A recipe is a few kilobytes; nothing larger is read."""

_NUMBERS = ("average_bits", "size_bytes", "bitops", "gamma", "seed")
_BITS_BY_NAME = ("pinned", "at_least", "at_most")


def recipe_document(
    model: str,
    settings: "Settings",
    allocation: "Allocation",
    request: Mapping[str, Any],
    evaluation: "Evaluation | None" = None,
) -> dict[str, Any]:
    """Return an allocation as a document that JSON can write, of the schema above.

    Args:
        model: What `load_model` is called with.
        settings: What the study computed with.
        allocation: Bits per layer with their cost and harm.
        request: The keywords of `Study.allocate` that it was solved with.
        evaluation: What was measured; None if nothing was.
    """
    return {
        "mixqvit_recipe": RECIPE_VERSION,
        "model": model,
        "recipe": settings.recipe,
        "settings": asdict(settings),
        "request": {name: _plain(value) for name, value in request.items()},
        "bits": {name: list(pair) for name, pair in allocation.bits.items()},
        "predicted_harm": allocation.harm,
        "cost": asdict(allocation.cost) | {"size_bytes": allocation.cost.size_bytes},
        "measured": evaluation
        and {
            "images": evaluation.images,
            "top1": evaluation.top1,
            "top1_interval": evaluation.interval and list(evaluation.interval),
            "agreement": evaluation.agreement,
            "kl": evaluation.kl,
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read and check a recipe file.

    Raises:
        RecipeError: The file cannot be read, or is no recipe of this version.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error.strerror or error}.") from error
    return parse_recipe(content, str(path))


def parse_recipe(content: str | bytes, name: str = "This recipe") -> dict[str, Any]:
    """Return a recipe from JSON text, checked.

    Args:
        content: JSON.
        name: What messages call it.

    Raises:
        RecipeError: It is too large, not JSON, or no recipe of this version.
    """
    if len(content) > LIMIT_BYTES:
        raise RecipeError(f"{name} is larger than {LIMIT_BYTES // 2**20} MB, which no recipe is.")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{name} is not JSON; `allocate --output FILE` writes one that is a recipe.") from error
    if not isinstance(document, dict) or "mixqvit_recipe" not in document:
        raise RecipeError(f"{name} is no recipe: it has no `mixqvit_recipe`. `allocate --output FILE` writes one.")
    if document["mixqvit_recipe"] != RECIPE_VERSION:
        raise RecipeError(
            f"{name} has version {document['mixqvit_recipe']!r}; this program reads version {RECIPE_VERSION}."
        )
    if not isinstance(document.get("model"), str):
        raise RecipeError(f"{name} does not name its model: `model` must be a text.")
    for part in ("settings", "request"):
        if not isinstance(document.get(part, {}), dict):
            raise RecipeError(f"`{part}` of {name} must be an object.")
    recipe_bits(document, name)
    request_of(document, name)
    return document


def recipe_bits(document: Mapping[str, Any], name: str = "This recipe") -> BitsPerLayer:
    """Return (weight bits, activation bits) by layer name.

    Raises:
        RecipeError: They are missing, or a bit-width is not possible.
    """
    bits = document.get("bits")
    if not isinstance(bits, dict) or not bits:
        raise RecipeError(f"{name} has no `bits`: an object from layer name to [weight bits, activation bits].")
    for layer, pair in bits.items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(_is_width(width) for width in pair):
            raise RecipeError(
                f"The bits of layer {layer} in {name} must be [weight bits, activation bits], each "
                f"{BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]} or {FULL_PRECISION}, not {pair!r}."
            )
    return {layer: (pair[0], pair[1]) for layer, pair in bits.items()}


def request_of(document: Mapping[str, Any], name: str = "This recipe") -> dict[str, Any]:
    """Return the keywords of `Study.allocate` that the allocation was solved with; empty where they are not known.

    Raises:
        RecipeError: One of them is not of its kind.
    """
    known = {
        **dict.fromkeys(_NUMBERS, _is_number),
        **dict.fromkeys(_BITS_BY_NAME, _is_bits_by_name),
        "allowed": lambda value: isinstance(value, dict) and all(_is_list(widths) for widths in value.values()),
        "strategy": lambda value: isinstance(value, str),
        "cap_bitops": lambda value: isinstance(value, bool),
        "tied": lambda value: isinstance(value, bool),
    }
    request = {}
    for key, value in document.get("request", {}).items():
        if key not in known:
            raise RecipeError(f"`request` of {name} has an entry {key!r} that this version does not know.")
        if value is not None and not known[key](value):
            raise RecipeError(f"`{key}` in the request of {name} is not usable: {value!r}.")
        request[key] = value
    if request.get("allowed"):
        request["allowed"] = {kind: tuple(widths) for kind, widths in request["allowed"].items()}
    for key in _BITS_BY_NAME:
        if request.get(key):
            pairs = request[key].items()
            request[key] = {layer: tuple(bits) if isinstance(bits, list) else bits for layer, bits in pairs}
    return request


def settings_of(document: Mapping[str, Any], name: str = "This recipe") -> "Settings":
    """Return what the study computed with.

    Raises:
        RecipeError: A setting is unknown or not of its kind.
    """
    from mixqvit.records import Settings

    known = asdict(Settings())
    settings = document.get("settings", {})
    for key, value in settings.items():
        if key not in known:
            raise RecipeError(f"`settings` of {name} has an entry {key!r} that this version does not know.")
        default = known[key]
        fits = _is_number(value) if isinstance(default, (int, float)) else isinstance(value, (str, type(None)))
        if key == "evaluation_images":
            fits = value is None or (_is_number(value) and value == int(value))
        if isinstance(default, int) and fits and value != int(value):
            fits = False
        if not fits:
            raise RecipeError(f"`{key}` in the settings of {name} is not usable: {value!r}.")
    return Settings(**settings)


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in (*BIT_WIDTHS, FULL_PRECISION)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(_is_width(width) for width in value)


def _is_bits_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_width(bits) or (_is_list(bits) and len(bits) == 2) for bits in value.values()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
