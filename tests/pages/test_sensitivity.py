"""The Sensitivity page: curves as measured, the layers that break first, and what its controls change."""

import json

import pytest
from streamlit.testing.v1 import AppTest


@pytest.fixture
def page(open_page) -> AppTest:
    return open_page("sensitivity")


def curves(at: AppTest) -> dict:
    return json.loads(at.get("plotly_chart")[0].proto.spec)


def captions(at: AppTest) -> str:
    return " ".join(element.value for element in at.caption)


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
    assert "monotone envelope" in captions(page)


def test_controls_change_the_curves_and_reset_brings_them_back(page):
    first = curves(page)
    assert first["layout"]["yaxis"]["type"] == "log"
    page.segmented_control(key="harm_scale").set_value("linear").run()
    page.segmented_control(key="harm_colours").set_value("block").run()
    page.multiselect(key="kinds").set_value(["qkv"]).run()
    page.selectbox(key="highlight").set_value("blocks.2.attn.qkv").run()
    changed = curves(page)
    assert changed["layout"]["yaxis"].get("type") != "log"
    names = [trace["name"] for trace in changed["data"]]
    assert names == [*(f"block {block}" for block in range(6)), "95 % interval", "envelope", "block 2 · qkv"]
    next(button for button in page.button if button.label == "Reset").click().run()
    assert curves(page) == first


def test_another_metric_shows_its_own_harm_and_interval(page, study):
    page.selectbox(key="harm_metric").set_value("top1-drop").run()
    assert not page.exception
    assert "top-1 drop" in curves(page)["layout"]["yaxis"]["title"]["text"]
    assert "one of the 8 images is 12.5 points" in captions(page)
    wide, long = (frame.value for frame in page.dataframe[:2])
    harms, intervals = study.sensitivity(metric="top1-drop"), study.sensitivity_intervals(metric="top1-drop")
    assert wide.set_index("layer").loc["head", "2 bits"] == harms["head"][2]
    row = long[(long["layer"] == "head") & (long["bits"] == 2)].iloc[0]
    assert (row["interval from"], row["interval to"]) == intervals["head"][2]


def test_another_baseline_is_another_sweep(page, study):
    page.session_state["stopped Sensitivity (the rest at 4 bits) on digits_vit 1"] = True
    page.selectbox(key="harm_baseline").set_value(4).run()
    assert not page.exception
    assert any(button.label == "Resume" for button in page.button)
    assert "not finished" in captions(page)
    assert not any(trace.get("x") for trace in curves(page)["data"])


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
    assert "not finished" in captions(page)
