"""The Quantizers page: a chosen operand's quantizers side by side, and the recipes as far as measured."""

import json

import pytest
from streamlit.testing.v1 import AppTest

from mixqvit.study.quantizers import Quantizers
from mixqvit.views.numbers import relative_error


@pytest.fixture
def page(open_page) -> AppTest:
    return open_page("quantizers")


def chart(at: AppTest, place: int) -> dict:
    return json.loads(at.get("plotly_chart")[place].proto.spec)


def text(at: AppTest) -> str:
    return " ".join(element.value for element in (*at.markdown, *at.caption, *at.subheader))


def test_controls_choose_the_operand_and_reset_undoes_them(page, study):
    first = chart(page, 0)
    softmax = study.quantizers.compare("blocks.0.attn.matmul2", 0)
    assert set(first["data"][0]["y"]) == {quantizer.name for quantizer in softmax.quantizers}
    page.selectbox(key="quantizer_layer").set_value("blocks.2.mlp.fc1")
    page.segmented_control(key="quantizer_bits").set_value(3).run()
    assert not page.exception
    found = study.quantizers.compare("blocks.2.mlp.fc1")
    least = min(found.quantizers, key=lambda quantizer: quantizer.errors[3])
    assert chart(page, 0)["data"][0]["text"][0].startswith(relative_error(least.errors[3]))
    assert f"channel {found.channel} are shown" in text(page)
    page.pills(key="quantizer_grids post_layer_norm").set_value(["min-max"]).run()
    assert len(chart(page, 2)["data"]) == 2
    next(button for button in page.button if button.label == "Reset").click().run()
    assert chart(page, 0) == first


def test_recipes_are_shown_as_far_as_measured(page, study, monkeypatch):
    *_, last = study.evaluate_steps(3, "min-max")
    page.session_state["stopped Recipes at 3 bits on digits_vit 1"] = True
    page.segmented_control(key="recipe_bits").set_value(3)
    page.toggle(key="recipes_measured").set_value(True).run()
    assert not page.exception
    assert any(button.label == "Resume" for button in page.button)
    frame = page.dataframe[0].value.set_index("recipe")
    assert frame.loc["min-max", "KL (nats)"] == last.result.kl
    assert list(frame.index) == list(study.quantizers.saved_recipes(3))
    # Full precision may be known from other pages; by itself it is nothing to compare.
    monkeypatch.setattr(Quantizers, "saved_recipes", lambda self, bits: {"full precision": last.result})
    page.run()
    assert not page.exception
    assert any("No recipe has been measured at 3 bits" in element.value for element in page.info)
