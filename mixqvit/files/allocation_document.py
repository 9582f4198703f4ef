"""The allocation file: bits per layer with all that they were solved with, as JSON, to save, send and read back.

`document_schema` says what it holds. Only the version, `model` and `bits` must be there. Files of version 1 were called
recipes, with the version in `mixqvit_recipe`; they are read like those of today.

The schema is checked by `jsonschema`; that and the sentence about what is wrong are `allocation.documents`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any

from mixqvit.allocation.documents import check_document
from mixqvit.allocation.request import BITS_SCHEMA, Request, request_schema
from mixqvit.errors import AllocationFileError
from mixqvit.files.documents import finite, measurement
from mixqvit.network.bits import BitsPerLayer
from mixqvit.notes import Note

if TYPE_CHECKING:
    from mixqvit.allocation.budget import Allocation
    from mixqvit.study.settings import Settings
    from mixqvit.tasks.evaluation import Evaluation

__all__ = [
    "ALLOCATION_VERSION",
    "allocation_document",
    "bits_of",
    "document_schema",
    "parse_allocation",
    "read_allocation",
    "request_of",
    "settings_of",
]

ALLOCATION_VERSION = 2

LIMIT_BYTES = 10 * 2**20
"""An allocation file is a few kilobytes; nothing larger is read."""

OUTLIER_FACTORS = (1e-3, 1e6)
"""Least and largest amplification of outlier channels that a file may ask for."""

_VERSION_KEY, _FIRST_VERSION_KEY = "mixqvit_allocation", "mixqvit_recipe"
_WRITES = "`allocate --output FILE` writes one"


def allocation_document(
    model: str,
    settings: "Settings",
    allocation: "Allocation",
    request: Request | None = None,
    evaluation: "Evaluation | None" = None,
    notes: Sequence[Note] = (),
) -> dict[str, Any]:
    """Return an allocation as a document that JSON can write, of the schema above.

    Args:
        model: What `load_model` is called with.
        settings: What the study computed with.
        allocation: Bits per layer with their cost and harm.
        request: What it was solved for; None for bits that nothing was solved for, which have no predicted harm.
        evaluation: What was measured; None if nothing was.
        notes: Those of the study.
    """
    return finite(
        {
            _VERSION_KEY: ALLOCATION_VERSION,
            "model": model,
            "recipe": settings.recipe,
            "settings": asdict(settings),
            "request": {} if request is None else request.to_json(),
            "bits": {name: list(pair) for name, pair in allocation.bits.items()},
            "predicted_harm": None if request is None else allocation.harm,
            "cost": asdict(allocation.cost) | {"size_bytes": allocation.cost.size_bytes},
            "measured": evaluation and _measured(evaluation),
            "notes": [note.text for note in notes],
        }
    )


def _measured(evaluation: "Evaluation") -> dict[str, Any]:
    found = measurement(evaluation)
    interval = found["top1_interval_95"]
    return {name: found[name] for name in ("images", "top1", "agreement", "kl")} | {"top1_interval": interval}


def document_schema() -> dict[str, Any]:
    """Return the JSON Schema of an allocation file; the description of every part completes "must be …"."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "description": "an object",
        "required": ["model", "bits"],
        "properties": {
            _VERSION_KEY: {"const": ALLOCATION_VERSION, "description": f"the version, {ALLOCATION_VERSION}"},
            _FIRST_VERSION_KEY: {"const": 1, "description": f"1, in place of `{_VERSION_KEY}`, in files of version 1"},
            "model": {"type": "string", "description": "a text that names the model, as `--model` does"},
            "bits": BITS_SCHEMA,
            "recipe": {
                "type": ["string", "null"],
                "description": "a text, the quantization recipe, which `settings` may repeat",
            },
            "settings": _settings_schema(),
            "request": request_schema() | {"description": "an object, what the bits were solved for"},
            "predicted_harm": {"description": "a number, what the strategy minimised, or null"},
            "cost": {"description": "an object, bytes of the packed file and of its parts, BitOps, average bits"},
            "measured": {
                "description": "an object, number of images, top-1 with its interval and agreement as fractions, KL in "
                "nats; or null"
            },
            "notes": {"description": "a list of sentences to know beside the numbers"},
        },
    }


def _settings_schema() -> dict[str, Any]:
    from mixqvit.study.settings import Settings

    return {
        "type": "object",
        "additionalProperties": False,
        "description": "an object, the settings of the study",
        "properties": {one.name: _setting_schema(one.name, one.default) for one in fields(Settings)},
    }


def _setting_schema(name: str, default: Any) -> dict[str, Any]:
    count = {"type": "integer", "minimum": 1, "maximum": 2**63, "description": "a whole number from 1"}
    if name == "evaluation_images":
        return count | {"type": ["integer", "null"], "description": "a whole number from 1, or null for all"}
    if isinstance(default, bool):
        return {"type": "boolean", "description": "true or false"}
    if isinstance(default, float):
        low, high = OUTLIER_FACTORS
        return {"type": "number", "minimum": low, "maximum": high, "description": f"a number from {low:g} to {high:g}"}
    if isinstance(default, int):
        return count | {"minimum": 0, "description": "a whole number from 0"} if name.endswith("_seed") else count
    return {"type": "string" if default is not None else ["string", "null"], "description": "a text"}


def read_allocation(path: str | Path) -> dict[str, Any]:
    """Read and check an allocation file.

    Raises:
        AllocationFileError: The file cannot be read, or is no allocation of a version that this program reads.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise AllocationFileError(f"The allocation {path} cannot be read: {error.strerror or error}.") from error
    return parse_allocation(content, str(path))


def parse_allocation(content: str | bytes, name: str = "This file") -> dict[str, Any]:
    """Return an allocation from JSON text, checked.

    Args:
        content: JSON.
        name: What messages call it.

    Raises:
        AllocationFileError: It is too large, not JSON, or no allocation of a version that this program reads.
    """
    if len(content) > LIMIT_BYTES:
        raise AllocationFileError(f"{name} is larger than {LIMIT_BYTES // 2**20} MB, which no allocation file is.")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AllocationFileError(f"{name} is not JSON; an allocation file is, and {_WRITES}.") from error
    versions = {_FIRST_VERSION_KEY: 1, _VERSION_KEY: ALLOCATION_VERSION}
    key = next((key for key in versions if isinstance(document, dict) and key in document), None)
    if key is None:
        raise AllocationFileError(f"{name} is no allocation file: it has no `{_VERSION_KEY}`. {_WRITES.capitalize()}.")
    if document[key] != versions[key]:
        raise AllocationFileError(
            f"{name} has version {shortened(document[key])}; this program reads versions 1 to {ALLOCATION_VERSION}."
        )
    check_document(document, document_schema(), name)
    settings_of(document, name)
    return document


def bits_of(document: Mapping[str, Any], name: str = "This file") -> BitsPerLayer:
    """Return (weight bits, activation bits) by layer name.

    Raises:
        AllocationFileError: They are missing, or a bit-width is not possible.
    """
    check_document(document.get("bits"), BITS_SCHEMA, name, ("bits",))
    return {layer: (int(pair[0]), int(pair[1])) for layer, pair in document["bits"].items()}


def request_of(document: Mapping[str, Any], name: str = "This file") -> Request | None:
    """Return what the allocation was solved for, None where the document does not say.

    Raises:
        AllocationFileError: An entry is unknown or not of its kind.
    """
    stated = document.get("request", {})
    request = Request.from_json(stated, name, ("request",))
    return request if any(value is not None for value in stated.values()) else None


def settings_of(document: Mapping[str, Any], name: str = "This file") -> "Settings":
    """Return what the study computed with.

    Raises:
        AllocationFileError: A setting is unknown or not of its kind, or `recipe` and `settings` name different
            quantization recipes.
    """
    from mixqvit.study.settings import Settings

    stated, recipe = document.get("settings", {}), document.get("recipe")
    check_document(stated, _settings_schema(), name, ("settings",))
    whole = {one.name for one in fields(Settings) if isinstance(one.default, int) or one.name == "evaluation_images"}
    settings = {
        key: int(value) if key in whole and not isinstance(value, bool | None) else value
        for key, value in stated.items()
    }
    if recipe is not None and settings.setdefault("recipe", recipe) != recipe:
        raise AllocationFileError(
            f"{name} names two quantization recipes: `recipe` is {shortened(recipe)}, the one in `settings` is "
            f"{shortened(settings['recipe'])}. Make them the same."
        )
    return Settings(**settings)
