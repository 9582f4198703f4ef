"""The progress of a whole made of parts: it never goes back, and what a part needs first does not move it."""

from mixqvit.engines.progress import Progress
from mixqvit.study.composite import Composite, awaited, without_results


def steps(*named, result="done"):
    for stage, done, total in named:
        yield Progress(done, total, f"{done} of {total}", stage=stage, piece="piece")
    yield Progress(total, total, stage, result, stage)


def run(generator):
    """Return what a generator yields, and what it returns."""
    found = []
    try:
        while True:
            found.append(next(generator))
    except StopIteration as stop:
        return found, stop.value


def test_stages_of_a_part_count_alike_and_others_not_at_all():
    whole = Composite("comparison", 2, lambda: "so far")
    work = steps(("calibration", 3, 4), ("scores", 1, 2), ("evaluation", 5, 10))
    found, result = run(whole.part(work, "first", ["scores", "evaluation"]))
    assert result == "done"
    assert [step.done for step in found] == [0, 25, 75, 100]
    assert {(step.total, step.stage, step.piece, step.result) for step in found} == {
        (200, "comparison", "so far", None)
    }
    assert found[0].doing == "first: 3 of 4"
    assert whole.progress().done == 100
    whole.leave_out(1)
    last = whole.last()
    assert (last.done, last.total, last.result, last.finished) == (100, 100, "so far", True)


def test_work_that_other_work_needs_shows_neither_results_nor_pieces():
    quiet = list(without_results(steps(("scores", 1, 2))))
    found, result = run(awaited(steps(("scores", 1, 2))))
    assert quiet == found and len(found) == 2
    assert all(step.result is step.piece is None for step in found)
    assert result == "done"
