"""Which images calibrate and which evaluate: disjoint, stratified, decided by a seed and by names alone.

All functions work on positions in a list of names, so that neither the operating system nor the order in which a
source lists its files can change the choice. scikit-learn's stratified splits draw by position: with one file more all
others would be drawn anew, and no class would take turns.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from mixqvit.errors import ImageError
from mixqvit.images.images import check_limit
from mixqvit.images.labels import LABEL_ORDERS

__all__ = [
    "CALIBRATION_LIMIT",
    "EVALUATION_LIMIT",
    "Drawn",
    "Sampling",
    "by_turns",
    "draw_calibration",
    "draw_evaluation",
    "in_order",
]

CALIBRATION_LIMIT = 128
"""Calibration images at most: several batches of the 32 that one calibration uses."""

CALIBRATION_MULTIPLE = 32
"""Calibration images are a multiple of this where there are enough: seeds and batches then have full choices."""

EVALUATION_LIMIT = 1000
"""Evaluation images of a source other than the digits unless told otherwise: an accuracy to about one percent."""

_CANDIDATES = 10  # every tenth image of a list is a candidate for calibration


@dataclass(frozen=True)
class Sampling:
    """Which images to take, and how their labels are read.

    Attributes:
        evaluation: Images to evaluate on; None for all of them, but of a source other than the digits at most
            `EVALUATION_LIMIT`.
        seed: Another seed, other images.
        label_order: What labels mean that are no names of the model's classes, one of `labels.LABEL_ORDERS`; None
            where that is certain, otherwise they are refused.
        follow_links: Whether links that lead out of a folder are followed, as its owner may want; never for a browser.
    """

    evaluation: int | None = None
    seed: int = 0
    label_order: str | None = None
    follow_links: bool = False

    def __post_init__(self) -> None:
        """Raise ImageError where a value is not possible."""
        if self.evaluation is not None:
            check_limit(self.evaluation)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ImageError(f"the seed of a sample is a whole number of 0 or more, not {self.seed!r}")
        if self.label_order is not None and self.label_order not in LABEL_ORDERS:
            raise ImageError(f"there is no order of labels {self.label_order!r}; choose {', '.join(LABEL_ORDERS)}")


@dataclass(frozen=True)
class Drawn:
    """A choice of images.

    Attributes:
        chosen: Positions in the order in which the images are used.
        reserve: Per label, the positions that stand in for one that turns out unreadable, next one first.
        how: How they were chosen, one sentence.
    """

    chosen: tuple[int, ...]
    reserve: dict[Hashable, list[int]]
    how: str


def by_turns(labels: Sequence[Hashable]) -> list[int]:
    """Returns positions such that classes take turns: the first of every class, then the second, ..."""
    seen: dict[Hashable, int] = defaultdict(int)
    turns = []
    for position, label in enumerate(labels):
        turns.append((seen[label], position))
        seen[label] += 1
    return [position for _, position in sorted(turns)]


def in_order(names: Sequence[str], labels: Sequence[Hashable], seed: int) -> list[int]:
    """Returns all positions in the order that the choices start from.

    With seed 0 it is that of the names. With another one the classes are shuffled, and the files inside each.
    """
    if seed == 0:
        return sorted(range(len(names)), key=names.__getitem__)
    classes = {label: _digest(seed, "class", str(label)) for label in set(labels)}
    return sorted(range(len(names)), key=lambda i: (classes[labels[i]], _digest(seed, "file", names[i]), names[i]))


def draw_calibration(labels: Sequence[Hashable], order: Sequence[int], every: int = _CANDIDATES) -> Drawn:
    """Chooses calibration images.

    Every tenth image is a candidate, classes take turns, and at most `CALIBRATION_LIMIT` are taken, rounded down to a
    multiple of `CALIBRATION_MULTIPLE`. Where far more classes than that have candidates, the classes taken are
    spread over the list: of a sorted ImageNet the first ones would all be fishes and birds.

    Args:
        labels: Per position; unlabelled images have None.
        order: Positions as `in_order` returns them, of the images that may calibrate.
        every: Distance of the candidates in `order`; 1 where no image of the list is for evaluation.
    """
    candidates = list(order[::every])
    turns = [candidates[turn] for turn in by_turns(_strata(labels, candidates))]
    count = min(CALIBRATION_LIMIT, len(turns))
    if count > CALIBRATION_MULTIPLE:
        count -= count % CALIBRATION_MULTIPLE
    first_turn = len(set(_strata(labels, candidates)))
    spread = max(1, first_turn // CALIBRATION_LIMIT)
    turns = [*turns[:first_turn:spread], *turns[first_turn:]]
    chosen = tuple(turns[:count])
    waiting = [*turns[count:], *order]
    return Drawn(chosen, _reserve(labels, waiting, chosen), f"{len(chosen)} of {len(candidates)} candidates")


def draw_evaluation(
    names: Sequence[str], labels: Sequence[Hashable], order: Sequence[int], wanted: int, seed: int
) -> Drawn:
    """Chooses evaluation images among those that do not calibrate.

    If there are more than wanted, every class gives the same number or one more or less, as far as it has them; the
    seed decides which classes give one more, and which of their images are taken. Classes take turns.

    Args:
        names: Per position.
        labels: Per position; unlabelled images have None.
        order: Positions as `in_order` returns them, of the images that may evaluate.
        wanted: How many.
        seed: Of the draw.
    """
    strata = _strata(labels, order)
    if len(order) <= wanted:
        chosen = tuple(order[turn] for turn in by_turns(strata))
        return Drawn(chosen, {}, f"all {len(chosen)} images that are not for calibration")
    by_lot = sorted(order, key=lambda position: (_digest(seed, "draw", names[position]), names[position]))
    if len(set(strata)) == len(order):  # nothing to stratify: each is alone in its class, or none has a label
        why = "one image a class" if labels[order[0]] is not None else "they have no labels"
        taken = set(by_lot[:wanted])
        how = f"{wanted} of {len(order)} images that are not for calibration, at random ({why}), seed {seed}"
    else:
        members: dict[Hashable, list[int]] = defaultdict(list)
        for position in by_lot:
            members[labels[position]].append(position)
        quotas = _quotas({label: len(positions) for label, positions in members.items()}, wanted, seed)
        taken = {position for label, positions in members.items() for position in positions[: quotas[label]]}
        least, most = min(quotas.values()), max(quotas.values())
        each = f"{most}" if least == most else f"{least} to {most}"
        how = (
            f"{wanted} of {len(order)} images that are not for calibration, stratified ({each} of each of "
            f"{len(members)} classes), seed {seed}"
        )
    kept = [position for position in order if position in taken]
    chosen = tuple(kept[turn] for turn in by_turns(_strata(labels, kept)))
    return Drawn(chosen, _reserve(labels, by_lot, chosen), how)


def _strata(labels: Sequence[Hashable], positions: Sequence[int]) -> list[Hashable]:
    """Returns the label of each position; an image without one is a class of its own."""
    return [("alone", position) if labels[position] is None else labels[position] for position in positions]


def _reserve(labels: Sequence[Hashable], waiting: Sequence[int], chosen: Sequence[int]) -> dict[Hashable, list[int]]:
    used = set(chosen)
    reserve: dict[Hashable, list[int]] = defaultdict(list)
    for position in waiting:
        if position not in used:
            used.add(position)
            reserve[labels[position]].append(position)
    return dict(reserve)


def _quotas(sizes: dict[Hashable, int], wanted: int, seed: int) -> dict[Hashable, int]:
    """Returns how many images each class gives: one level for all that have so many, then one more by lot."""
    counts = Counter(sizes.values())
    level, given, rising = 0, 0, len(sizes)
    while given + rising <= wanted:
        level, given = level + 1, given + rising
        rising -= counts[level]
    quotas = {label: min(size, level) for label, size in sizes.items()}
    able = [label for label, size in sizes.items() if size > level]
    for label in sorted(able, key=lambda label: _digest(seed, "more", str(label)))[: wanted - given]:
        quotas[label] += 1
    return quotas


def _digest(seed: int, purpose: str, name: str) -> bytes:
    """A random number that is the same on every machine and for every version of any random generator."""
    return hashlib.sha256(f"mixqvit {purpose} {seed}/{name}".encode("utf-8", "surrogateescape")).digest()
