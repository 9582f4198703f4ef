"""All pages with a thousand classes, with images without labels, with some of the classes, and with refusals."""

import pytest
from streamlit.testing.v1 import AppTest

from mixqvit.errors import UnsupportedOperationError
from mixqvit.files.open_studies import open_study
from mixqvit.stages.store import Store
from mixqvit.study.estimate import Estimate
from mixqvit.study.evaluation import Evaluations
from mixqvit.study.library import find_study
from mixqvit.study.quantizers import Quantizers
from mixqvit.study.study import Study
from mixqvit.tasks.evaluation import Evaluation
from tests.pages.studies import CLASSES, SHARK, keep_small_study

LABELLED, BARE = "thousand classes", "no labels"


@pytest.fixture(scope="module", autouse=True)
def studies(tmp_path_factory):
    """Keep a study with labels, among the classes that occur, and one of the same model without labels."""
    keep_small_study(LABELLED, tmp_path_factory.mktemp("labelled"), True, within_classes=True)
    keep_small_study(BARE, tmp_path_factory.mktemp("bare"), False)


def words(at: AppTest) -> str:
    assert not at.exception
    return "\n".join(element.value for kind in (at.markdown, at.caption, at.info, at.warning) for element in kind)


def switch(at: AppTest, study: str) -> None:
    """Choose another study, as the sidebar does; a page opened by itself has none."""
    at.session_state["study"] = study
    at.run()


def measured(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def test_without_labels_the_budget_shows_agreement_and_calls_it_so(open_page):
    at = open_page("budget", BARE)
    found = measured(at)
    assert found["Agreement, full precision"] == "100.0\u00a0%"
    assert found["Agreement, mixed bits"].endswith("%")
    assert at.segmented_control(key="measure").options == ["Agreement with full precision", "KL divergence"]
    assert at.segmented_control(key="strategy_measure").options == ["Agreement", "KL divergence", "Predicted harm"]
    assert "| Agreement |" in words(at)
    assert not any("top-1" in label.lower() for label in found)
    assert "| Top-1" not in words(at)


def test_without_labels_no_metric_that_needs_them_is_offered(open_page):
    at = open_page("sensitivity", BARE)
    assert at.selectbox(key="harm_metric").options == [
        "KL divergence",
        "logit mean-squared error",
        "noise to signal, 1 / SQNR",
    ]
    switch(at, LABELLED)
    at.selectbox(key="harm_metric").set_value("top1-drop").run()
    assert "top-1 drop" in words(at)
    switch(at, BARE)
    assert at.selectbox(key="harm_metric").value == "kl"
    assert not at.exception


def test_one_model_on_other_images_is_measured_anew(open_page):
    at = open_page("budget", LABELLED)
    assert "among 3 of the 1,000 classes" in words(at)
    with_labels = measured(at)
    assert {"Top-1, mixed bits", "Top-1, full precision"} <= with_labels.keys()
    full = open_study(find_study(Store(), LABELLED)).evaluate(32)
    assert with_labels["Top-1, full precision"] == f"{100 * full.top1:.1f}\u00a0%"
    switch(at, BARE)
    assert measured(at)["Agreement, full precision"] == "100.0\u00a0%"
    assert "among" not in words(at)
    assert len(at.session_state["budgets"]) == 2  # nothing of the one is remembered for the other


def test_a_class_of_a_thousand_is_found_by_name_and_number(open_page):
    at = open_page("relevance", LABELLED)
    study = open_study(find_study(Store(), LABELLED))
    options = at.selectbox(key="class").options
    assert len(options) == CLASSES + 2
    label, likeliest = int(study.evaluation_images.labels[0]), study.image_relevance(0).predicted
    assert [option.split(" ·")[0] for option in options[2:4]] == [str(label), str(likeliest)]
    assert f"{SHARK} · great white shark, white shark, man-eater" in "\n".join(options)
    at.selectbox(key="class").set_value(SHARK).run()
    assert "explained **great white shark**." in words(at)
    at.button(key="Next image").click().run()  # the order of the list changes, the choice stays
    assert at.selectbox(key="class").value == SHARK
    assert "explained **great white shark**." in words(at)
    assert "among 3 of the 1,000 classes" in words(at)


def test_without_labels_there_is_no_true_class_to_explain(open_page):
    at = open_page("relevance", BARE)
    assert at.selectbox(key="class").options[0] == "the predicted one"
    assert "the true one" not in at.selectbox(key="class").options
    assert "true class" not in words(at)


def test_refused_relevance_leaves_a_budget_by_sensitivity(open_page, monkeypatch):
    def refuse(*_, **__):
        raise UnsupportedOperationError("The operation erfinv at blocks.1.act has no rule of relevance.")

    monkeypatch.setattr(Study, "relevance_steps", refuse)
    at = open_page("relevance", BARE)
    assert "erfinv" in at.error[0].value
    assert "strategy *sensitivity*" in words(at)
    at.switch_page("pages/budget.py").run()
    assert "erfinv" in at.warning[0].value
    assert not at.metric
    next(button for button in at.button if button.label == "Choose strategy sensitivity").click().run()
    assert not at.warning
    assert measured(at)["Agreement, mixed bits"].endswith("%")


def test_minutes_of_work_wait_for_a_click_that_says_how_long(open_page, monkeypatch):
    monkeypatch.setattr(Evaluations, "by_itself", lambda _: False)
    monkeypatch.setattr(Study, "estimate", lambda _: Estimate({"relevance": 600.0, "sensitivity": 60.0}, {}))
    monkeypatch.setattr(Evaluations, "estimate", lambda _: 240.0)
    at = open_page("relevance", LABELLED)
    assert "about 10 min" in words(at)
    assert not at.metric
    at.button(key="start relevance").click().run()
    assert "Importance Ω" in measured(at)
    monkeypatch.setattr(Study, "saved_evaluation", lambda *_: None)
    at.switch_page("pages/budget.py").run()
    labels = [button.label for button in at.button]
    assert "Measure mixed on 12 images, about 4 min" in labels
    assert any(label.startswith("Compare the strategies, about ") for label in labels)
    assert measured(at)["Top-1, mixed bits"] == "…"


def test_one_class_leaves_dashes_and_a_warning_in_words(open_page, tmp_path):
    keep_small_study("one class", tmp_path, labelled=False, classes=1, recipe="min-max")
    at = open_page("budget", "one class")
    assert not at.exception
    assert "The model has one class" in at.warning[0].value
    assert measured(at)["Agreement, mixed bits"] == "–"
    assert "nan" not in words(at).lower()
    at.switch_page("pages/overview.py").run()
    assert not at.exception
    assert "The model has one class" in at.warning[0].value
    assert "**Mixed bits: –**" in words(at)


def test_notes_are_shown_beside_the_accuracy(open_page):
    at = open_page("budget", LABELLED)
    assert "only 4 calibration images" in words(at)
    assert not at.warning
    at.switch_page("pages/studies.py").run()
    assert "only 12 evaluation images" in words(at)


def test_the_recipes_have_agreement_where_there_are_no_labels(open_page, monkeypatch):
    found = {"full precision": Evaluation(12, 12, None, 12, 0.0), "mix-qvit": Evaluation(12, 12, None, 9, 0.25)}
    monkeypatch.setattr(Quantizers, "saved_recipes", lambda *_: found)
    at = open_page("quantizers", BARE)
    assert not at.exception
    (table,) = (frame.value for frame in at.dataframe)
    assert table["agreement (%)"].tolist() == [100, 75]
    assert "top-1 (%)" not in table
    assert "about" in at.toggle(key="recipes_measured").label
