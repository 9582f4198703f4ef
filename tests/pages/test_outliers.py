"""The Outliers page: channels of a chosen layer, and outlier channels where the sidebar makes some."""

import json

import pytest
from streamlit.testing.v1 import AppTest


@pytest.fixture
def page(open_page) -> AppTest:
    return open_page("outliers")


def numbers(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def headline(at: AppTest) -> dict:
    return json.loads(at.get("plotly_chart")[0].proto.spec)


def test_the_numbers_are_those_of_the_chosen_layer(page, study):
    for layer in ("blocks.0.attn.qkv", "blocks.3.mlp.fc1"):
        page.selectbox(key="outlier_layer").set_value(layer).run()
        assert not page.exception
        ranges = study.channel_ranges(layer, 4)
        assert numbers(page)["Widest channel"] == f"{ranges.max_to_median:.1f} × median"
        assert page.dataframe[0].value["channel"].iloc[0] == ranges.spread.argmax()


def test_stage_order_and_reset_change_the_figure(page):
    first = headline(page)
    page.segmented_control(key="stage").set_value("reparameterized").run()
    assert headline(page)["layout"]["yaxis"]["title"]["text"] == "value after division by r"
    page.segmented_control(key="channel_order").set_value("widest first").run()
    assert "widest" in headline(page)["layout"]["xaxis"]["title"]["text"]
    next(button for button in page.button if button.label == "Reset").click().run()
    assert headline(page) == first


def test_amplified_outliers_are_found(page):
    assert "Outlier amplification" in page.info[0].value
    assert numbers(page)["Outlier channels"] == "0 of 96"
    page.session_state["outliers"] = 32
    page.run()
    assert not page.exception
    assert numbers(page)["Outlier channels"] == "2 of 96"
    assert not page.info
    assert {trace["name"] for trace in headline(page)["data"]} >= {"ordinary channel", "outlier channel"}


def test_all_layers_are_measured_on_demand(page, study):
    charts = len(page.get("plotly_chart"))
    page.toggle(key="all_layers").set_value(True).run()
    assert not page.exception
    strip = json.loads(page.get("plotly_chart")[charts].proto.spec)
    shown = [name for trace in strip["data"] for name in trace["customdata"]]
    assert sorted(shown) == sorted(layer.name for layer in study.post_layer_norm_layers)


def test_a_stopped_calibration_says_so(page):
    page.session_state["stopped Calibration on digits_vit 1"] = True
    page.run()
    assert not page.exception
    assert any("quantizers" in element.value for element in page.info)
    assert any(button.label == "Resume" for button in page.button)
