"""Which of a model's classes a folder's or a label's name means."""

import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mixqvit.errors import ImageError
from mixqvit.images.labels import LABEL_ORDERS
from mixqvit.images.listing import few, shown, split_word
from mixqvit.models.model import Model

__all__ = ["ClassNames", "class_indices"]

_PLURALS = {"sub-folder": "sub-folders with images", "label": "different labels"}

# A name so similar to a class's is taken for a misspelling of it; most words of three letters are close to some class.
_MISSPELT = 0.85
_LEAST_MISSPELT = 4


def class_indices(
    names: Collection[str],
    model: Model,
    where: str,
    kind: str,
    order: Sequence[str] = (),
    label_order: str | None = None,
) -> tuple[dict[str, int], str | None]:
    """Match names to a model's classes.

    A name is a label such as a WordNet id, a class name, or one of a class name's synonyms; letter case, spaces,
    hyphens and underscores do not matter. Where no name is known, there must be one for every class, and their order
    decides if it is certain: that of the source, or the sorted one where text and numbers sort alike, as torchvision
    and timm do. Labels that are all the numbers from 0 on are class indices.

    Args:
        names: Those that occur.
        model: Whose classes.
        where: The source, for messages.
        kind: What a name is, `sub-folder` or `label`.
        order: All names in the order of the classes, where the source has one.
        label_order: What names mean that are no names of classes, one of `LABEL_ORDERS`; None for what is certain.

    Returns:
        The index of every name, and a sentence where it was the order that decided.

    Raises:
        ImageError: A name is unknown or ambiguous, the number of names is not that of the classes, or what they mean
            is not certain.
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
    labels = _Labels(tuple(found), len(model.class_names), model.name, where, kind)
    if label_order == "torchvision":
        return labels.ranked(labels.names, "they are sorted as text")
    if label_order == "number":
        return labels.numbered()
    if label_order is None:
        none_known = len(unknown) == len(found)
        if none_known and len(order) == len(model.class_names) and set(names) <= set(order):
            return labels.ranked(order, "their order decides")
        if labels.are_numbers or (none_known and len(labels.names) == labels.classes):
            return labels.certain(none_known)
    raise ImageError(_meaningless(unknown, order or labels.names, labels, index))


def _meaningless(unknown: Sequence[str], everything: Sequence[str], labels: "_Labels", index: "ClassNames") -> str:
    """Returns what is wrong with names that mean no class, and what helps."""
    found = [f"{shown(name)} is closest to {close}" for name in unknown[:3] if (close := index.closest(name))]
    hints = f" ({'; '.join(found)})" if found else ""
    if labels.kind == "sub-folder":
        unlabelled = "to measure without labels, put all images into one folder without sub-folders and give that"
    else:
        unlabelled = "to measure without labels, leave them out"
    if len(unknown) == len(labels.names) and not hints:
        return (
            f"{labels.where} has {len(everything)} {_PLURALS[labels.kind]}, {labels.model} has {labels.classes} "
            f"classes: name the {labels.kind}s by the model's classes (WordNet ids or names for ImageNet-1k), or have "
            f"one for every class in the order of the classes (found: {few(unknown)}); {unlabelled}"
        )
    return (
        f"{len(unknown)} of {len(everything)} {_PLURALS[labels.kind]} of {labels.where} mean no class of "
        f"{labels.model}: {few(unknown)}{hints}; rename or remove them; {unlabelled}"
    )


@dataclass(frozen=True)
class _Labels:
    """Names of which some mean no class, sorted as text, and what their order would say."""

    names: tuple[str, ...]
    classes: int
    model: str
    where: str
    kind: str

    @property
    def are_numbers(self) -> bool:
        return all(re.fullmatch(r"[0-9]{1,9}", name) for name in self.names)

    @property
    def by_number(self) -> tuple[str, ...]:
        return tuple(sorted(self.names, key=_natural))

    def certain(self, none_known: bool) -> tuple[dict[str, int], str]:
        """Returns the only meaning that they can have."""
        numbers = sorted(map(int, self.names)) if self.are_numbers else []
        sorts_alike = self.names == self.by_number and len(self.names) == self.classes
        if numbers == list(range(self.classes)) and none_known and (self.kind == "label" or sorts_alike):
            return self.indices()
        if sorts_alike and none_known and not (numbers and self.kind == "label"):
            return self.ranked(self.names, "their order decides")
        if numbers and len(set(numbers)) != self.classes:
            self.indices()  # refuses those that are none
        if numbers:
            what = f"are {len(numbers)} number(s) from {numbers[0]} to {numbers[-1]}"
        else:
            what = "are no names of its classes"
        if len(self.names) == self.classes and not sorts_alike:
            place = next(i for i, pair in enumerate(zip(self.names, self.by_number, strict=True)) if pair[0] != pair[1])
            what += (
                f", and sorted as text {shown(self.names[place])} is class {place}, sorted by number "
                f"{shown(self.by_number[place])}"
            )
        choices = "; ".join(f"{name} ({words})" for name, words in LABEL_ORDERS.items())
        raise ImageError(
            f"what the {self.kind}s of {self.where} mean is not certain: {self.model} has {self.classes} classes, and "
            f"they {what}. Say it with --label-order (on the page, Order of labels; from Python, "
            f"Sampling(label_order=...)): {choices}; or name the {self.kind}s by the classes. Take 1 off numbers of "
            "some classes that count from 1"
        )

    def numbered(self) -> tuple[dict[str, int], str]:
        """Returns what they mean sorted by number, or as class indices where numbers are fewer than the classes."""
        if self.are_numbers and len(set(map(int, self.names))) < self.classes:
            return self.indices()
        return self.ranked(self.by_number, "they are sorted by number")

    def indices(self) -> tuple[dict[str, int], str]:
        """Returns numbers as class indices."""
        indices = {name: int(name) for name in self.names}
        outside = [index for index in sorted(indices.values()) if index >= self.classes]
        if outside:
            raise ImageError(
                f"the {self.kind} {outside[0]} of {self.where} is no class of {self.model}, whose classes are 0 to "
                f"{self.classes - 1}"
            )
        return indices, f"the {self.kind}s are numbers and are taken as class indices, counted from 0"

    def ranked(self, everything: Sequence[str], how: str) -> tuple[dict[str, int], str]:
        """Returns the places of names in an order with one for every class."""
        if len(everything) != self.classes:
            raise ImageError(
                f"{self.where} has {len(everything)} {_PLURALS[self.kind]}, {self.model} has {self.classes} classes: "
                f"an order says what they mean only where there is one for every class; name them by the model's "
                "classes"
            )
        positions = {name: position for position, name in enumerate(everything)}
        return {name: positions[name] for name in self.names}, (
            f"the {self.kind}s are not named as the model's classes: {how}, from {shown(everything[0])} for class 0 to "
            f"{shown(everything[-1])} for class {len(everything) - 1}"
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """Returns what sorts names as timm's `natural_key` does: letters without case, numbers by value."""
    parts = re.split(r"([0-9]+)", name.lower())
    digits = [part.lstrip("0") if place % 2 else part for place, part in enumerate(parts)]
    return [(len(part) if place % 2 else 0, part) for place, part in enumerate(digits)]


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name.casefold())


class ClassNames:
    """A model's classes by name. Labels come before first names, first names before other synonyms."""

    def __init__(self, model: Model) -> None:
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
        """Return the class of which a name looks like a misspelling, in words."""
        plain = _plain(name)
        if len(plain) < _LEAST_MISSPELT or split_word(name):
            return None
        for level in self.levels:
            close = difflib.get_close_matches(plain, level, n=1, cutoff=_MISSPELT)
            if close:
                return self.described(min(level[close[0]]))
        return None
