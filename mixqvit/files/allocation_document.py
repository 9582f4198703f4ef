"""The JSON recipe of an allocation: bits per layer with all that they were solved with, to save, send and read back.

Schema, version 1 (`RECIPE_VERSION`): `mixqvit_recipe` is the version; `model`; `recipe`, the quantization recipe, which
`settings` may repeat; `settings`, the fields of `Settings` by name; `request`, the keywords of `Study.allocate`
(strategy, ceilings, γ, restrictions); `bits`, from layer name to [weight bits, activation bits]; `predicted_harm`, what
the strategy minimised; `cost` in bytes, BitOps and bits; `measured` with fractions from 0 to 1 and KL in nats, or null;
`notes`, sentences to know beside the numbers.
Only `mixqvit_recipe`, `model` and `bits` must be there.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any

from mixqvit.criteria.strategies import find_strategy
from mixqvit.errors import AllocationError, RecipeError
from mixqvit.files.documents import finite, measurement
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, BitsPerLayer
from mixqvit.notes import Note

if TYPE_CHECKING:
    from mixqvit.allocation.budget import Allocation
    from mixqvit.study.settings import Settings
    from mixqvit.tasks.evaluation import Evaluation

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

OUTLIER_FACTORS = (1e-3, 1e6)
"""Least and largest amplification of outlier channels that a recipe may ask for."""

_NUMBERS = ("average_bits", "size_bytes", "bitops", "gamma")


def recipe_document(
    model: str,
    settings: "Settings",
    allocation: "Allocation",
    request: Mapping[str, Any],
    evaluation: "Evaluation | None" = None,
    notes: Sequence[Note] = (),
) -> dict[str, Any]:
    """Return an allocation as a document that JSON can write, of the schema above.

    Args:
        model: What `load_model` is called with.
        settings: What the study computed with.
        allocation: Bits per layer with their cost and harm.
        request: The keywords of `Study.allocate` that it was solved with.
        evaluation: What was measured; None if nothing was.
        notes: Those of the study.
    """
    return finite(
        {
            "mixqvit_recipe": RECIPE_VERSION,
            "model": model,
            "recipe": settings.recipe,
            "settings": asdict(settings),
            "request": dict(request),
            "bits": {name: list(pair) for name, pair in allocation.bits.items()},
            "predicted_harm": allocation.harm,
            "cost": asdict(allocation.cost) | {"size_bytes": allocation.cost.size_bytes},
            "measured": evaluation and _measured(evaluation),
            "notes": [note.text for note in notes],
        }
    )


def _measured(evaluation: "Evaluation") -> dict[str, Any]:
    found = measurement(evaluation)
    interval = found["top1_interval_95"]
    return {name: found[name] for name in ("images", "top1", "agreement", "kl")} | {"top1_interval": interval}


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
            f"{name} has version {shortened(document['mixqvit_recipe'])}; this program reads version {RECIPE_VERSION}."
        )
    if not isinstance(document.get("model"), str):
        raise RecipeError(f"{name} does not name its model: `model` must be a text.")
    for part in ("settings", "request"):
        if not isinstance(document.get(part, {}), dict):
            raise RecipeError(f"`{part}` of {name} must be an object.")
    recipe_bits(document, name)
    request_of(document, name)
    settings_of(document, name)
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
                f"{BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]} or {FULL_PRECISION}, not {shortened(pair)}."
            )
    return {layer: (pair[0], pair[1]) for layer, pair in bits.items()}


def request_of(document: Mapping[str, Any], name: str = "This recipe") -> dict[str, Any]:
    """Return the keywords of `Study.allocate` that the allocation was solved with; those that are null are not given.

    Raises:
        RecipeError: One of them is not of its kind.
    """
    known = {
        **dict.fromkeys(_NUMBERS, _is_number),
        "seed": lambda value: _is_whole(value) and value >= 0,
        "pinned": lambda value: _is_by_name(value, _is_pin),
        "at_least": lambda value: _is_by_name(value, _is_quantized_width),
        "at_most": lambda value: _is_by_name(value, _is_quantized_width),
        "allowed": lambda value: _is_by_name(value, _is_widths),
        "strategy": _is_strategy,
        "cap_bitops": lambda value: isinstance(value, bool),
        "tied": lambda value: isinstance(value, bool),
    }
    request = {}
    for key, value in document.get("request", {}).items():
        if key not in known:
            raise RecipeError(f"`request` of {name} has an entry {shortened(key)} that this version does not know.")
        if value is None:
            continue
        if not known[key](value):
            raise RecipeError(f"`{key}` in the request of {name} is not usable: {shortened(value)}.")
        request[key] = value
    if "seed" in request:
        request["seed"] = int(request["seed"])
    if "allowed" in request:
        request["allowed"] = {kind: tuple(widths) for kind, widths in request["allowed"].items()}
    if "pinned" in request:
        pins = request["pinned"].items()
        request["pinned"] = {layer: tuple(bits) if isinstance(bits, list) else bits for layer, bits in pins}
    return request


def settings_of(document: Mapping[str, Any], name: str = "This recipe") -> "Settings":
    """Return what the study computed with.

    Raises:
        RecipeError: A setting is unknown or not of its kind, or `recipe` and `settings` name different quantization
            recipes.
    """
    from mixqvit.study.settings import Settings

    defaults = Settings()
    settings: dict[str, Any] = {}
    for key, value in document.get("settings", {}).items():
        if key not in asdict(defaults):
            raise RecipeError(f"`settings` of {name} has an entry {shortened(key)} that this version does not know.")
        if not _is_setting(key, value, getattr(defaults, key)):
            raise RecipeError(f"`{key}` in the settings of {name} is not usable: {shortened(value)}.")
        whole = _is_number(value) and not isinstance(getattr(defaults, key), float)
        settings[key] = int(value) if whole else value
    recipe = document.get("recipe")
    if recipe is None:
        return Settings(**settings)
    if not isinstance(recipe, str):
        raise RecipeError(f"`recipe` of {name} must be the name of a quantization recipe, not {shortened(recipe)}.")
    if settings.setdefault("recipe", recipe) != recipe:
        raise RecipeError(
            f"{name} names two quantization recipes: `recipe` is {shortened(recipe)}, the one in `settings` is "
            f"{shortened(settings['recipe'])}. Make them the same."
        )
    return Settings(**settings)


def _is_setting(key: str, value: Any, default: Any) -> bool:
    if key == "evaluation_images":
        return value is None or (_is_whole(value) and value >= 1)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, float):
        return _is_number(value) and OUTLIER_FACTORS[0] <= value <= OUTLIER_FACTORS[1]
    if isinstance(default, int):
        return _is_whole(value) and value >= (0 if key.endswith("_seed") else 1)
    return isinstance(value, str) or (value is None and default is None)


def _is_width(value: Any) -> bool:
    return _is_quantized_width(value) or (type(value) is int and value == FULL_PRECISION)


def _is_quantized_width(value: Any) -> bool:
    return type(value) is int and value in BIT_WIDTHS


def _is_widths(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_quantized_width, value))


def _is_pin(value: Any) -> bool:
    return _is_width(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_width, value)))


def _is_by_name(value: Any, is_usable: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_usable, value.values()))


def _is_strategy(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(find_strategy(value))
    except AllocationError:
        return False


def _is_number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)
