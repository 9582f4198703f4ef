"""The Budget page follows its controls: a new allocation, its cost, and its own measured accuracy."""

import json

import pytest
from streamlit.testing.v1 import AppTest

from mixqvit.allocation.restrictions import Restrictions
from mixqvit.study.evaluation import Evaluations
from mixqvit.views.numbers import megabytes, percent


@pytest.fixture
def page(open_page) -> AppTest:
    return open_page("budget")


def numbers(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def comparison(at: AppTest) -> str:
    return next(element.value for element in at.markdown if "Predicted harm" in element.value)


def press(at: AppTest, label: str) -> None:
    next(button for button in at.button if button.label == label).click().run()
    assert not at.exception


def restrict(at: AppTest, **restrictions) -> None:
    """Edit the tables of restrictions, which Streamlit's test client cannot."""
    at.session_state["restrictions digits_vit"] = Restrictions(**restrictions)
    at.session_state["restrictions set"] = 100


def memory(at: AppTest):
    return next(iter(at.session_state["budgets"].values()))


def charts(at: AppTest) -> list[dict]:
    return [json.loads(element.proto.spec) for element in at.get("plotly_chart")]


def test_moving_the_budget_shows_the_new_allocation_and_its_own_accuracy(page, study):
    before = numbers(page)
    page.slider(key="average_bits").set_value(2.5).run()
    assert not page.exception
    allocation = study.allocate(average_bits=2.5)
    measured = study.evaluate(allocation)
    shown = numbers(page)
    assert shown["Predicted harm"] == f"{allocation.harm:.3g}" != before["Predicted harm"]
    assert shown["Top-1, mixed bits"] == percent(measured.top1)
    assert shown["Top-1, uniform 2 bits"] == percent(study.evaluate(2).top1)
    assert shown["Top-1, full precision"] == percent(study.evaluate(32).top1)
    assert megabytes(allocation.cost.size_bytes) in comparison(page)
    assert any("fewer bits" in element.value for element in page.markdown)
    assert any("Proven optimal" in element.value for element in page.caption)
    strip = charts(page)[0]
    assert strip["data"][0]["text"][0] == [str(bits) for bits, _ in allocation.bits.values()]
    assert strip["data"][0]["text"][1] == [str(bits) for bits, _ in study.allocate(average_bits=4.0).bits.values()]


def test_restrictions_hold_and_reset_and_undo_take_steps_back(page, study):
    restricted = {"pinned": {"head": 6}, "at_least": {"blocks.0.mlp.fc1": 5}, "allowed": {"qkv": (4, 8)}}
    restrict(page, **restricted)
    page.slider(key="average_bits").set_value(3.0).run()
    assert not page.exception
    expected = study.allocate(average_bits=3.0, **restricted)
    assert memory(page).allocation.bits == expected.bits
    assert expected.bits["head"][0] == 6
    assert any("1 of 38 layers pinned" in element.value for element in page.caption)
    press(page, "Reset")
    assert page.slider(key="average_bits").value == 4.0
    assert memory(page).allocation.bits == study.allocate(average_bits=4.0).bits
    press(page, "Undo")
    assert page.slider(key="average_bits").value == 3.0
    assert memory(page).allocation.bits == expected.bits


def test_uniform_bits_keep_to_restrictions_and_mark_what_is_pinned(page, study):
    restricted = {"pinned": {"head": 6}, "at_most": {"blocks.0.mlp.fc1": 3}, "allowed": {"qkv": (2,)}}
    restrict(page, **restricted)
    page.selectbox(key="strategy").set_value("uniform").run()
    assert not page.exception and not page.warning
    bits = study.allocate(average_bits=4.0, strategy="uniform", **restricted).bits
    assert memory(page).allocation.bits == bits
    assert (bits["head"], bits["blocks.0.mlp.fc1"], bits["blocks.0.attn.qkv"]) == ((6, 6), (3, 3), (2, 2))
    (pins,) = (trace for trace in charts(page)[0]["data"] if trace.get("text") == ["●"])
    assert pins["x"] == [[layer.name for layer in study.layers].index("head")]


@pytest.mark.parametrize(
    ("restrictions", "words"),
    [({"at_least": {"head": 6}, "at_most": {"head": 4}}, "head"), ({"allowed": {"qkv": ()}}, "qkv")],
)
def test_restrictions_that_contradict_each_other_say_so(page, restrictions, words):
    shown = numbers(page)
    restrict(page, **restrictions)
    page.run()
    assert not page.exception
    assert words in page.warning[0].value
    assert numbers(page) == shown


def test_an_impossible_budget_says_what_is_possible_and_keeps_the_last_allocation(page):
    shown = numbers(page)
    page.number_input(key="size_mb").set_value(0.01).run()
    assert not page.exception
    assert "smallest feasible value" in page.warning[0].value
    assert "last allocation that fitted" in page.warning[0].value
    assert numbers(page) == shown


def test_predictions_of_measured_settings_and_of_the_last_allocation_follow_gamma(page, study):
    first = study.allocate(average_bits=4.0)
    page.number_input(key="size_mb").set_value(0.01).run()
    page.slider(key="gamma").set_value(0.5).run()
    assert not page.exception
    harm = f"{study.allocation(first.bits, 0.5).harm:.3g}"
    assert numbers(page)["Predicted harm"] == harm != f"{first.harm:.3g}"
    figure = next(
        figure for figure in charts(page) if any(trace.get("name") == "mixed bits" for trace in figure["data"])
    )
    texts = "\n".join(text for trace in figure["data"] for text in trace.get("text") or [])
    for allocation in (first, study.uniform(4)):
        assert f"predicted harm {study.allocation(allocation.bits, 0.5).harm:.3g}" in texts
        assert f"predicted harm {allocation.harm:.3g}" not in texts


def test_the_frontier_is_the_optimum_of_every_budget(page, study):
    (line,) = (
        trace for figure in charts(page) for trace in figure["data"] if trace.get("name") == "best of every budget"
    )
    assert len(line["y"]) == 61
    best = study.allocate(average_bits=3.0)
    place = next(index for index, text in enumerate(line["text"]) if "within 3.0 average bits" in text)
    assert line["y"][place] == pytest.approx(best.harm)
    assert line["x"][place] == pytest.approx(best.cost.average_bits)


def test_a_size_ceiling_is_rounded_to_bytes(page):
    page.number_input(key="size_mb").set_value(1.001).run()  # 1.001 * 1e6 is a little below 1001000
    assert not page.exception
    assert memory(page).wanted.budget.size_bytes == 1_001_000


def test_the_packed_model_is_offered_with_its_size(page, study):
    allocation = study.allocate(average_bits=4.0)
    assert f"Packed model, {megabytes(allocation.cost.size_bytes)}" in [
        button.proto.label for button in page.get("download_button")
    ]
    assert study.packing.packed(allocation).size_bytes == allocation.cost.size_bytes


@pytest.mark.slow
def test_all_uniform_settings_are_measured_on_request(page, study):
    press(page, "Measure all uniform settings")
    points = memory(page).points.values()
    measured = {point.bits["head"][0]: point.evaluation for point in points if point.name == "uniform"}
    assert sorted(measured) == [2, 3, 4, 5, 6, 7, 8]
    assert measured[3] == study.evaluate(3)


def test_another_strategy_allocates_and_is_held_against_the_common_yardstick(page, study):
    page.selectbox(key="strategy").set_value("inverse").run()
    assert not page.exception
    allocation = study.allocate(average_bits=4.0, strategy="inverse")
    assert memory(page).allocation.bits == allocation.bits
    assert numbers(page)["Predicted harm"] == f"{study.predicted_harm(allocation.bits):.3g}"
    assert page.slider(key="gamma").disabled


def test_a_large_model_is_measured_on_a_button(page, study, monkeypatch):
    monkeypatch.setattr(Evaluations, "by_itself", lambda _: False)
    page.slider(key="average_bits").set_value(7.7).run()
    assert not page.exception
    assert numbers(page)["Top-1, mixed bits"] == "…"
    (button,) = (button for button in page.button if button.label.startswith("Measure mixed on 100 images, about"))
    button.click().run()
    assert not page.exception
    measured = study.evaluate(study.allocate(average_bits=7.7))
    assert numbers(page)["Top-1, mixed bits"] == percent(measured.top1)
