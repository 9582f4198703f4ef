"""Estimates of what is left to compute, with the time of a pass given."""

from dataclasses import replace

import pytest
import torch

import mixqvit
from mixqvit.quantization.recipes import RECIPES
from mixqvit.relevance.methods import METHODS
from mixqvit.study.estimate import RELEVANCE_PASSES, estimate, in_words
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study

SMALL = Settings(calibration_images=2, analysis_images=4, evaluation_images=6, importance="attnlrp", recipe="min-max")


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "seconds_per_image", lambda self, images=4: 1.0)
    study = Study("digits_vit", settings=SMALL, store=mixqvit.Store(tmp_path))
    study.device = torch.device("cpu")
    return study


def test_a_stage_is_so_many_passes_of_its_images(study):
    found = estimate(study)
    time = RECIPES["min-max"].calibration_time
    layers = len(study.layers)
    assert found.seconds["relevance"] == pytest.approx(4 * RELEVANCE_PASSES["attnlrp"])
    assert found.seconds["calibration"] == pytest.approx(2 * time.passes + layers * time.layer_seconds)
    assert found.seconds["sensitivity"] == pytest.approx(7 * layers * (4 * 0.55 + 0.007))
    assert found.seconds["full precision"] == pytest.approx(12.15)
    assert found.seconds["allocation"] == pytest.approx(6 * 1.3 + 2 * 10.6 + 0.005 * layers + 0.15)
    assert found.images == {
        "relevance": 4,
        "calibration": 2,
        "sensitivity": 4,
        "full precision": 6,
        "allocation": 6,
    }
    assert found.total == sum(found.seconds.values())
    assert str(found) == in_words(found.total)


def test_what_is_saved_is_not_counted(study, monkeypatch):
    before = estimate(study).seconds
    study.relevance()
    study.evaluate(32)
    for step in study.calibration_steps():
        if step.done == len(study.layers) // 2:
            break
    for step in study.sensitivity_steps():
        if step.stage == "sensitivity" and step.done == 28:
            break
    again = Study("digits_vit", settings=SMALL, store=study.store)
    again.device = study.device
    left = estimate(again).seconds
    assert left["relevance"] == left["full precision"] == left["calibration"] == 0
    assert left["sensitivity"] == pytest.approx(before["sensitivity"] * (1 - 28 / (7 * len(study.layers))))
    assert left["allocation"] == before["allocation"]


def test_half_a_calibration_leaves_half(study):
    whole = estimate(study).seconds["calibration"]
    for step in study.calibration_steps():
        if step.done == 19:
            break
    assert estimate(study).seconds["calibration"] == pytest.approx(whole * (1 - 19 / len(study.layers)))


def test_every_method_and_recipe_of_a_study_has_its_factor():
    assert set(RELEVANCE_PASSES) == set(METHODS)
    assert all((recipe.calibration_time is None) == (recipe.one_setting is not None) for recipe in RECIPES.values())


def test_methods_on_fewer_images_count_these_only(study):
    study.settings = replace(SMALL, importance="conductance", analysis_images=100)
    assert estimate(study).images["relevance"] == METHODS["conductance"].images


def test_nothing_is_said_about_a_gpu(study):
    study.device = torch.device("cuda:0")
    assert estimate(study) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a second"),
        (1.2, "about 1 second"),
        (12.6, "about 13 seconds"),
        (63, "about 65 seconds"),
        (89, "about 90 seconds"),
        (91, "about 2 minutes"),
        (180, "about 3 minutes"),
        (25.4 * 60, "about 25 minutes"),
        (5400, "about 1.5 hours"),
        (7300, "about 2 hours"),
        (10 * 3600, "about 10 hours"),
    ],
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == f"{words} on this machine"
