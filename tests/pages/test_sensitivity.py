"""The Sensitivity page: curves as measured, the layers that break first, and what its controls change."""

import json

import pytest
from streamlit.testing.v1 import AppTest


@pytest.fixture
def page(open_page) -> AppTest:
    return open_page("sensitivity")


def curves(at: AppTest) -> dict:
    return json.loads(at.get("plotly_chart")[0].proto.spec)


def test_the_words_name_the_layer_that_suffers_most(page, study):
    harms = study.sensitivity()
    for bits in (3, 2):
        page.segmented_control(key="harm_bits").set_value(bits).run()
        worst = max(harms, key=lambda name: harms[name][bits])
        (sentence,) = (element.value for element in page.markdown if "break first" in element.value)
        block = next(layer.block for layer in study.layers if layer.name == worst)
        first = sentence.split("**")[1]
        assert first.startswith("head" if worst == "head" else "patch_embed" if block is None else f"block {block}")
        assert f"At {bits} bits" in sentence
    assert any("monotone envelope" in element.value for element in page.caption)


def test_controls_change_the_curves_and_reset_brings_them_back(page):
    first = curves(page)
    assert first["layout"]["yaxis"]["type"] == "log"
    page.segmented_control(key="harm_scale").set_value("linear").run()
    page.multiselect(key="kinds").set_value(["qkv"]).run()
    page.selectbox(key="highlight").set_value("blocks.2.attn.qkv").run()
    changed = curves(page)
    assert changed["layout"]["yaxis"].get("type") != "log"
    assert [trace["name"] for trace in changed["data"]] == ["qkv", "envelope", "block 2 · qkv"]
    next(button for button in page.button if button.label == "Reset").click().run()
    assert curves(page) == first


def test_no_layer_left_is_said(page):
    page.multiselect(key="kinds").set_value(["head"]).run()
    page.multiselect(key="blocks").set_value([0]).run()
    assert not page.exception
    assert any("No layer" in element.value for element in page.info)


def test_a_stopped_sweep_shows_what_is_there_and_can_be_resumed(page):
    page.session_state["stopped Calibration on digits_vit 1"] = True
    page.session_state["stopped Sensitivity (weights only) on digits_vit 1"] = True
    page.segmented_control(key="operands").set_value("weights").run()
    assert not page.exception
    assert any(button.label == "Resume" for button in page.button)
    assert any("not finished" in element.value for element in page.caption)
