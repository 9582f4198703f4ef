"""Names of classes: whole for lists and hovers, short for axes, titles and captions.

ImageNet's names are lists of synonyms, such as "great white shark, white shark, man-eater, man-eating shark"; two
classes may share one.
"""

from collections import Counter
from collections.abc import Sequence

__all__ = ["choices", "class_labels", "first_synonym", "numbered", "short_names", "shortened"]

_LONGEST = 18
_AT_A_GLANCE = 20  # classes


def first_synonym(name: str) -> str:
    """Return what a name begins with, up to the first comma; the whole name where that is nothing."""
    return name.split(",")[0].strip() or name


def short_names(names: Sequence[str]) -> list[str]:
    """Return one short name per class, the first synonym; classes that share one get their number added."""
    firsts = [first_synonym(name) for name in names]
    counts = Counter(firsts)
    return [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(firsts)]


def class_labels(names: Sequence[str]) -> list[str]:
    """Return one whole name per class; classes that share it get their number added."""
    counts = Counter(names)
    return [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names)]


def choices(probabilities: Sequence[float], label: int | None, first: int = 5) -> list[int]:
    """Return all classes in the order of a list of choices: those that this image may show, then by number.

    A list that is read at a glance keeps its order.

    Args:
        probabilities: Of all classes, `[classes]`.
        label: The image's own class, None without labels.
        first: Likeliest classes that come first.
    """
    classes = range(len(probabilities))
    if len(classes) <= _AT_A_GLANCE:
        return list(classes)
    likeliest = sorted(classes, key=lambda index: -probabilities[index])[:first]
    return list(dict.fromkeys([*([] if label is None else [label]), *likeliest, *classes]))


def numbered(names: Sequence[str]) -> list[str]:
    """Return one entry per class for a list of choices, such as `2 · great white shark, …`.

    Number and all synonyms can be searched for. Where a name is its class's number, as of the digits, it stands alone.
    """
    return [name if name == str(index) else f"{index} · {name}" for index, name in enumerate(names)]


def shortened(name: str, most: int = _LONGEST) -> str:
    """Cut the first synonym of a name to so many characters; the whole name belongs into the hover."""
    first = first_synonym(name)
    return first if len(first) <= most else f"{first[: most - 1].rstrip()}…"
