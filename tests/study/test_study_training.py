"""Training in a study: saved epoch by epoch, found again, measured, packed, forgotten."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from mixqvit.allocation.costs import cost
from mixqvit.errors import BitWidthError, PackingError, TrainingError
from mixqvit.files.open_studies import open_study
from mixqvit.network.bits import FULL_PRECISION
from mixqvit.packing.model import load_packed, packed_source
from mixqvit.stages.store import Store
from mixqvit.study.library import StudyDescription, forget_study, known_studies
from mixqvit.study.study import Study
from mixqvit.study.trained_study import keep_trained
from mixqvit.training.settings import TrainingSettings
from tests.small import SMALL
from tests.training.digits import FEW, few_training_digits

QUICK = TrainingSettings(epochs=2, batch=32)


@pytest.fixture(autouse=True)
def fewer_images(monkeypatch):
    few_training_digits(monkeypatch)


@pytest.fixture
def study(first_results, tmp_path) -> Study:
    return Study("digits_swin", settings=SMALL(), store=first_results.put("digits_swin", Store(tmp_path)))


def finish(steps):
    *_, last = steps
    return last.result


def test_first_and_last_layer_keep_eight_bits_outside_the_average(study):
    bits = study.first_last_uniform(3)
    assert bits["patch_embed.proj"] == bits["head.fc"] == (8, 8)
    assert {pair for name, pair in bits.items() if name not in ("patch_embed.proj", "head.fc")} == {(3, 3)}
    assert study.training.inner_average_bits(bits) == 3
    assert study.training.inner_average_bits(bits | {"layers.1.blocks.0.mlp.fc1": (8, 8)}) > 3
    for wrong in (1, 9):
        with pytest.raises(BitWidthError, match="2 to 8"):
            study.first_last_uniform(wrong)
        with pytest.raises(BitWidthError, match="2 to 8"):
            study.first_last_request(wrong)


def test_a_mixed_request_costs_no_more_than_uniform_bits_of_the_average(study):
    for bits in (2, 3):
        uniform = cost(study.layers, study.first_last_uniform(bits), study.storage)
        request = study.first_last_request(bits)
        assert (request.budget.size_bytes, request.budget.bitops) == (uniform.size_bytes, uniform.bitops)
        finish(study.score_steps("sensitivity"))
        found = study.allocate(study.first_last_request(bits), strategy="sensitivity")
        assert found.cost.size_bytes <= uniform.size_bytes and found.cost.bitops <= uniform.bitops
        assert found.bits["head.fc"] == (8, 8)
    low, middle, high = (study.first_last_request(average).budget.size_bytes for average in (2, 2.5, 3))
    assert abs(middle - (low + high) / 2) <= 1


def test_a_training_is_saved_and_found_again_by_another_study(study):
    bits = study.first_last_uniform(2)
    assert study.training.progress(bits, QUICK).done == 0 and study.training.all() == ()
    with pytest.raises(TrainingError, match="not finished"):
        study.trained(bits, QUICK)
    steps = list(study.training_steps(bits, QUICK))
    assert steps[-1].result.finished and steps[-1].done == steps[-1].total == 2
    assert any("epoch 2 of 2, loss" in step.doing for step in steps)
    again = Study("digits_swin", settings=SMALL(), store=Store(study.store.folder))
    assert [step.done for step in again.training_steps(bits, QUICK)] == [2]  # nothing is trained twice
    pixels = study.evaluation_images.pixels
    assert torch.equal(again.trained(bits, QUICK)(pixels), study.trained(bits, QUICK)(pixels))
    (saved,) = again.training.all()
    assert (saved.bits, saved.settings, saved.source, saved.average_bits) == (bits, QUICK, None, 2)
    assert again.training.progress(bits, replace(QUICK, seed=1)).done == 0
    found = finish(again.evaluate_trained_steps(bits, QUICK))
    assert found == study.training.saved_evaluation(bits, QUICK) and found.images == 100
    assert found.top1 == steps[-1].result.epochs[steps[-1].result.best - 1].top1


def test_a_stopped_training_goes_on_with_the_same_weights(study, tmp_path):
    bits = study.first_last_uniform(2)
    straight = finish(study.training_steps(bits, QUICK))
    other = Study("digits_swin", settings=SMALL(), store=Store(tmp_path / "other"))
    steps = other.training_steps(bits, QUICK)
    for step in steps:
        if step.piece is not None and len(step.piece.epochs) == 1:
            break
    list(islice(steps, 2))  # two steps into the second epoch
    steps.close()
    assert other.training.progress(bits, QUICK).done == 1
    resumed = finish(other.training_steps(bits, QUICK))
    assert [replace(e, seconds=0) for e in resumed.epochs] == [replace(e, seconds=0) for e in straight.epochs]
    pixels = study.evaluation_images.pixels
    assert torch.equal(other.trained(bits, QUICK)(pixels), study.trained(bits, QUICK)(pixels))


@pytest.mark.parametrize("method", ["lsq", "ofq"])
def test_a_trained_model_is_packed_loaded_and_measured_like_any_other(study, tmp_path, method):
    settings = TrainingSettings(method, epochs=1)
    bits = study.first_last_uniform(3) | {"layers.1.blocks.1.mlp.fc2": (5, FULL_PRECISION)}
    finish(study.training_steps(bits, settings))
    path = tmp_path / "trained.safetensors"
    size = study.pack_trained(bits, path, settings).size_bytes
    assert size == path.stat().st_size == study.training.cost(bits, settings).size_bytes
    loaded, trained = load_packed(path), study.trained(bits, settings)
    pixels = study.evaluation_images.pixels
    assert torch.equal(loaded(pixels), trained(pixels))
    assert packed_source(path).fingerprint == study.graph.fingerprint
    measured = finish(study.evaluate_trained_steps(bits, settings))
    assert finish(study.packing.evaluate_steps(path)).predicted == measured.predicted
    with pytest.raises(PackingError, match="was not made from"):
        list(Study("digits_vit", settings=SMALL(), store=study.store).packing.evaluate_steps(path))
    # Size and work of merged query and key are counted.
    more = study.training.cost(bits, settings).bitops > cost(study.layers, bits, study.storage).bitops
    assert more == (method == "ofq")
    assert {found.operand for found in study.training.step_sizes(bits, settings)} == {
        "weight",
        "input",
        "first",
        "second",
    }


def test_trained_weights_are_kept_as_a_study_that_every_page_can_open(study):
    bits, settings = study.first_last_uniform(2), TrainingSettings(epochs=1)
    finish(study.training_steps(bits, settings))
    name = keep_trained(study, StudyDescription("digits_swin"), bits, settings)
    assert name == "digits_swin lsq 2 bits"
    opened = open_study(known_studies(study.store)[name], SMALL(), study.store)
    trained = study.trained(bits, settings)
    pixels = study.evaluation_images.pixels
    torch.testing.assert_close(opened.graph(pixels), trained.graph(pixels))
    weight = opened.graph.weight(opened.graph.by_name["layers.1.blocks.0.mlp.fc1"])
    assert all(len(row.unique()) <= 4 for row in weight)  # two bits
    assert opened.graph.fingerprint != study.graph.fingerprint
    (weights,) = (study.store.folder / "trained").iterdir()
    again = keep_trained(study, StudyDescription("digits_swin"), bits, settings, name="mine")
    forget_study(study.store, name)
    assert weights.exists()  # `mine` reads it too
    forget_study(study.store, again)
    assert not weights.exists()
    merged = replace(settings, method="ofq")
    finish(study.training_steps(bits, merged))
    with pytest.raises(TrainingError, match="merges query and key"):
        keep_trained(study, StudyDescription("digits_swin"), bits, merged)


def test_a_forgotten_training_begins_again(study):
    bits = study.first_last_uniform(2)
    settings = replace(QUICK, epochs=1)
    first = finish(study.training_steps(bits, settings))
    finish(study.evaluate_trained_steps(bits, settings))
    study.training.forget(bits, settings)
    assert study.training.all() == () and study.training.progress(bits, settings).done == 0
    assert study.training.saved_evaluation(bits, settings) is None
    with pytest.raises(TrainingError):
        study.trained(bits, settings)
    again = finish(study.training_steps(bits, settings))
    assert replace(again.epochs[0], seconds=0) == replace(first.epochs[0], seconds=0)


def test_other_training_images_than_it_began_with_are_refused(study, monkeypatch):
    bits = study.first_last_uniform(2)
    steps = study.training_steps(bits, QUICK)
    while not next(steps).piece:
        pass
    steps.close()
    few_training_digits(monkeypatch, FEW - 32)
    other = Study("digits_swin", settings=SMALL(), store=study.store)
    with pytest.raises(TrainingError, match="not those that this training began with"):
        list(other.training_steps(bits, QUICK))
    assert study.training.progress(bits, QUICK).done == 1


def test_nothing_quantized_is_nothing_to_train(study):
    with pytest.raises(BitWidthError, match="Nothing is quantized"):
        list(study.training_steps({}, QUICK))


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path):
    script = """
import hashlib, pytest
from mixqvit import Study
from mixqvit.training.settings import TrainingSettings
from tests.training.digits import few_training_digits
few_training_digits(pytest.MonkeyPatch())
study, settings = Study("digits_swin"), TrainingSettings("ofq", epochs=2)
bits = study.first_last_uniform(2)
for step in study.training_steps(bits, settings):
    print(step.doing, flush=True)
logits = study.trained(bits, settings)(study.evaluation_images.pixels)
print(hashlib.sha256(logits.numpy().tobytes()).hexdigest())
"""

    def start(folder: Path) -> subprocess.Popen:
        environment = os.environ | {"MIXQVIT_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)

    straight = start(tmp_path / "straight").communicate()[0].splitlines()[-1]
    killed = start(tmp_path / "killed")
    for line in killed.stdout:
        if line.startswith("epoch 2 of 2, loss"):
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    began = time.monotonic()
    resumed = start(tmp_path / "killed").communicate()[0].splitlines()
    assert time.monotonic() - began < 600  # the dead process's claim does not block
    assert not any(line.startswith("epoch 1 of 2, loss") for line in resumed)
    assert resumed[-1] == straight and len(straight) == 64
