"""Checks what a person sends as JSON against a JSON Schema, and says what is wrong with it in one sentence.

Every part of a schema has a `description` that completes "must be …": it is what a reader of the schema is told, and
what the sentence says.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from math import isfinite
from reprlib import repr as shortened
from typing import Any

from mixqvit.errors import AllocationFileError

__all__ = ["check_document"]


def check_document(document: Any, schema: Mapping[str, Any], name: str, inside: Iterable[str] = ()) -> None:
    """Refuse a document that does not follow a schema.

    Args:
        document: What `json.loads` returned, or a part of that.
        schema: JSON Schema, draft 2020-12.
        name: What messages call the whole.
        inside: Where in the whole the document is, from the outside in.

    Raises:
        AllocationFileError: It does not; the message names the first entry that does not, and what it must be.
    """
    error = next(_validator()(schema).iter_errors(document), None)
    if error is None:
        return
    path = (*inside, *error.absolute_path)
    if error.validator == "additionalProperties":
        unknown = min(error.instance.keys() - error.schema["properties"].keys())
        raise AllocationFileError(
            f"{_place(path, name)} has an entry {shortened(unknown)} that this version does not know."
        )
    if error.validator == "required":
        missing = next(entry for entry in error.validator_value if entry not in error.instance)
        expected = error.schema["properties"][missing]["description"]
        raise AllocationFileError(f"{_place(path, name)} has no `{missing}`, which must be {expected}.")
    raise AllocationFileError(
        f"{_place(path, name)} must be {error.schema['description']}, not {shortened(error.instance)}."
    )


def _place(path: tuple[str | int, ...], name: str) -> str:
    """Write where an entry is, from the inside out."""
    entries = [f"entry {one + 1}" if isinstance(one, int) else f"`{_short(one)}`" for one in reversed(path)]
    return f"{' in '.join(entries)} of {name}" if entries else name


def _short(entry: str) -> str:
    text = repr(entry)[1:-1].replace("`", "'")  # without line breaks
    return text if len(text) <= 60 else f"{text[:60]}…"


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator  # takes a tenth of a second, which most commands do without
    from jsonschema.validators import extend

    def is_number(checker: Any, value: Any) -> bool:
        # Python's JSON has NaN, infinity and integers that no float can hold.
        try:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
        except OverflowError:
            return False

    def is_whole(checker: Any, value: Any) -> bool:
        return is_number(checker, value) and value == int(value)

    kinds = Draft202012Validator.TYPE_CHECKER.redefine_many({"number": is_number, "integer": is_whole})
    return extend(Draft202012Validator, type_checker=kinds)
