"""The runner on toy stages: pieces saved, joined, claimed, resumed, timed, on engines, with their needs first."""

import threading
from dataclasses import dataclass, field, replace
from itertools import islice
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from mixqvit.engines.this_process import ThisProcess
from mixqvit.stages import runner
from mixqvit.stages.forms import STATE, TENSORS, State, Tensors
from mixqvit.stages.items import ImageRanges, Named
from mixqvit.stages.stage import STAGES, Stage, Step, registered
from mixqvit.stages.store import Store


@dataclass
class Toy:
    """As much of a study as the runner needs."""

    store: Store
    engine: Any = field(default_factory=ThisProcess)
    memory: dict = field(default_factory=dict)
    weights: str = "weights"
    computed: list = field(default_factory=list)

    identity: ClassVar[str] = "0" * 16

    @property
    def graph(self):
        return SimpleNamespace(fingerprint=self.weights)

    calibration_images = SimpleNamespace(fingerprint="images")

    def remembered(self, name, compute):
        return self.memory.setdefault(name, compute())

    def result(self, stage):
        return runner.result(self, stage)


@dataclass(frozen=True)
class Letters(Stage):
    """Upper-case letters, a row each."""

    name = "letters"
    version = 1

    letters: str = "abc"

    def items(self, study):
        return Named(tuple(self.letters), "letter {name}")

    def compute(self, study, missing):
        for letter in missing:
            study.computed.append(letter)
            yield letter, letter.upper()

    def join(self, study, pieces):
        return "".join(pieces[letter] for letter in self.letters)


@dataclass(frozen=True)
class Twice(Stage):
    """Needs the letters; computed by tasks of two."""

    name = "twice"
    version = 1

    letters: str = "abc"

    def needs(self, study):
        return (Letters(self.letters),)

    def items(self, study):
        return Named(tuple(self.letters))

    def work(self, study):
        whole = study.result(Letters(self.letters))
        return lambda: lambda task: ((letter, 2 * whole[self.letters.index(letter)]) for letter in task)

    def tasks(self, study, missing):
        return ["".join(missing[start : start + 2]) for start in range(0, len(missing), 2)]

    def join(self, study, pieces):
        return [pieces[letter] for letter in self.letters]


@dataclass(frozen=True)
class Squares(Stage):
    """Tensors of a few images each, and all so far in every progress."""

    name = "squares"
    version = 1
    form = TENSORS
    shows_all = True

    def items(self, study):
        return ImageRanges(10)

    def compute(self, study, missing):
        for gap in missing:
            for start in range(gap.start, gap.stop, 4):
                part = range(start, min(start + 4, gap.stop))
                study.computed.append(part)
                yield part, torch.tensor([image**2 for image in part])

    def written(self, piece):
        return Tensors({"squares": piece})

    def read(self, name, written):
        return written.tensors["squares"]

    def join(self, study, pieces):
        return torch.cat([pieces[name] for name in self.items(study).in_order(pieces)]).tolist()

    def is_remembered(self, study):
        return False


@dataclass(frozen=True)
class Sums(Stage):
    """Goes on from a state."""

    name = "sums"
    version = 1
    form = STATE

    def items(self, study):
        return Named(("1", "2", "3"))

    def compute(self, study, missing):
        state = runner.state(study, self)
        total = 0 if state is None else int(state["total"])
        for name in missing:
            yield Step(0.5, "half way")
            total += int(name)
            study.computed.append(name)
            yield name, total

    def written(self, piece):
        return State(piece, {"total": torch.tensor(piece)})

    def join(self, study, pieces):
        return list(pieces.values())


@pytest.fixture
def toy(tmp_path) -> Toy:
    return Toy(Store(tmp_path))


def again(toy: Toy, **changed) -> Toy:
    """Another session on the same store."""
    return replace(toy, memory={}, computed=[], **changed)


def test_pieces_are_saved_one_by_one_and_the_last_progress_has_the_result(toy):
    steps = list(runner.steps(toy, Letters()))
    assert [(step.done, step.total, step.doing, step.piece) for step in steps[:-1]] == [
        (1, 3, "letter a", "A"),
        (2, 3, "letter b", "B"),
        (3, 3, "letter c", "C"),
    ]
    assert [step.finished for step in steps] == [False] * 3 + [True]
    assert {step.stage for step in steps} == {"letters"}
    assert steps[-1].result == runner.result(toy, Letters()) == "ABC"
    assert list(runner.steps(again(toy), Letters())) == steps[-1:]


def test_a_stopped_session_is_gone_on_from(toy):
    list(islice(runner.steps(toy, Letters()), 2))
    later = again(toy)
    assert runner.saved(later, Letters()) == {"a": "A", "b": "B"}
    assert runner.progress(later, Letters()).done == 2
    assert runner.whole(later, Letters()) is None
    assert runner.result(later, Letters()) == "ABC" == runner.whole(later, Letters())
    assert later.computed == ["c"]


def test_what_vanishes_midway_is_computed_again(toy):
    steps = runner.steps(toy, Letters())
    next(steps)
    toy.store.clear()
    *_, last = steps
    assert last.result == "ABC"
    assert toy.computed == ["a", "b", "c", "a"]


def test_needs_come_first_under_their_own_name(toy):
    steps = list(runner.steps(toy, Twice()))
    stages = [step.stage for step in steps]
    assert stages == ["letters"] * 4 + ["twice"] * 4
    assert [step.finished for step in steps] == [False] * 7 + [True]
    assert steps[-1].result == ["AA", "BB", "CC"]
    list(runner.steps(again(toy), Twice("ab")))
    assert [step.stage for step in runner.steps(again(toy), Twice())] == ["twice"]


def test_keys_tell_apart_whatever_decides_numbers(toy, monkeypatch):
    stage = Twice()
    keys = [runner.key(toy, stage), runner.key(toy, Letters()), runner.key(toy, Twice("abcd"))]
    keys.append(runner.key(again(toy, weights="others"), stage))
    with monkeypatch.context() as patch:
        patch.setattr(Twice, "version", 2)
        keys.append(runner.key(toy, stage))
    with monkeypatch.context() as patch:
        patch.setattr(Letters, "version", 2)  # of a stage that it needs
        keys.append(runner.key(toy, stage))
    with monkeypatch.context() as patch:
        patch.setitem(runner.LIBRARIES, "torch", "0.4")
        keys.append(runner.key(toy, stage))
    with monkeypatch.context() as patch:
        patch.setattr(Twice, "libraries", ("captum",))
        keys.append(runner.key(toy, stage))
    with monkeypatch.context() as patch:
        patch.setattr(Twice, "depends_on", lambda self, study: [4])
        keys.append(runner.key(toy, stage))
    assert len(set(keys)) == len(keys) == 9
    assert runner.key(toy, stage) == keys[0]


def test_ranges_of_images_are_joined_in_order_and_gaps_are_filled(toy):
    list(islice(runner.steps(toy, Squares()), 2))
    own = runner.key(toy, Squares())
    toy.store.delete(own, "tensors/images 0 to 4")
    later = again(toy)
    steps = list(runner.steps(later, Squares()))
    assert later.computed == [range(0, 4), range(8, 10)]
    assert [(step.done, step.total, step.doing) for step in steps[:-1]] == [
        (8, 10, "8 of 10 images"),
        (10, 10, "10 of 10 images"),
    ]
    assert steps[0].piece == [image**2 for image in range(8)]
    assert steps[-1].result == [image**2 for image in range(10)]


def test_a_damaged_file_is_computed_again(toy):
    runner.result(toy, Squares())
    file = sorted((toy.store.folder / "tensors").rglob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:20])
    later = again(toy)
    assert runner.result(later, Squares()) == [image**2 for image in range(10)]
    assert later.computed == [range(4, 8)]


def test_a_state_is_gone_on_from_and_steps_count_as_parts_of_a_piece(toy):
    seen = [(step.done, step.doing) for step in islice(runner.steps(toy, Sums()), 3)]
    assert seen == [(0.5, "half way"), (1, "1"), (1.5, "half way")]
    later = again(toy)
    assert runner.result(later, Sums()) == [1, 3, 6]
    assert later.computed == ["2", "3"]
    runner.forget(later, Sums())
    assert runner.saved(later, Sums()) == {} and runner.state(later, Sums()) is None


def test_a_session_watches_while_another_works_and_goes_on_when_it_stops(toy, monkeypatch):
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_LOOKS", 0)
    working = runner.steps(toy, Letters())
    next(working)
    other = again(toy)
    watching = runner.steps(other, Letters())
    assert next(watching).done == 1
    next(working)
    assert next(watching).done == 2
    working.close()
    *_, last = watching
    assert last.result == "ABC"
    assert other.computed == ["c"]


def test_sessions_never_compute_the_same_piece(toy, monkeypatch):
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_LOOKS", 0.001)
    sessions = [again(toy) for _ in range(3)]
    threads = [threading.Thread(target=runner.result, args=(session, Letters("abcdefgh"))) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(letter for session in sessions for letter in session.computed) == list("abcdefgh")


def test_a_failing_stage_gives_its_claim_back(toy, monkeypatch):
    def fail(self, study, missing):
        yield "a", "A"
        raise ValueError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(Letters, "compute", fail)
        with pytest.raises(ValueError, match="broken"):
            list(runner.steps(toy, Letters()))
    assert runner.result(again(toy), Letters()) == "ABC"


def test_time_is_counted_over_sessions(toy, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(runner.time, "perf_counter", lambda: next(clock))
    list(islice(runner.steps(toy, Letters()), 2))
    assert runner.seconds_spent(toy, Letters()) == 2
    runner.result(again(toy), Letters())
    assert runner.seconds_spent(toy, Letters()) == 3
    runner.forget(toy, Letters())
    assert runner.seconds_spent(toy, Letters()) == runner.progress(toy, Letters()).done == 0


@dataclass(frozen=True)
class Elsewhere:
    """An engine that notes its tasks."""

    tasks: list
    is_here: ClassVar[bool] = False

    def results(self, work, tasks):
        self.tasks.extend(tasks)
        return ThisProcess().results(work, tasks)


def test_stages_run_side_by_side_on_an_engine_but_for_what_another_session_is_at(toy, monkeypatch):
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_LOOKS", 0)
    runner.result(toy, Letters("abcd"))
    stages = [Pairs("ab"), Pairs("cd"), Pairs("bd")]
    claim = toy.store.claim(runner.key(toy, stages[1]), "work")
    there = again(toy, engine=Elsewhere([]))
    steps = runner.steps_together(there, stages)
    seen = [next(steps) for _ in range(6)]
    assert there.engine.tasks == [(0, "ab"), (2, "bd")]
    assert [step.done for step in seen[:4]] == [1, 2, 3, 4]
    toy.store.release(claim)
    *_, last = steps
    assert last.result == [["AA", "BB"], ["CC", "DD"], ["BB", "DD"]]
    here = again(toy)
    assert list(runner.steps_together(here, stages))[-1].result == last.result


@dataclass(frozen=True)
class Pairs(Twice):
    """Some of four letters, all by the same work."""

    name = "pairs of letters"

    def needs(self, study):
        return (Letters("abcd"),)

    def work(self, study):
        whole = study.result(Letters("abcd"))
        return lambda: lambda task: ((letter, 2 * whole["abcd".index(letter)]) for letter in task)


def test_processes_that_compute_hand_in_hand_claim_nothing_and_save_once(toy, monkeypatch):
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_LOOKS", 0.001)
    claim = toy.store.claim(runner.key(toy, Letters()), "work")
    monkeypatch.setattr(Letters, "companions", lambda self: (1, 2))
    second = again(toy)
    steps = runner.steps(second, Letters())
    assert [next(steps).done for _ in range(3)] == [1, 2, 3]
    assert second.computed == list("abc")
    assert runner.saved(toy, Letters()) == {}
    monkeypatch.setattr(Letters, "companions", lambda self: (0, 2))
    assert runner.result(toy, Letters()) == "ABC"
    assert list(steps)[-1].result == "ABC"  # the second one has waited for what the first one saves
    assert second.computed == list("abc")
    toy.store.release(claim)


def test_no_two_stages_have_a_name():
    class Other(Letters):
        name = "calibration"

    import mixqvit.quantization.calibration_stage  # noqa: F401

    with pytest.raises(ValueError, match="two stages 'calibration'"):
        registered(Other)
    assert registered(STAGES["calibration"]) is STAGES["calibration"]
