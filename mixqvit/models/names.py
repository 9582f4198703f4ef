"""What a misspelt model name may have meant."""

import difflib
import re
from functools import cache

import timm

from mixqvit.models.cards import EMBEDDED
from mixqvit.models.catalogue import CATALOGUE

__all__ = ["suggestions"]

LEAST_LIKENESS = 0.72
_COMMON = ("patch", "window")  # parts of many names that people leave out
_WORDS = {"iii": "3", "b": "base", "s": "small", "l": "large", "t": "tiny", "ti": "tiny", "h": "huge", "g": "giant"}


def suggestions(name: str, count: int = 3) -> tuple[str, ...]:
    """Return the model names nearest to a misspelt one, best first: embedded ones, the catalogue's, all of timm's."""
    wanted = _parts(name[:100])
    if not wanted:
        return ()
    base, _, tag = name.partition(".")
    if tag and timm.is_model(base):  # the architecture is right, its tag is not
        tagged = timm.list_models(f"{base}.*", pretrained=True)
        return tuple(sorted(tagged, key=lambda full: -_ratio(full.partition(".")[2], tag))[:count])
    scored = {known: _likeness(wanted, known) for known in _known_names()}
    close = [known for known in scored if scored[known] >= LEAST_LIKENESS]
    return tuple(sorted(close, key=lambda known: (-scored[known], len(known)))[:count])


@cache
def _known_names() -> tuple[str, ...]:
    catalogued = [entry.name for entry in CATALOGUE]
    covered = {name.partition(".")[0] for name in catalogued}
    return (*EMBEDDED, *catalogued, *(name for name in timm.list_models() if name not in covered))


@cache
def _is_favoured(known: str) -> bool:
    return known in EMBEDDED or "." in known


def _likeness(wanted: tuple[str, ...], known: str) -> float:
    """Return how well the parts of what was typed occur in a known name, 0 to about 1."""
    parts = _parts(known.partition(".")[0])
    hits = [max((_ratio(word, part), index) for index, part in enumerate(parts)) for word in wanted]
    share = sum(ratio if ratio >= 0.6 else 0 for ratio, _ in hits) / len(wanted)
    used = {index for _, index in hits}
    left = sum(index not in used and part not in _COMMON and not part.isdigit() for index, part in enumerate(parts))
    whole = _ratio("_".join(wanted), "_".join(parts))
    return share - 0.02 * left + 0.05 * (whole - 0.5) + (0.04 if _is_favoured(known) else 0)


@cache
def _ratio(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()


@cache
def _parts(name: str) -> tuple[str, ...]:
    """Return the words and numbers of a name; single letters of the literature in full (ViT-B/16)."""
    found = re.findall(r"v\d+(?![a-z])|[a-z]+?(?=v\d)|[a-z]+|\d+", name.lower())
    return tuple(_WORDS.get(part, part) for part in found)
