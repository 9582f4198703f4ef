"""The Training page: nothing trained, training, stopped, finished, refused, failed."""

import json
import os
from pathlib import Path

import pytest
import torch
from streamlit.testing.v1 import AppTest

from mixqvit.errors import UnsupportedOperationError
from mixqvit.files.open_studies import open_study
from mixqvit.stages.store import Store
from mixqvit.study.evaluation import Evaluations
from mixqvit.study.library import find_study
from mixqvit.study.study import Study
from mixqvit.training.settings import TrainingSettings
from mixqvit.views.numbers import megabytes, percent
from pages.parts.common import NEXT_STUDY
from pages.parts.training_work import WANTED
from tests.pages.studies import keep_small_study

LABELLED, BARE = "trained with labels", "trained without labels"


@pytest.fixture(scope="module", autouse=True)
def studies(tmp_path_factory):
    keep_small_study(LABELLED, tmp_path_factory.mktemp("labelled"), True)
    keep_small_study(BARE, tmp_path_factory.mktemp("bare"), False)


@pytest.fixture
def study() -> Study:
    """The labelled study, as the page opens it."""
    return open_study(find_study(Store(), LABELLED))


def open_training(open_page, seed: int, model: str = LABELLED, epochs: int = 2) -> AppTest:
    """Open the page; every test has a seed of its own, so that none finds what another one trained."""
    at = open_page("training", model)
    at.number_input(key="train_epochs").set_value(epochs)
    at.number_input(key="train_seed").set_value(seed).run()
    assert not at.exception
    return at


def words(at: AppTest) -> str:
    assert not at.exception
    return "\n".join(found.value for kind in (at.markdown, at.caption, at.info, at.warning, at.error) for found in kind)


def measured(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def traces(at: AppTest, place: int) -> dict[str, dict]:
    return {found["name"]: found for found in json.loads(at.get("plotly_chart")[place].proto.spec)["data"]}


def table(at: AppTest):
    return at.dataframe[0].value.set_index("model")


def press(at: AppTest, key: str) -> None:
    at.button(key=key).click().run()
    assert not at.exception


def test_nothing_trained_shows_what_there_is_to_beat(open_page, study):
    at = open_training(open_page, 100)
    full, post = study.evaluate(32), study.evaluate(study.first_last_uniform(2))
    found = measured(at)
    assert found["Top-1, full precision"] == percent(full.top1)
    assert found["Top-1, post-training"] == percent(post.top1)
    assert found["Top-1, trained"] == "–"
    cost = study.training.cost(study.first_last_uniform(2), TrainingSettings())
    assert found["Size when trained"] == megabytes(cost.size_bytes)
    assert "Nothing is trained yet with these settings: 2 epochs to train." in words(at)
    assert "stay at 8 bits and are outside the average" in words(at)
    assert at.button(key="train").label == "Train"
    assert set(traces(at, 0)) == {"post-training", "training images", "calibration images"}
    assert "What happened to the step sizes" not in [found.value for found in at.subheader]
    assert table(at).loc["uniform 2 bits, post-training", "KL (nats)"] == post.kl


def test_training_shows_its_epochs_step_sizes_and_what_it_measures(open_page, study):
    at = open_training(open_page, 1)
    at.segmented_control(key="train_method").set_value("ofq").run()
    press(at, "train")
    bits, settings = study.first_last_uniform(2), TrainingSettings("ofq", 2, 1)
    run = study.training.run(bits, settings)
    assert run.finished
    evaluation = study.training.saved_evaluation(bits, settings)
    assert measured(at)["Top-1, trained"] == percent(evaluation.top1)
    assert traces(at, 0)["calibration images"]["y"] == [epoch.validation_loss for epoch in run.epochs]
    assert traces(at, 1)["evaluation images"]["y"] == [100 * epoch.top1 for epoch in run.epochs]
    assert traces(at, 0)["kept"]["x"] == [run.best]
    assert ":material/check_circle: Trained." in words(at)
    assert f"The weights of epoch {run.best} are kept" in words(at)
    assert f"{run.images} of the 60 images" in words(at)
    steps = study.training.step_sizes(bits, settings)
    inputs = [found for found in steps if found.operand == "input"]
    assert traces(at, 2)["inputs"]["y"] == [found.after[0] / found.before[0] for found in inputs]
    at.segmented_control(key="train_operands").set_value("activations").run()
    assert sum(traces(at, 3)["after training"]["y"]) == sum(found.operand != "weight" for found in steps)
    row = table(at).loc["uniform 2 bits, ofq"]
    assert (row["KL (nats)"], row["epochs"], row["seed"], row["shown"]) == (evaluation.kl, "2", 1, True)
    assert row["size (MB)"] == study.training.cost(bits, settings).size_bytes / 1e6
    assert at.button(key="train").disabled
    assert any(found.label.startswith("Packed trained model") for found in at.get("download_button"))


def test_saved_epochs_are_gone_on_from_and_can_be_forgotten(open_page, study):
    bits, settings = study.first_last_uniform(2), TrainingSettings("lsq", 2, 2)
    steps = study.training_steps(bits, settings)
    first = next(step.piece for step in steps if step.piece is not None)
    steps.close()
    at = open_training(open_page, 2)
    assert "1 of 2 epochs saved." in words(at)
    assert at.button(key="train").label == "Go on training"
    assert measured(at)["Top-1, trained"] == percent(first.epochs[0].top1)
    assert table(at).loc["uniform 2 bits, lsq", "epochs"] == "1 of 2"
    press(at, "train")
    run = study.training.run(bits, settings)
    assert run.epochs[0] == first.epochs[0]
    assert run.finished
    press(at, "train again")
    again = study.training.run(bits, settings)
    assert again.finished
    assert [epoch.loss for epoch in again.epochs] == [epoch.loss for epoch in run.epochs]
    assert [epoch.seconds for epoch in again.epochs] != [epoch.seconds for epoch in run.epochs]


def test_trained_weights_become_a_study_of_their_own(open_page, study):
    *_, last = study.training_steps(study.first_last_uniform(2), TrainingSettings("lsq", 1, 9))
    at = open_training(open_page, 9, epochs=1)
    press(at, "keep trained")
    assert not at.error
    name = at.session_state[NEXT_STUDY]  # which the sidebar opens; a page that is tested by itself has none
    kept = open_study(find_study(Store(), name)).model.module.state_dict()
    expected = study.training.weights(study.first_last_uniform(2), last.result.settings)
    assert kept.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[own]) for own, tensor in kept.items())


def test_merged_weights_are_refused_as_a_study(open_page, study):
    list(study.training_steps(study.first_last_uniform(2), TrainingSettings("ofq", 1, 9)))
    at = open_training(open_page, 9, epochs=1)
    at.segmented_control(key="train_method").set_value("ofq").run()
    press(at, "keep trained")
    assert "another architecture" in at.error[0].value
    assert NEXT_STUDY not in at.session_state


def test_stop_ends_training_and_other_controls_do_too(open_page, study):
    at = open_training(open_page, 3)
    name = f"stopped Training on {LABELLED} 1"
    at.session_state[WANTED] = "another training"
    at.run()
    assert WANTED not in at.session_state
    at.session_state[name] = True
    at.run()
    assert name not in at.session_state
    assert study.training.run(study.first_last_uniform(2), TrainingSettings("lsq", 2, 3)) is None
    assert not at.button(key="train").disabled


@pytest.mark.slow
def test_mixed_bits_keep_size_and_bitops_of_the_average(open_page, study):
    at = open_training(open_page, 4, epochs=1)
    at.segmented_control(key="train_allocation").set_value("mixed").run()
    request = study.first_last_request(2.5)
    allocation = study.allocate(request)
    assert f"{study.training.inner_average_bits(allocation.bits):.2f} bits on average" in words(at)
    assert any(name.startswith("mixed 2.") for name in table(at).index)
    press(at, "train")
    run = study.training.run(allocation.bits, TrainingSettings("lsq", 1, 4))
    assert run.finished
    at.number_input(key="train_average").set_value(3.0).run()
    assert at.button(key="train").label == "Train"
    assert not at.button(key="train").disabled


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train_learning_rate", 0.0, "learning rate is above 0"),
        ("train_learning_rate", 1.5, "at most 1, not 1.5"),
        ("train_batch", 5000, "1 to 4,096 images, not 5000"),
        ("train_source", "/etc", "lies outside of the folders"),
    ],
)
def test_wrong_values_get_a_message(open_page, key, value, message):
    at = open_training(open_page, 5)
    control = at.text_input(key=key) if key == "train_source" else at.number_input(key=key)
    control.set_value(value).run()
    assert message in at.error[0].value
    assert not at.exception
    next(button for button in at.button if button.label == "Reset").click().run()
    assert not at.error


def test_a_training_that_fails_says_why_and_keeps_the_page(open_page):
    empty = Path(os.environ["MIXQVIT_CACHE"]) / "no images here"
    empty.mkdir(exist_ok=True)
    at = open_training(open_page, 6)
    at.text_input(key="train_source").set_value(str(empty)).run()
    press(at, "train")
    assert "no images here" in at.error[0].value
    assert len(table(at)) >= 2
    assert not at.button(key="train").disabled
    at.text_input(key="train_source").set_value("").run()
    assert not at.error


def test_a_method_that_cannot_serve_the_model_is_refused_with_its_reason(open_page, monkeypatch):
    def refuse(_):
        raise UnsupportedOperationError("Query and key of blocks.0.attn pass a norm, so they cannot be merged.")

    monkeypatch.setattr("mixqvit.study.training.merge_query_key", refuse)
    at = open_training(open_page, 7, BARE)  # a study whose merged graph no other test has asked for
    at.segmented_control(key="train_method").set_value("ofq").run()
    assert "cannot be merged" in at.warning[0].value
    assert at.button(key="train").disabled
    assert measured(at)["Size when trained"] == "–"


def test_a_link_may_call_the_method_by_its_earlier_name(open_page):
    at = open_training(open_page, 7, BARE)
    at.query_params["train_recipe"] = "ofq"
    at.run()
    assert not at.exception
    assert at.segmented_control(key="train_method").value == "ofq"
    assert "train_recipe" not in at.query_params
    at.segmented_control(key="train_method").set_value("lsq").run()
    assert at.segmented_control(key="train_method").value == "lsq"


def test_without_labels_agreement_is_shown_and_called_so(open_page):
    at = open_training(open_page, 8, BARE, epochs=1)
    press(at, "train")
    found = measured(at)
    assert found["Agreement, trained"].endswith("%")
    assert not any("top-1" in label.lower() for label in found)
    assert "top-1 (%)" not in table(at)
    assert traces(at, 1)["evaluation images"]["y"]
    assert "agreement" in words(at)


def test_measuring_that_takes_minutes_waits_for_a_click(open_page, monkeypatch):
    monkeypatch.setattr(Evaluations, "by_itself", lambda _: False)
    monkeypatch.setattr(Evaluations, "estimate", lambda _: 240.0)
    at = open_page("training", LABELLED)
    at.segmented_control(key="train_bits").set_value(7).run()
    label = at.button(key="measure before training").label
    assert label.startswith("Measure ")
    assert label.endswith("post-training on 12 images, about 4 min") or "about 8 min" in label
    assert measured(at)["Top-1, post-training"] == "…"
    press(at, "measure before training")
    assert measured(at)["Top-1, post-training"].endswith("%")
