"""From the image files of a source to the two sets that a study uses."""

import hashlib
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.decoding import decoder
from mixqvit.images.image_sets import ImageSets, Sample
from mixqvit.images.images import Images, normalized
from mixqvit.images.listing import UnreadableImage, few
from mixqvit.images.preparing import Prepared, left_out_notes
from mixqvit.images.sampling import EVALUATION_LIMIT, Drawn, Sampling, draw_calibration, draw_evaluation, in_order
from mixqvit.models.model import Model

__all__ = ["drawn_steps"]

UNREADABLE_PART = 10  # at most every tenth image may be unreadable ...
UNREADABLE_COUNT = 5  # ... but so many may be in any case

_ROUNDS = 4  # how often what stands in for an unreadable image may be unreadable itself


def drawn_steps(
    where: str, prepared: Prepared, model: Model, sampling: Sampling
) -> Generator[Progress, None, ImageSets]:
    """Draw, read and decode calibration and evaluation images; yields how far that is, returns them.

    Args:
        where: The source.
        prepared: Its files.
        model: Whose preprocessing to use.
        sampling: How many evaluation images, and the seed of the draw.

    Raises:
        ImageError: There are too few images, or too many unreadable ones.
    """
    names = [entry.name for entry in prepared.entries]
    separate = prepared.calibration != prepared.evaluation

    ordered = _ordered(names, prepared, prepared.calibration, sampling.seed)
    drawn = draw_calibration(prepared.labels, ordered, **({"every": 1} if separate else {}))
    wanted = EVALUATION_LIMIT if sampling.evaluation is None else sampling.evaluation
    left = len(prepared.evaluation) - (0 if separate else len(drawn.chosen))
    if left < 1:
        raise ImageError(f"{where} holds only {len(names)} image(s), none left for evaluation; add more images")
    reading = _Reading(where, prepared, model, len(drawn.chosen) + min(wanted, left))
    calibration = yield from reading.chosen(drawn, "calibration", frozenset())

    used = {position for position, _ in calibration}
    others = [position for position in prepared.evaluation if position not in used | reading.failed]
    ordered = _ordered(names, prepared, others, sampling.seed)
    drawn = draw_evaluation(names, prepared.labels, ordered, wanted, sampling.seed)
    evaluation = yield from reading.chosen(drawn, "evaluation", frozenset(reading.digests))

    sample = Sample(
        found=len(names),
        skipped=(*prepared.skipped, *reading.skipped),
        labelled=prepared.labels[0] is not None,
        classes=len(set(prepared.labels) - {None}),
        how=drawn.how,
        seed=sampling.seed,
        notes=(*prepared.notes, *reading.notes(evaluation)),
    )
    return ImageSets(
        reading.images(calibration, "calibration"), reading.images(evaluation, "evaluation"), sample, sampling
    )


def _ordered(names: Sequence[str], prepared: Prepared, positions: Sequence[int], seed: int) -> list[int]:
    """Returns some of the positions in the order that choices start from."""
    order = in_order(
        [names[position] for position in positions], [prepared.labels[position] for position in positions], seed
    )
    return [positions[place] for place in order]


@dataclass
class _Reading:
    """Reads and decodes chosen images; what cannot be read is replaced by others of its class, up to a limit."""

    where: str
    prepared: Prepared
    model: Model
    planned: int
    done: int = 0
    failed: set[int] = field(default_factory=set)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    digests: set[bytes] = field(default_factory=set)

    def chosen(
        self, drawn: Drawn, split: str, excluded: frozenset[bytes]
    ) -> Generator[Progress, None, list[tuple[int, Tensor]]]:
        """Returns the positions that could be read, and their images; none whose content is excluded."""
        decode = decoder(self.model.preprocessing)
        positions = {self.prepared.entries[position]: position for position in range(len(self.prepared.entries))}
        reserve: dict[Hashable, list[int]] = {label: waiting[::-1] for label, waiting in drawn.reserve.items()}
        places = dict(enumerate(drawn.chosen))
        decoded: dict[int, tuple[int, Tensor]] = {}
        for _ in range(_ROUNDS):
            pending = {position: place for place, position in places.items() if place not in decoded}
            entries = [self.prepared.entries[position] for position in pending]
            for entry, data in self.prepared.files.read(entries):
                position = positions[entry]
                try:
                    if isinstance(data, UnreadableImage):
                        raise data
                    digest = hashlib.sha256(data).digest()
                    if digest in excluded:
                        self.repeated.append(entry.name)
                        continue
                    decoded[pending[position]] = position, decode(data)
                    if split == "calibration":
                        self.digests.add(digest)
                except UnreadableImage as problem:
                    self._skip(position, str(problem))
                    continue
                self.done += 1
                total = max(self.planned, self.done)
                yield Progress(self.done, total, f"{self.done} of {total} images")
            places = {place: position for place, position in places.items() if place in decoded} | {
                place: reserve[label].pop()
                for position, place in pending.items()
                if place not in decoded and reserve.get(label := self.prepared.labels[position])
            }
            if all(place in decoded for place in places):
                break
        if not decoded:
            reason = self._first_three() or "all others are copies of the calibration images; add other ones"
            raise ImageError(f"{self.where} has no image for {split} that can be used: {reason}")
        return [decoded[place] for place in sorted(decoded)]

    def _skip(self, position: int, reason: str) -> None:
        self.failed.add(position)
        self.skipped.append((self.prepared.entries[position].name, reason))
        allowed = max(UNREADABLE_COUNT, self.planned // UNREADABLE_PART)
        if len(self.failed) > allowed:
            raise ImageError(
                f"more than {allowed} of {self.planned} images of {self.where} cannot be read; the first are "
                f"{self._first_three()}; replace or remove them"
            )

    def _first_three(self) -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])

    def notes(self, evaluation: Sequence[tuple[int, Tensor]]) -> tuple[str, ...]:
        """Returns what a person should know about the reading, which ended with these evaluation images."""
        notes = left_out_notes(self.skipped)
        labels = self.prepared.labels
        measured = {labels[position] for position, _ in evaluation}
        dropped = sorted({labels[position] for position in self.failed} - measured - {None})
        if dropped:
            notes.append(
                f"{len(dropped)} class(es) are not measured, as their images cannot be read: "
                f"{few([self.model.class_names[label] for label in dropped])}"
            )
        if self.repeated:
            notes.append(
                f"{len(self.repeated)} image(s) that are also among the calibration images are left out of the "
                f"evaluation: {few(self.repeated)}"
            )
        return tuple(notes)

    def images(self, decoded: Sequence[tuple[int, Tensor]], split: str) -> Images:
        """Returns decoded images as a model reads them."""
        labels = [self.prepared.labels[position] for position, _ in decoded]
        mean, std = self.model.mean, self.model.std
        return Images(
            source=self.where,
            split=split,
            pixels=normalized(torch.stack([picture for _, picture in decoded]), mean, std),
            labels=None if labels[0] is None else torch.tensor(labels),
            class_names=self.model.class_names,
            names=tuple(self.prepared.entries[position].name for position, _ in decoded),
            mean=mean,
            std=std,
        )
