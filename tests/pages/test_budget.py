"""The Budget page follows its slider: a new allocation, its cost, and its own measured accuracy."""

import json

import pytest
from streamlit.testing.v1 import AppTest

from mixqvit.figures.overview import megabytes, percent


@pytest.fixture
def page(open_page) -> AppTest:
    return open_page("budget")


def numbers(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def comparison(at: AppTest) -> str:
    return next(element.value for element in at.markdown if "Predicted harm" in element.value)


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


def test_a_pinned_layer_keeps_its_bits_and_reset_frees_it(page, study):
    page.session_state["pins digits_vit"] = {"head": 8}
    page.slider(key="average_bits").set_value(3.0).run()
    assert not page.exception
    pinned = study.allocate(average_bits=3.0, pinned={"head": 8})
    assert f"{pinned.harm:.3g}" in comparison(page)
    assert any("1 of 38 layers pinned" in element.value for element in page.caption)
    next(button for button in page.button if button.label == "Reset").click().run()
    assert page.slider(key="average_bits").value == 4.0
    assert f"{study.allocate(average_bits=4.0).harm:.3g}" in comparison(page)


def test_an_impossible_budget_says_what_is_possible_and_keeps_the_last_allocation(page):
    shown = numbers(page)
    page.number_input(key="size_mb").set_value(0.01).run()
    assert not page.exception
    assert "smallest feasible value" in page.warning[0].value
    assert "last allocation that fitted" in page.warning[0].value
    assert numbers(page) == shown


def hover_texts(at: AppTest) -> list[str]:
    """What the measured points say on hover."""
    figures = [json.loads(element.proto.spec) for element in at.get("plotly_chart")]
    points = next(figure for figure in figures if any(trace.get("name") == "mixed bits" for trace in figure["data"]))
    return [text for trace in points["data"] for text in trace.get("text", [])]


def test_every_measured_point_shows_its_harm_with_the_gamma_chosen_now(page, study):
    first = study.allocate(average_bits=4.0)
    page.slider(key="gamma").set_value(0.5).run()
    assert not page.exception
    texts = "\n".join(hover_texts(page))
    for allocation in (first, study.uniform(4)):
        assert f"predicted harm {study.allocation(allocation.bits, 0.5).harm:.3g}" in texts
        assert f"predicted harm {allocation.harm:.3g}" not in texts


def test_an_impossible_budget_still_predicts_harm_with_the_gamma_chosen_now(page, study):
    last = study.allocate(average_bits=4.0)
    page.number_input(key="size_mb").set_value(0.01).run()
    page.slider(key="gamma").set_value(0.0).run()
    assert not page.exception
    assert numbers(page)["Predicted harm"] == f"{study.allocation(last.bits, 0.0).harm:.3g}" != f"{last.harm:.3g}"


def test_a_size_ceiling_is_rounded_to_bytes(page):
    page.number_input(key="size_mb").set_value(1.001).run()  # 1.001 * 1e6 is a little below 1001000
    assert not page.exception
    assert next(iter(page.session_state["budgets"].values())).wanted["size_bytes"] == 1_001_000


def test_the_packed_model_is_offered_with_its_size(page, study):
    allocation = study.allocate(average_bits=4.0)
    assert f"Packed model, {megabytes(allocation.cost.size_bytes)}" in [
        button.proto.label for button in page.get("download_button")
    ]
    assert study.packed(allocation).size_bytes == allocation.cost.size_bytes


def test_all_uniform_settings_are_measured_on_request(page, study):
    button = next(button for button in page.button if button.label == "Measure all uniform settings")
    button.click().run()
    assert not page.exception
    points = next(iter(page.session_state["budgets"].values())).points.values()
    measured = {point.bits["head"][0]: point.evaluation for point in points if point.name == "uniform"}
    assert sorted(measured) == [2, 3, 4, 5, 6, 7, 8]
    assert measured[3] == study.evaluate(3)
