"""Which of a model's classes a folder's or a label's name means."""

import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from mixqvit.errors import ImageError
from mixqvit.images.listing import shown

if TYPE_CHECKING:
    from mixqvit.models.model import Model

__all__ = ["ClassNames", "class_indices"]

_PLURALS = {"sub-folder": "sub-folders with images", "label": "different labels"}


def class_indices(
    names: Collection[str], model: "Model", where: str, kind: str, order: Sequence[str] = ()
) -> tuple[dict[str, int], str | None]:
    """Match names to a model's classes.

    A name is a label such as a WordNet id, a class name, or one of a class name's synonyms; letter case, spaces,
    hyphens and underscores do not matter. Where no name is known, there must be one for every class, and their order
    decides; numbers from 0 on are indices.

    Args:
        names: Those that occur.
        model: Whose classes.
        where: The source, for messages.
        kind: What a name is, `sub-folder` or `label`.
        order: All names in the order of the classes, where the source has one; otherwise the sorted ones are.

    Returns:
        The index of every name, and a sentence where it was the order that decided.

    Raises:
        ImageError: A name is unknown or ambiguous, or the number of names is not that of the classes.
    """
    index = ClassNames(model)
    found = {name: index.matches(name) for name in sorted(names)}
    for name, classes in found.items():
        if len(classes) > 1:
            meanings = " or ".join(index.described(position) for position in sorted(classes))
            raise ImageError(
                f"the {kind} {shown(name)} of {where} is ambiguous: it means {meanings}; rename it to one of these ids"
            )
    unknown = [name for name, classes in found.items() if not classes]
    if not unknown:
        return {name: next(iter(classes)) for name, classes in found.items()}, None
    everything = list(order) or sorted(names)
    if len(unknown) == len(found) and len(everything) == len(model.class_names):
        return _by_order(everything, names, kind)
    if len(unknown) == len(found) and not any(index.closest(name) for name in unknown):
        raise ImageError(
            f"{where} has {len(everything)} {_PLURALS[kind]}, {model.name} has {len(model.class_names)} classes: name "
            f"the {kind}s by the model's classes (WordNet ids or names for ImageNet-1k), or have one for every class "
            f"in the order of the classes (found: {_few(unknown)})"
        )
    hint = "; ".join(f"{shown(name)} is closest to {close}" for name in unknown[:3] if (close := index.closest(name)))
    raise ImageError(
        f"{len(unknown)} of {len(everything)} {_PLURALS[kind]} of {where} mean no class of {model.name}: "
        f"{_few(unknown)}{f' ({hint})' if hint else ''}; rename or remove them"
    )


def _by_order(everything: Sequence[str], names: Collection[str], kind: str) -> tuple[dict[str, int], str]:
    if all(re.fullmatch(r"[0-9]{1,9}", name) for name in everything):
        indices = {name: int(name) for name in everything}
        if sorted(indices.values()) == list(range(len(everything))):
            return {name: indices[name] for name in names}, f"the {kind}s are numbers and are taken as class indices"
    positions = {name: position for position, name in enumerate(everything)}
    return {name: positions[name] for name in names}, (
        f"no {kind} is named as a class of the model: their order decides, from {shown(everything[0])} for class 0 to "
        f"{shown(everything[-1])} for class {len(everything) - 1}"
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(shown(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name.casefold())


class ClassNames:
    """A model's classes by name. Labels come before first names, first names before other synonyms."""

    def __init__(self, model: "Model") -> None:
        self.model = model
        labels, firsts, others = (defaultdict(set) for _ in range(3))
        for position, label in enumerate(model.label_names):
            labels[_plain(label)].add(position)
        for position, name in enumerate(model.class_names):
            synonyms = name.split(", ")
            firsts[_plain(name)].add(position)
            firsts[_plain(synonyms[0])].add(position)
            for synonym in synonyms[1:]:
                others[_plain(synonym)].add(position)
        self.levels = (labels, firsts, others)

    def matches(self, name: str) -> set[int]:
        """Return the classes that a name means: none, one, or several where it is ambiguous."""
        return next((level[plain] for level in self.levels if (plain := _plain(name)) in level), set())

    def knows(self, name: str) -> bool:
        """Return whether a name means a class, or several."""
        return bool(self.matches(name))

    def described(self, position: int) -> str:
        """Return a class's label, and its name where that is another one."""
        label, name = self.model.label_names[position], self.model.class_names[position]
        return f"class {position} ({name})" if label == name else f"{label} ({name})"

    def closest(self, name: str) -> str | None:
        """Return the class whose name looks most like this one, in words."""
        for level in self.levels:
            close = difflib.get_close_matches(_plain(name), level, n=1, cutoff=0.7)
            if close:
                return self.described(min(level[close[0]]))
        return None
