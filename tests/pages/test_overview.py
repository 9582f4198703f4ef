"""The Overview page shows the open model, and fills its cards with what the study computes."""

from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from mixqvit.network.layers import Layer
from mixqvit.stages.store import Store
from mixqvit.tasks.evaluation import Evaluation
from mixqvit.views import overview
from mixqvit.views.numbers import percent

APP = Path(__file__).resolve().parents[2] / "app.py"
STAGES = ("Accuracy", "Relevance", "Sensitivity", "Mixed bits", "Uniform bits")


def texts(at: AppTest) -> str:
    return "\n".join(element.value for element in at.markdown)


def test_cards_are_filled_with_the_results_of_the_study(study):
    at = AppTest.from_file(str(APP), default_timeout=600).run()
    assert not at.exception
    shown = texts(at)
    importance, sensitivity = study.relevance().mean, study.sensitivity()
    assert max(importance, key=importance.get) in shown
    assert max(sensitivity, key=lambda name: sensitivity[name][2]) in shown
    mixed = study.evaluate(study.allocate(average_bits=4))
    assert f"Mixed bits: {percent(mixed.top1)}" in shown
    assert f"Uniform 4 bits: {percent(study.evaluate(4).top1)}" in shown
    numbers = {metric.label: metric.value for metric in at.metric}
    assert "**digits_vit**" in shown
    assert numbers["Full-precision accuracy"] == percent(study.evaluate(32).top1)
    assert len(at.dataframe[0].value) == len(study.layers)


@pytest.fixture
def empty_store(tmp_path, monkeypatch):
    """A store of its own, seen by a study that no other test has opened."""
    monkeypatch.setenv("MIXQVIT_CACHE", str(tmp_path))
    st.cache_resource.clear()
    yield Store(tmp_path)
    st.cache_resource.clear()


def test_a_stopped_page_still_shows_model_and_layers_and_can_clear_saved_results(empty_store):
    at = AppTest.from_file(str(APP), default_timeout=180)
    for stage in STAGES:
        at.session_state[f"stopped {stage} on digits_vit 1"] = True
    empty_store.put("some stage", "some item", 1)
    at.run()
    assert not at.exception
    numbers = {metric.label: metric.value for metric in at.metric}
    assert numbers["Full-precision accuracy"] == "…"
    assert "Waiting for sensitivity" in texts(at)
    assert len(at.dataframe[0].value) > 0
    at.button(key="clear").click().run()
    assert not at.exception
    assert empty_store.rows("some stage") == {}


def make_layer(name: str, block: int | None) -> Layer:
    return Layer(name, "fc1" if block is not None else "head", block, 8, 2, 16, (1, 4), (1, 2), name, None)


def test_words_name_the_leading_layers_and_block():
    layers = [make_layer("blocks.0.fc1", 0), make_layer("blocks.1.fc1", 1), make_layer("head", None)]
    words = overview.matters_most(layers, {"blocks.0.fc1": 0.2, "blocks.1.fc1": 0.3, "head": 0.5}, count=2)
    assert "1. `head` 50.0\u00a0%\n2. `blocks.1.fc1` 30.0\u00a0%" in words
    assert "`blocks.0.fc1`" not in words
    assert "Block 1 as a whole carries 30\u00a0%; an equal share would be 50\u00a0%" in words


def test_words_order_layers_by_their_harm_at_the_fewest_bits():
    words = overview.breaks_first({"a": {2: 0.1, 8: 9.0}, "b": {2: 0.4, 8: 0.0}, "c": {2: 0.2, 8: 0.0}}, count=2)
    assert "1. `b` 0.4 nats\n2. `c` 0.2 nats" in words
    assert "Alone at 2 bits" in words
    assert "median layer moves it by 0.2 nats" in words


def test_accuracy_falls_back_to_agreement_without_labels():
    assert overview.accuracy(Evaluation(200, 200, 190, 100, 0.1))[0] == "95.0\u00a0%"
    assert overview.accuracy(Evaluation(200, 200, None, 100, 0.1))[0] == "50.0\u00a0%"


def test_a_cache_that_cannot_be_written_is_a_message(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIXQVIT_CACHE", str(tmp_path / "file" / "cache"))
    st.cache_resource.clear()
    at = AppTest.from_file(str(APP), default_timeout=180).run()
    st.cache_resource.clear()
    assert not at.exception
    assert "MIXQVIT_CACHE" in at.error[0].value
