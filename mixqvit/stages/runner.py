"""The one runner of all long work: claims between sessions, saving, timing, engines and progress are written here.

Every finished piece is saved before anybody hears of it. If a session stops, the next one goes on from what it saved;
while one works, others watch.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any

import timm
import torch

from mixqvit.engines.base import Task, Work
from mixqvit.engines.progress import Progress
from mixqvit.stages.context import Context
from mixqvit.stages.stage import Stage, Step
from mixqvit.stages.store import Store, fingerprint

__all__ = [
    "LIBRARIES",
    "forget",
    "key",
    "progress",
    "ready",
    "result",
    "saved",
    "seconds_spent",
    "so_far",
    "state",
    "steps",
    "steps_together",
    "whole",
]

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_RENEWALS = 30
"""Of a claim, while a piece is computed that reports steps."""

LIBRARIES = {"torch": torch.__version__.partition("+")[0], "timm": timm.__version__}
"""Versions that every result depends on; torch's without the device that it was built for."""

_WORK, _SECONDS = "work", "seconds"


def key(study: Context, stage: Stage) -> str:
    """Return what the pieces of a stage are saved under: a fingerprint of all that decides them."""
    return f"{study.identity}-{_digest(study, stage)}"


def _digest(study: Context, stage: Stage) -> str:
    libraries = LIBRARIES | {name: _version(name) for name in stage.libraries}
    sources = (study.graph.fingerprint, study.calibration_images.fingerprint)
    needs = [_digest(study, need) for need in stage.needs(study)]
    own = (stage.name, stage.version, asdict(stage), list(stage.depends_on(study)))
    return fingerprint(libraries, sources, own, needs)


_version = cache(version)  # which reads a file


def progress(study: Context, stage: Stage) -> Progress:
    """Return how much of a stage is saved, computing nothing."""
    done, total = stage.items(study).counted(stage.form.names(study.store, key(study, stage)))
    return Progress(done, total, stage.name, stage=stage.name)


def saved(study: Context, stage: Stage) -> dict[str, Any]:
    """Return the saved pieces of a stage by the names of their items, computing none."""
    return _load(study.store, stage, key(study, stage))


def _load(store: Store, stage: Stage, own: str) -> dict[str, Any]:
    return {name: stage.read(name, written) for name, written in stage.form.load(store, own).items()}


def so_far(study: Context, stage: Stage) -> Any:
    """Return what the saved pieces of a stage that `shows_all` make together; None where there are none."""
    pieces = saved(study, stage)
    return stage.join(study, pieces) if pieces else None


def whole(study: Context, stage: Stage) -> Any:
    """Return the result of a stage if all of it is saved, else None; nothing is computed."""
    pieces = saved(study, stage)
    return stage.join(study, pieces) if _is_whole(study, stage, pieces) else None


def state(study: Context, stage: Stage) -> Any:
    """Return the tensors that a stage of the form `STATE` goes on from; None where there are none."""
    return stage.form.tensors(study.store, key(study, stage))


def seconds_spent(study: Context, stage: Stage) -> float:
    """Return the computing time in seconds that the saved pieces of a stage took, over all sessions."""
    return study.store.rows(_seconds_key(key(study, stage))).get(_SECONDS, 0.0)


def forget(study: Context, stage: Stage) -> None:
    """Forget all that is saved of a stage, so that it begins again from the start."""
    own = key(study, stage)
    for one in (own, _seconds_key(own)):
        study.store.forget(one)
    study.memory.pop(own, None)


def result(study: Context, stage: Stage) -> Any:
    """Return the result of a stage, computing what is missing; remembered where the stage says so."""
    own = key(study, stage)
    if own in study.memory:
        return study.memory[own]
    *_, last = steps(study, stage)
    return last.result


def steps(study: Context, stage: Stage) -> Iterator[Progress]:
    """Compute what is missing of a stage, after the stages that it needs, piece by piece; the last one has the result.

    No lock is held meanwhile: others may need what this waits for.
    """
    own = key(study, stage)
    if own not in study.memory:
        pieces = _load(study.store, stage, own)
        while not _is_whole(study, stage, pieces):
            yield from _computed(study, stage, own)
            pieces = _load(study.store, stage, own)
        found = stage.join(study, pieces)
        if stage.is_remembered(study):
            found = study.remembered(own, lambda: found)
        done, total = stage.items(study).counted(pieces)
    else:
        found, (done, total) = study.memory[own], stage.items(study).counted(())
        done = total
    yield Progress(done, total, stage.name, found, stage.name)


def steps_together(study: Context, stages: Sequence[Stage]) -> Iterator[Progress]:
    """Compute what is missing of stages of the same work side by side on the engine; the last result is all of theirs.

    What another session is at is left to it, and waited for.
    """
    if not study.engine.is_here:
        yield from _side_by_side(study, stages)
    found = []
    for stage in stages:
        for step in steps(study, stage):
            yield replace(step, result=None)
        found.append(step.result)
    yield replace(step, result=found)


def _is_whole(study: Context, stage: Stage, names: Collection[str]) -> bool:
    done, total = stage.items(study).counted(names)
    return done == total


def ready(study: Context, stages: Iterable[Stage]) -> Iterator[Progress]:
    """Finish stages one after the other, where they are not, for work that needs them: without results and pieces."""
    for stage in stages:
        so_far = progress(study, stage)
        if key(study, stage) not in study.memory and so_far.done < so_far.total:
            yield from (replace(step, result=None, piece=None) for step in steps(study, stage))


def _computed(study: Context, stage: Stage, own: str) -> Iterator[Progress]:
    """Compute what is missing, or wait while another session, here or elsewhere, does."""
    rank, processes = stage.companions()
    yield from ready(study, stage.needs(study))
    worked = False
    while (so_far := progress(study, stage)).done < so_far.total:
        if processes > 1 and not worked:
            yield from _run(study, stage, own, None, is_saved=rank == 0)
            worked = True
            continue
        claim = None if processes > 1 else study.store.claim(own, _WORK)
        if claim is None:
            yield so_far
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        with _released(study.store, [claim]):
            yield from _run(study, stage, own, claim)


def _run(study: Context, stage: Stage, own: str, claim: str | None, is_saved: bool = True) -> Iterator[Progress]:
    items, work = stage.items(study), _Work(study.store, stage, own, claim, is_saved)
    missing = items.missing(work.names)
    if not missing:
        return
    pieces = _load(study.store, stage, own) if stage.shows_all else {}
    for step in work.timed(stage.compute(study, missing)):
        done, total = items.counted(work.names)
        if isinstance(step, Step):
            yield Progress(done + step.part, total, step.doing, stage=stage.name)
            continue
        name, piece = items.name(step[0]), step[1]
        work.save(name, piece)
        shown = piece
        if stage.shows_all:
            pieces[name] = piece
            shown = stage.join(study, pieces)
        done, total = items.counted(work.names)
        yield Progress(done, total, items.words(name, done), stage=stage.name, piece=shown)


class _Work:
    """The saving and timing of one stage's pieces, and the claim to them."""

    def __init__(self, store: Store, stage: Stage, own: str, claim: str | None, is_saved: bool = True) -> None:
        self.names = list(stage.form.names(store, own))
        self._store, self._stage, self._own, self._claim, self._is_saved = store, stage, own, claim, is_saved
        self._spent = store.rows(_seconds_key(own)).get(_SECONDS, 0.0)
        self._renewed = time.monotonic()

    def timed(self, found: Iterator[Any]) -> Iterator[Any]:
        """Yield what is computed, counting the time that it takes; a claim lasts as long as steps come."""
        while True:
            started = time.perf_counter()
            step = next(found, None)
            self.spend(time.perf_counter() - started)
            if step is None:
                return
            if self._claim is not None and time.monotonic() - self._renewed > SECONDS_BETWEEN_RENEWALS:
                self._store.renew(self._claim)
                self._renewed = time.monotonic()
            yield step

    def spend(self, seconds: float) -> None:
        """Count computing time; it is saved with the next piece."""
        self._spent += seconds

    def save(self, name: str, piece: Any, claims: Iterable[str] = ()) -> None:
        """Save a piece, and the time spent, renewing the claim and others."""
        if self._is_saved:
            rows = self._stage.form.save(self._store, self._own, name, self._stage.written(piece))
            claims = [claim for claim in (self._claim, *claims) if claim is not None]
            self._store.put_many([*rows, (_seconds_key(self._own), _SECONDS, self._spent)], claims)
        self.names.append(name)


def _side_by_side(study: Context, stages: Sequence[Stage]) -> Iterator[Progress]:
    yield from ready(study, dict.fromkeys(need for stage in stages for need in stage.needs(study)))
    claims: list[str] = []
    with _released(study.store, claims):
        works, tasks, finished, total = {}, [], 0, 0
        for place, (own, stage) in enumerate({key(study, stage): stage for stage in stages}.items()):
            items = stage.items(study)
            done, count = items.counted(stage.form.names(study.store, own))
            claim = study.store.claim(own, _WORK) if done < count else None
            if claim is None:
                continue
            claims.append(claim)
            works[place] = items, _Work(study.store, stage, own, claim)
            missing = items.missing(works[place][1].names)
            tasks += [(place, task) for task in stage.tasks(study, missing)]
            total += count
            finished += items.counted(works[place][1].names)[0]
        if not tasks:
            return
        started = time.perf_counter()
        for place, (item, piece) in study.engine.results(_Labelled(stages[0].work(study)), tasks):
            items, work = works[place]
            work.spend(time.perf_counter() - started)
            before = items.counted(work.names)[0]
            work.save(items.name(item), piece, claims)
            finished += items.counted(work.names)[0] - before
            yield Progress(finished, total, items.words(items.name(item), finished), stage=stages[0].name)
            started = time.perf_counter()


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Work whose tasks and results carry the number of the stage that they belong to."""

    work: Work

    def __call__(self) -> Callable[[tuple[int, Task]], Iterator[tuple[int, Any]]]:
        do = self.work()
        return lambda labelled: ((labelled[0], found) for found in do(labelled[1]))


@contextmanager
def _released(store: Store, claims: list[str]) -> Iterator[None]:
    """End the claims, whatever happens; more may be added meanwhile."""
    try:
        yield
    finally:
        for claim in claims:
            store.release(claim)


def _seconds_key(own: str) -> str:
    return f"{own} {_SECONDS}"
