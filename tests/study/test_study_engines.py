"""A study's sweeps and evaluations on every engine: the same numbers, and nothing computed twice."""

import os
import signal

import psutil
import pytest

from mixqvit.criteria.pairwise import PairPlan, Pairs
from mixqvit.engines.processes import Processes
from mixqvit.engines.ray_cluster import RayCluster
from mixqvit.stages import runner
from mixqvit.stages.store import Store
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study

SETTINGS = Settings(recipe="min-max", calibration_images=4, analysis_images=8, evaluation_images=40)

# Sums in another order where a worker's one thread stands against several here.
TOLERANCE = 1e-4


@pytest.fixture
def studies(tmp_path):
    """Two studies of the same, with a store each."""
    return [Study("digits_vit", settings=SETTINGS, store=Store(tmp_path / name)) for name in ("here", "there")]


@pytest.mark.parametrize(
    "engine", [pytest.param(Processes(2), id="processes"), pytest.param(RayCluster(workers=2), id="ray")]
)
@pytest.mark.slow
def test_every_engine_measures_the_same_numbers(studies, engine, monkeypatch):
    if isinstance(engine, RayCluster):
        pytest.importorskip("ray", reason="Ray is not installed")
    here, there = studies[0], studies[1].with_engine(engine)
    *_, cells = there.sensitivity_steps()
    for layer, row in here.sensitivity().items():
        assert cells.result[layer] == pytest.approx(row, rel=TOLERANCE, abs=1e-9)
    pairs = [(here.layers[0].name, here.layers[1].name), (here.layers[0].name, here.layers[5].name)]
    pairs.append((here.layers[3].name, here.layers[4].name))
    monkeypatch.setattr(PairPlan, "of", lambda study: PairPlan(tuple(pairs), (2, 8), 4))
    *_, expected = runner.steps(here, Pairs())
    *_, found = runner.steps(there, Pairs())
    assert found.result.keys() == expected.result.keys()
    for pair, terms in expected.result.items():
        assert found.result[pair] == pytest.approx(terms, rel=TOLERANCE, abs=1e-6)
    *_, expected = here.evaluations.many_steps([3, 32])
    *_, found = there.evaluations.many_steps([3, 32])
    for one, other in zip(expected.result, found.result, strict=True):
        assert other.predicted == one.predicted
        assert other.image_kl == pytest.approx(one.image_kl, rel=TOLERANCE, abs=1e-6)


@pytest.mark.slow
def test_a_killed_worker_process_ends_no_sweep_and_nothing_saved_is_computed_again(studies):
    there = studies[1].with_engine(Processes(2))
    for _ in there.calibration_steps():
        pass
    cells, killed = [], False
    for step in there.sensitivity_steps():
        if step.stage == "sensitivity" and not step.finished:
            cells.append((step.piece.layer, step.piece.bits))
        if not killed and len(cells) == 70:
            workers = [child for child in psutil.Process().children() if "popen_loky" in " ".join(child.cmdline())]
            os.kill(workers[-1].pid, signal.SIGKILL)
            killed = True
    assert killed
    assert len(cells) == len(set(cells)) >= 7 * len(there.layers) - 1
    assert there.sensitivity().keys() == {layer.name for layer in there.layers}


@pytest.mark.slow
def test_a_sweep_goes_on_elsewhere_from_what_was_saved_here(studies):
    here = studies[0]
    steps = here.sensitivity_steps()
    for step in steps:
        if step.stage == "sensitivity" and step.done == 100:
            steps.close()
            break
    elsewhere = here.with_engine(Processes(1))
    found = [step.done for step in elsewhere.sensitivity_steps()]
    assert found[0] == 101
    assert elsewhere.sensitivities.progress().done == 7 * len(here.layers)


def test_another_engine_shares_what_is_in_memory(studies):
    here = studies[0]
    there = here.with_engine(Processes(1))
    assert there.graph is here.graph
    assert here.engine.is_here
    assert not there.engine.is_here
    there.calibration()
    assert here.calibration() is there.calibration()


@pytest.mark.slow
def test_images_that_are_saved_with_gaps_between_are_not_measured_again(studies):
    here = studies[0]
    key = runner.key(here, here.evaluations.stage(4))
    whole = here.evaluate(4)
    for item in here.store.items(key):
        here.store.delete(key, item)
    part = {"predicted": list(whole.predicted[10:30]), "image_kl": list(whole.image_kl[10:30])}
    here.store.put(key, "images 10 to 30", part)
    there = here.with_engine(Processes(1))
    *_, last = there.evaluations.many_steps([4])
    assert last.result[0].predicted == whole.predicted
    assert set(here.store.items(key)) == {"images 10 to 30", "images 0 to 10", "images 30 to 40"}
