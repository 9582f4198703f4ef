"""The Outliers page: channels of a chosen layer, and outlier channels where the sidebar makes some."""

import json

import pytest
from streamlit.testing.v1 import AppTest


@pytest.fixture
def page(open_page) -> AppTest:
    return open_page("outliers")


def numbers(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def chart(at: AppTest, place: int) -> dict:
    return json.loads(at.get("plotly_chart")[place].proto.spec)


def text(at: AppTest) -> str:
    return " ".join(element.value for element in (*at.markdown, *at.caption, *at.subheader))


def test_the_numbers_are_those_of_the_chosen_layer(page, study):
    layer = "blocks.3.mlp.fc1"
    page.selectbox(key="outlier_layer").set_value(layer)
    page.slider(key="outlier_clip").set_value(5.0).run()
    assert not page.exception
    ranges = study.channels.ranges(layer, 4, 0.05)
    assert numbers(page)["Widest channel"] == f"{ranges.max_to_median:.1f} × median"
    assert page.dataframe[0].value["channel"].iloc[0] == ranges.statistics.widest_channel
    assert f"{100 * ranges.variants['clipped'].output_error:.3g} % at the chosen 5 %" in text(page)


def test_controls_change_the_figures_and_reset_undoes_them(page, study):
    first = chart(page, 0)
    page.pills(key="outlier_variant").set_value("reparameterized")
    page.segmented_control(key="channel_order").set_value("widest first")
    page.number_input(key="outlier_channel").set_value(7)
    page.number_input(key="outlier_image").set_value(3)
    page.toggle(key="outlier_harm").set_value(True).run()
    assert not page.exception
    changed = chart(page, 0)["layout"]
    assert "after division" in changed["yaxis"]["title"]["text"]
    assert "widest first" in changed["xaxis"]["title"]["text"]
    assert "Channel 7 over the tokens" in text(page)
    assert study.evaluation_images.names[3] in text(page)
    assert "does the least harm" in text(page)
    page.number_input(key="outlier_channel").set_value(960).run()
    assert "has no channel 960" in page.warning[0].value
    next(button for button in page.button if button.label == "Reset").click().run()
    assert chart(page, 0) == first


def test_amplified_outliers_are_found(page):
    assert "Outlier amplification" in page.info[0].value
    assert numbers(page)["Outlier channels"] == "0 of 96"
    page.session_state["outliers"] = 32
    page.run()
    assert not page.exception
    assert numbers(page)["Outlier channels"] == "2 of 96"
    assert not page.info
    assert {trace["name"] for trace in chart(page, 0)["data"]} >= {"ordinary channel", "outlier channel"}


def test_a_stopped_look_at_the_channels_says_so(page):
    page.session_state["stopped Channels on digits_vit 1"] = True
    page.run()
    assert not page.exception
    assert any("looked at" in element.value for element in page.info)
    assert any(button.label == "Resume" for button in page.button)
