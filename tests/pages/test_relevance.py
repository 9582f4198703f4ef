"""The Relevance page: importance by any method, explained images, and the comparison of methods."""

import json

import pytest
from streamlit.testing.v1 import AppTest

from mixqvit.allocation.budget import Allocation
from mixqvit.allocation.costs import Cost
from mixqvit.engines.progress import Progress
from mixqvit.errors import ImageError
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.study.records import MethodComparison, MethodResult
from mixqvit.study.study import Study
from mixqvit.tasks.evaluation import Evaluation
from mixqvit.views.numbers import percent


@pytest.fixture
def page(open_page) -> AppTest:
    return open_page("relevance")


def text(at: AppTest) -> str:
    return "\n".join(element.value for kind in (at.markdown, at.caption, at.info, at.subheader) for element in kind)


def charts(at: AppTest) -> dict[str, dict]:
    """Return the figures by their alternative text."""
    return {chart.proto.alt: json.loads(chart.proto.spec) for chart in at.get("plotly_chart")}


def chart(at: AppTest, start: str) -> dict:
    (found,) = (figure for alt, figure in charts(at).items() if alt.startswith(start))
    return found


def press(at: AppTest, key: str) -> None:
    at.button(key=key).click().run()
    assert not at.exception


def test_importance_its_most_important_layer_and_the_flow_are_shown(page, study):
    importance = study.relevance()
    first = max(importance.mean, key=importance.mean.get)
    assert f"over the {len(study.layers)} layers" in text(page)
    assert f"Layer {first}" in text(page)
    assert {metric.label: metric.value for metric in page.metric}["Importance Ω"] == percent(importance.mean[first], 2)
    assert len(chart(page, "Share of relevance that takes")["data"]) == 4
    grid = chart(page, "Importance of the layers of digits_vit by chefer")
    page.segmented_control(key="relevance_view").set_value("bars").run()
    page.segmented_control(key="relevance_order").set_value("largest first")
    page.selectbox(key="relevance_layer").set_value("blocks.1.mlp.fc1").run()
    assert not page.exception
    bars = chart(page, "Importance of the layers")
    assert bars["data"][0]["type"] == "bar"
    assert "▸ block 1 · fc1" in bars["layout"]["yaxis"]["categoryarray"]
    assert (
        f"of blocks.1.mlp.fc1 in every calibration image; the mean is {percent(importance.mean['blocks.1.mlp.fc1'], 2)}"
        in ("\n".join(charts(page)))
    )
    press(page, "reset layers")
    assert chart(page, "Importance of the layers of digits_vit by chefer") == grid


def test_another_method_has_its_own_importance_and_no_flow(page, study):
    chefer = chart(page, "Importance of the layers")
    page.selectbox(key="importance_method").set_value("gradient x activation").run()
    assert not page.exception
    importance = study.relevance("gradient x activation")
    assert study.importance_methods["gradient x activation"] in text(page)
    assert f"mean over {len(importance.shares['head'])} calibration images" in text(page)
    assert chart(page, "Importance of the layers of digits_vit by gradient x activation") != chefer
    assert "there are no shares of branches" in text(page)
    assert not any("Share of relevance that takes" in alt for alt in charts(page))


def test_next_previous_and_reset_choose_the_image(page, study):
    assert study.image_relevance(0).name in text(page)
    press(page, "Previous image")
    assert page.number_input(key="image").value == len(study.evaluation_images) - 1
    press(page, "Next image")
    press(page, "Next image")
    assert study.image_relevance(1).name in text(page)
    press(page, "sample 3")
    assert page.number_input(key="image").value == 3
    press(page, "reset image")
    assert page.number_input(key="image").value == 0


def test_two_classes_are_explained_side_by_side_on_one_scale(page, study):
    other = (study.image_relevance(0).predicted + 1) % 10
    page.selectbox(key="beside").set_value(other).run()
    assert not page.exception
    assert f"explained **{other}**" in text(page)
    scales = [
        figure["layout"]["coloraxis"]["cmax"]
        for alt, figure in charts(page).items()
        if alt.startswith("Relevance of every pixel")
    ]
    assert len(scales) == 2
    assert scales[0] == scales[1]
    assert len(chart(page, "Relevance on the patch tokens")["data"]) == 2
    page.selectbox(key="beside").set_value("predicted").run()
    assert "shown once" in text(page)


def test_rules_stages_and_heads_change_their_maps(page, study):
    pixels = chart(page, "Relevance of every pixel")["data"][1]["z"]
    page.segmented_control(key="image_rules").set_value("attnlrp").run()
    assert not page.exception
    assert chart(page, "Relevance of every pixel")["data"][1]["z"] != pixels
    found = study.image_relevance(0, rules="attnlrp")
    same = chart(page, "Relevance of the tokens of")["layout"]["coloraxis"]["cmax"]
    page.select_slider(key="token_stage").set_value("block 3").run()
    assert not page.exception
    tokens = chart(page, f"Relevance of the tokens of {found.name} after block 3")
    assert tokens["layout"]["coloraxis"]["cmax"] == same
    page.toggle(key="token_scale").set_value(False).run()
    assert chart(page, "Relevance of the tokens of")["layout"]["coloraxis"]["cmax"] < same
    page.select_slider(key="head_block").set_value(2)
    page.segmented_control(key="head_map").set_value("gradient × relevance").run()
    assert not page.exception
    heads = chart(page, "gradient × relevance of every head of block 2")
    assert sum(trace["type"] == "heatmap" for trace in heads["data"]) == len(found.heads[2])
    assert heads["layout"]["coloraxis"]["cmin"] == 0


def test_several_images_stand_side_by_side(page, study):
    page.segmented_control(key="explained_view").set_value("side by side").run()
    assert not page.exception
    page.multiselect(key="row_images").set_value([5, 2])
    page.selectbox(key="row_map").set_value("attribution")
    page.toggle(key="row_scale").set_value(False).run()
    figure = chart(page, "attribution of the patches of 2 images")
    assert figure["layout"]["coloraxis"]["cmax"] == 1
    headings = [title["text"] for title in figure["layout"]["annotations"]]
    for index, heading in zip((5, 2), headings, strict=True):
        assert heading.startswith(f"<b>{study.image_relevance(index).predicted}</b>")
    next(button for button in page.button if button.label == "Next ones").click().run()
    assert page.multiselect(key="row_images").value == [3, 4]
    page.multiselect(key="row_images").set_value([]).run()
    assert "Choose up to eight" in text(page)
    press(page, "reset image")
    assert page.multiselect(key="row_images").value == [0, 1, 2, 3]


def test_a_model_without_class_token_has_no_attribution(open_page):
    at = open_page("relevance", "digits_swin", ("Relevance",))
    assert "no class token" in text(at)
    assert not any(alt.startswith("Attribution") for alt in charts(at))
    assert not any(control.key == "head_map" for control in at.segmented_control)
    chart(at, "output relevance of every head of block 0")


def test_stopped_importance_leaves_the_image_usable(open_page):
    at = open_page("relevance", stopped=("Relevance",))
    assert "once all of them are through" in text(at)
    assert any(button.label == "Resume" for button in at.button)
    chart(at, "Relevance of every pixel")


def test_an_error_of_the_image_is_a_message(open_page, monkeypatch):
    at = open_page("relevance", stopped=("Relevance",))

    def refuse(*_, **__):
        raise ImageError("There is no evaluation image 7; they are numbered 0 to 3.")

    monkeypatch.setattr(Study, "image_relevance", refuse)
    at.run()
    assert not at.exception
    assert "no evaluation image 7" in at.error[0].value


def test_methods_are_compared_on_request(page, study, monkeypatch):
    methods = ("chefer", "conductance")
    allocation = Allocation({}, 0.0, Cost(10, 0, 0, 0, 100, 3.0))

    def result(name: str, correct: int) -> MethodResult:
        shares = {layer.name: (place + 1) / 1000 for place, layer in enumerate(study.layers)}
        measured = (allocation, Evaluation(100, 100, correct, correct, 0.1))
        return MethodResult(shares, 8, 0.1, dict.fromkeys(BIT_WIDTHS, 0.5), measured, measured, None, None)

    def steps(self, average_bits):
        uniform = {"uniform": (allocation, Evaluation(100, 100, 40, 40, 0.2))}
        found = {}
        for place, name in enumerate(methods):
            yield Progress(place, 2, name, MethodComparison(average_bits, dict(found), uniform, {}))
            found[name] = result(name, 50 + place)
        agreement = dict.fromkeys((methods, methods[::-1]), 0.25)
        yield Progress(2, 2, "comparison", MethodComparison(average_bits, found, uniform, agreement))

    harms = {layer.name: dict.fromkeys(BIT_WIDTHS, 0.1) for layer in study.layers}
    monkeypatch.setattr(Study, "method_comparison_steps", steps)
    monkeypatch.setattr(Study, "sensitivity", lambda self: harms)
    assert not any("rank correlation" in alt.lower() for alt in charts(page))
    page.slider(key="comparison_bits").set_value(2.5).run()
    next(button for button in page.button if button.label.startswith("Compare the methods, about ")).click().run()
    assert not page.exception
    chart(page, "Measured top-1 accuracy of the allocations that each method leads to at 2.5 average bits")
    assert page.dataframe[0].value["method"].tolist() == [*methods, "uniform"]
    assert "do not tell the allocations apart" in text(page)
    page.selectbox(key="comparison_method").set_value("conductance")
    page.segmented_control(key="comparison_harm_bits").set_value(4).run()
    assert not page.exception
    assert "Spearman with Λ at 4 bits" in page.dataframe[0].value
    scatter = chart(page, "Importance by conductance against sensitivity at 4 bits")
    assert scatter["data"][0]["customdata"] == [["head"]]
    page.slider(key="comparison_bits").set_value(3.0).run()
    assert any(button.label.startswith("Compare the methods, about ") for button in page.button)
    page.slider(key="comparison_bits").set_value(2.5)
    page.session_state["stopped Comparison at 2.5 bits on digits_vit 1"] = True
    page.run()
    assert not page.exception
    assert any(button.label == "Resume" for button in page.button)
    chart(page, "Measured top-1 accuracy of the allocations that each method leads to at 2.5 average bits")
