"""From a source of images to the two sets that a study uses."""

import hashlib
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.images.decoding import decoder
from mixqvit.images.digits import load_digits
from mixqvit.images.images import Images, check_limit, normalized
from mixqvit.images.listing import UnreadableImage, few
from mixqvit.images.sampling import EVALUATION_LIMIT, Drawn, Sampling, draw_calibration, draw_evaluation, in_order
from mixqvit.images.sources import Prepared, check_source, left_out_notes, prepared_steps

if TYPE_CHECKING:
    from mixqvit.models.model import Model

__all__ = ["ImageSets", "Sample", "load_image_sets", "load_image_sets_steps", "load_images"]

UNREADABLE_PART = 10  # at most every tenth image may be unreadable ...
UNREADABLE_COUNT = 5  # ... but so many may be in any case

_ROUNDS = 4  # how often what stands in for an unreadable image may be unreadable itself


@dataclass(frozen=True)
class Sample:
    """Which images were taken, and why.

    Attributes:
        found: Image files in the source.
        skipped: Name and reason of those that could not be used.
        labelled: Whether the images have labels.
        classes: Classes that occur in the source; 0 without labels.
        how: How the evaluation images were chosen, one sentence.
        seed: Of the choice.
        notes: Sentences on how the source was understood.
    """

    found: int
    skipped: tuple[tuple[str, str], ...]
    labelled: bool
    classes: int
    how: str
    seed: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ImageSets:
    """The images of a study; calibration and evaluation have none in common.

    Attributes:
        calibration: Images that quantizers, relevance and sensitivity look at.
        evaluation: Images to measure on.
        sample: Which ones they are, and why.
        sampling: What they were loaded with.
    """

    calibration: Images
    evaluation: Images
    sample: Sample
    sampling: Sampling = field(default_factory=Sampling)


def load_image_sets(source: str | Path, model: "Model", sampling: Sampling | None = None) -> ImageSets:
    """Loads the images of a study; see `load_image_sets_steps`."""
    *_, last = load_image_sets_steps(source, model, sampling)
    return last.result


def load_image_sets_steps(source: str | Path, model: "Model", sampling: Sampling | None = None) -> Iterator[Progress]:
    """Loads calibration and evaluation images, with progress.

    The source is `digits` (the 1,797 handwritten digits of scikit-learn, 8x8 pixels enlarged to 32x32 (bicubic), with
    a fixed split); a folder with one sub-folder per class, or without sub-folders and labels; a .zip or .tar archive
    of such a folder, which is never unpacked to disk; a .csv of file,label; a .parquet file or a folder of them; or
    `hf:owner/name`, `hf:owner/name@split` on the Hugging Face hub.

    Classes are WordNet ids, class names, or one for each of the model's classes in their order; where it is not certain
    what labels such as numbers mean, `sampling` must say it. Where the source has
    splits, `train` calibrates and `validation` or else `test` evaluates; otherwise every tenth file of the sorted list
    is a candidate for calibration, and all others are for evaluation. Unreadable files are skipped, named and
    replaced by others of their class.

    Args:
        source: Where the images are.
        model: Whose preprocessing and classes to use.
        sampling: How many images, which, and how their labels are read; seed 0 and all (at most `EVALUATION_LIMIT`) by
            default.

    Yields:
        How far it is; the last result is the ImageSets.

    Raises:
        ImageError: The source is unknown or cannot be read, does not fit the model, or too many files are unreadable.
    """
    where, sampling = str(source), sampling or Sampling()
    if where == "digits":
        sets = _digit_sets(model, sampling)
        count = len(sets.calibration) + len(sets.evaluation)
        yield Progress(count, count, f"{count} digits", sets)
        return
    prepared = yield from prepared_steps(where, model, sampling)
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
    sets = ImageSets(
        reading.images(calibration, "calibration"),
        reading.images(evaluation, "evaluation"),
        sample,
        sampling,
    )
    count = len(calibration) + len(evaluation)
    yield Progress(count, count, f"{count} images", sets)


def load_images(
    source: str | Path = "digits",
    split: Literal["calibration", "evaluation", "training"] = "evaluation",
    model: "Model | None" = None,
    limit: int | None = None,
) -> Images:
    """Loads one split of a set of images, the same ones as `load_image_sets` with seed 0.

    The digits have 128 images for calibration, 500 for evaluation and 1,169 for training, always the same ones,
    balanced over the classes and mixed, so that the first few are of different classes.

    Args:
        source: `digits`, or any other source of `load_image_sets_steps`.
        split: Which part; `training` exists for the digits only.
        model: Whose preprocessing and classes to use; needed for all but the digits.
        limit: At most so many images: the first of the digits and of calibration images, otherwise a stratified
            sample.

    Raises:
        ImageError: Unknown source or split, too many unreadable images, images that do not fit the model, a limit
            below 1.
    """
    if split not in ("calibration", "evaluation", "training"):
        raise ImageError(f"unknown split {split!r}; choose calibration, evaluation or training")
    if limit is not None:
        check_limit(limit)
    if str(source) == "digits":
        images = load_digits(split, model)
        return images if limit is None else images.subset(limit)
    if model is None:
        check_source(str(source))
        raise ImageError(f"the images of {source} need a model to be prepared for; give the model as well")
    if split == "training":
        raise ImageError(f"images such as {source} have no training split; choose calibration or evaluation")
    if split == "evaluation":
        return load_image_sets(source, model, Sampling(evaluation=limit)).evaluation
    images = load_image_sets(source, model, Sampling(evaluation=1)).calibration
    return images if limit is None else images.subset(limit)


def _ordered(names: Sequence[str], prepared: Prepared, positions: Sequence[int], seed: int) -> list[int]:
    """Returns some of the positions in the order that choices start from."""
    order = in_order(
        [names[position] for position in positions], [prepared.labels[position] for position in positions], seed
    )
    return [positions[place] for place in order]


def _digit_sets(model: "Model", sampling: Sampling) -> ImageSets:
    calibration, evaluation = (load_digits(split, model) for split in ("calibration", "evaluation"))
    how = f"all {len(evaluation)} evaluation images of the digits"
    if sampling.evaluation is not None and sampling.evaluation < len(evaluation):
        if sampling.seed == 0:
            evaluation = evaluation.subset(sampling.evaluation)
            how = f"the first {len(evaluation)} evaluation images of the digits, classes taking turns"
        else:
            labels = evaluation.labels.tolist()
            order = in_order(evaluation.names, labels, sampling.seed)
            drawn = draw_evaluation(evaluation.names, labels, order, sampling.evaluation, sampling.seed)
            evaluation, how = evaluation.reordered(drawn.chosen), drawn.how
    sample = Sample(len(calibration) + len(evaluation), (), True, 10, how, sampling.seed, ())
    return ImageSets(calibration, evaluation, sample, sampling)


@dataclass
class _Reading:
    """Reads and decodes chosen images; what cannot be read is replaced by others of its class, up to a limit."""

    where: str
    prepared: Prepared
    model: "Model"
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
            for entry, data in self.prepared.source.read(entries):
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
