"""What a study saves: nothing is lost when it stops, nothing is computed twice, by one session or several."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import mixqvit
from mixqvit.criteria.sensitivity import sweep
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.study.study import Study
from tests.small import SMALL


@pytest.fixture(scope="module")
def study(first_results, tmp_path_factory):
    store = mixqvit.Store(tmp_path_factory.mktemp("store"))
    return Study("digits_vit", settings=SMALL(), store=first_results.put("digits_vit", store))


@pytest.fixture(scope="module")
def swin(first_results, tmp_path_factory):
    store = mixqvit.Store(tmp_path_factory.mktemp("swin"))
    return Study("digits_swin", settings=SMALL(), store=first_results.put("digits_swin", store))


@pytest.mark.slow
def test_another_study_on_the_same_store_computes_nothing(study, monkeypatch):
    study.sensitivity()
    study.relevance()
    study.evaluate(3)
    again = Study("digits_vit", settings=SMALL(), store=study.store)
    for stage in (
        "relevance.stages.importance_steps",
        "quantization.calibration_stage.calibrate_steps",
        "criteria.sensitivity.stage.sensitivity_steps",
        "quantization.evaluation_stage.answer_steps",
    ):
        monkeypatch.setattr(f"mixqvit.{stage}", lambda *_, **__: pytest.fail("computed again"))
    assert again.sensitivity() == study.sensitivity()
    assert again.relevance() == study.relevance()
    assert again.evaluate(3) == study.evaluate(3)


def test_other_settings_find_nothing_stale(study):
    study.relevance()
    other = Study("digits_vit", settings=SMALL(calibration_images=5), store=study.store)
    assert other.saved_sensitivity() == []
    changed = Study("digits_vit", settings=SMALL(outlier_factor=4.0), store=study.store)
    assert changed.graph.fingerprint != study.graph.fingerprint


@pytest.mark.slow
def test_stopping_between_pieces_loses_none_and_repeats_none(tmp_path, swin):
    store = mixqvit.Store(tmp_path)
    first = Study("digits_swin", settings=SMALL(), store=store)
    seen = []
    for step in first.sensitivity_steps():
        if step.stage == "sensitivity":
            seen.append((step.piece.layer, step.piece.bits))
        if len(seen) == 20:
            break
    second = Study("digits_swin", settings=SMALL(), store=store)
    assert [(cell.layer, cell.bits) for cell in second.saved_sensitivity()] == seen
    later = list(second.sensitivity_steps())
    assert later[-1].done == later[-1].total == len(second.layers) * len(BIT_WIDTHS)
    cells = [(step.piece.layer, step.piece.bits) for step in later[:-1] if step.stage == "sensitivity"]
    assert not set(cells) & set(seen)
    assert len(cells) + len(seen) == later[-1].total
    for name, row in swin.sensitivity().items():
        assert second.sensitivity()[name] == pytest.approx(row, rel=1e-4, abs=1e-9)


@pytest.mark.slow
def test_two_sessions_never_compute_the_same_cell_twice(tmp_path, monkeypatch, swin):
    store = mixqvit.Store(tmp_path)
    measured = []

    def counted(*arguments):
        for cell in sweep.sensitivity_steps(*arguments):
            measured.append((cell.layer, cell.bits))
            yield cell

    monkeypatch.setattr("mixqvit.criteria.sensitivity.stage.sensitivity_steps", counted)
    monkeypatch.setattr("mixqvit.stages.runner.SECONDS_BETWEEN_LOOKS", 0.01)
    studies = [Study("digits_swin", settings=SMALL(), store=store) for _ in range(2)]
    threads = [threading.Thread(target=study.sensitivity) for study in (*studies, studies[0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(measured) == len(set(measured)) == len(swin.layers) * len(BIT_WIDTHS)
    assert studies[0].sensitivity() == studies[1].sensitivity()


@pytest.mark.slow
def test_a_session_goes_on_when_the_one_that_worked_is_stopped(tmp_path, monkeypatch, swin):
    store = mixqvit.Store(tmp_path)
    monkeypatch.setattr("mixqvit.stages.runner.SECONDS_BETWEEN_LOOKS", 0.01)
    first, second = (Study("digits_swin", settings=SMALL(), store=store) for _ in range(2))
    working = first.sensitivity_steps()
    while not first.saved_sensitivity():
        next(working)
    waiting = second.sensitivity_steps()
    seen = next(step for step in waiting if step.stage == "sensitivity")  # calibration is reported first
    assert seen.done == len(first.saved_sensitivity())
    next(working)
    assert next(waiting).done == seen.done + 1  # it watches
    working.close()
    *_, last = waiting
    assert last.result == second.sensitivity()
    assert len(second.saved_sensitivity()) == len(swin.layers) * len(BIT_WIDTHS)


@pytest.mark.slow
def test_another_metric_computes_nothing_and_another_baseline_only_the_sweep(swin, monkeypatch):
    swin.sensitivity()
    monkeypatch.setattr(
        "mixqvit.quantization.calibration_stage.calibrate_steps", lambda *_, **__: pytest.fail("calibrated again")
    )
    again = Study("digits_swin", settings=SMALL(metric="mse"), store=swin.store)
    monkeypatch.setattr(
        "mixqvit.criteria.sensitivity.stage.sensitivity_steps", lambda *_: pytest.fail("measured again")
    )
    assert again.sensitivity() == swin.sensitivity(metric="mse") != swin.sensitivity()
    for name, row in swin.sensitivity_intervals().items():
        for bits, (low, high) in row.items():
            assert low <= swin.sensitivity()[name][bits] <= high
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        swin.sensitivity(baseline=8)


SWEEP = """
import mixqvit, sys
from mixqvit import Settings, Study
settings = Settings(calibration_images=8, analysis_images=8, evaluation_images=100)
study = Study("digits_swin", settings=settings, store=mixqvit.Store(sys.argv[1]))
for steps in (study.relevance_steps, study.sensitivity_steps, lambda: study.evaluate_steps(4)):
    for step in steps():
        print(step.doing, flush=True)
"""


@pytest.mark.slow
def test_an_evaluation_whose_rows_vanish_midway_is_measured_again(tmp_path, study):
    first = Study("digits_vit", settings=SMALL(), store=mixqvit.Store(tmp_path))
    steps = first.evaluate_steps(3)
    next(step for step in steps if step.piece is not None and step.piece.images == 64)
    first.store.clear()
    *_, last = steps
    assert last.result == study.evaluate(3)
    assert first.saved_evaluation(3) == study.evaluate(3)


@pytest.mark.slow
def test_a_sweep_of_another_session_does_not_block_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr("mixqvit.stages.runner.SECONDS_BETWEEN_LOOKS", 0.01)
    shared = Study("digits_vit", settings=SMALL(), store=mixqvit.Store(tmp_path))
    working = shared.sensitivity_steps("weights")
    while not shared.saved_sensitivity("weights"):
        next(working)
    untied = {layer.name: (4, 4) if layer.is_matmul else (4, 8) for layer in shared.layers}
    waiting = threading.Thread(target=shared.predicted_harm, args=(untied,))
    waiting.start()
    waiting.join(0.5)
    taken = []
    other = threading.Thread(target=lambda: taken.append(shared._lock.acquire(timeout=20)) or shared._lock.release())
    other.start()
    other.join()
    assert taken == [True]  # the one that waits does not hold what the one that works needs
    working.close()
    waiting.join()


def test_relevance_whose_rows_vanish_midway_is_computed_again(tmp_path, study):
    first = Study("digits_vit", settings=SMALL(), store=mixqvit.Store(tmp_path))
    steps = first.relevance_steps()
    next(steps)
    first.store.clear()
    list(steps)
    again = Study("digits_vit", settings=SMALL(), store=first.store)
    assert again.relevance().shares == study.relevance().shares


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_with_the_next_image(tmp_path, study):
    store = mixqvit.Store(tmp_path)
    first = Study("digits_vit", settings=SMALL(), store=store)
    partial = next(step.piece for step in first.evaluate_steps(3) if step.piece is not None)
    assert partial.images == 64
    later = [step.piece or step.result for step in Study("digits_vit", settings=SMALL(), store=store).evaluate_steps(3)]
    assert [result.images for result in later if result is not None] == [100, 100]
    assert later[-1].correct == study.evaluate(3).correct
    assert later[-1].kl == pytest.approx(study.evaluate(3).kl)


@pytest.mark.parametrize(
    ("lines", "delay"),
    [
        pytest.param(1, 0.0, marks=pytest.mark.slow),  # every one starts a process and computes a study
        pytest.param(8, 0.01, marks=pytest.mark.slow),
        pytest.param(70, 0.037, marks=pytest.mark.slow),
        pytest.param(317, 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_where_it_was(tmp_path, swin, lines, delay):
    """SIGKILL during relevance, calibration, the sweep and the evaluation; what was printed is saved."""
    root = Path(mixqvit.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, tmp_path], stdout=subprocess.PIPE, text=True, cwd=root, bufsize=1
    )
    printed = [process.stdout.readline() for _ in range(lines)]
    time.sleep(delay)  # so that not every kill comes right after a piece was saved
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert all(printed)
    resumed = Study("digits_swin", settings=SMALL(), store=mixqvit.Store(tmp_path))
    saved = {(cell.layer, cell.bits) for cell in resumed.saved_sensitivity()}
    for line in printed:
        if line.endswith(" bits\n"):
            name, bits = line.removesuffix(" bits\n").split(" at ")
            assert (name, int(bits)) in saved
    for name, row in swin.sensitivity().items():
        assert resumed.sensitivity()[name] == pytest.approx(row, rel=1e-4, abs=1e-9)
    assert resumed.relevance().mean == pytest.approx(swin.relevance().mean, rel=1e-4)
