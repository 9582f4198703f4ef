"""The further parts of the Budget page: links, A/B, strategies side by side, keeping and loading, the tour."""

import json

import pytest
from streamlit.testing.v1 import AppTest

from mixqvit.allocation.request import Request
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.criteria.registry import CRITERIA
from mixqvit.errors import StoreError
from mixqvit.files.allocation_document import allocation_document
from mixqvit.study.kept import KeptAllocations
from pages.parts import budget_keep, budget_url, measuring

A = 2.0
REQUEST = Request().changed(average_bits=3.0, gamma=0.5, pinned={"head": 6})


@pytest.fixture
def page(open_page) -> AppTest:
    return open_page("budget")


@pytest.fixture(autouse=True)
def nothing_kept(study):
    yield
    for name in study.kept.all():
        study.kept.delete(name)


def press(at: AppTest, label: str) -> None:
    next(button for button in at.button if button.label == label).click().run()
    assert not at.exception


def set_operands(at: AppTest, operands: str) -> None:
    next(control for control in at.segmented_control if control.key == "operand_bits").set_value(operands).run()
    assert not at.exception


def text(at: AppTest) -> str:
    return " ".join(element.value for element in (*at.markdown, *at.caption, *at.info, *at.success))


def memory(at: AppTest):
    return next(iter(at.session_state["budgets"].values()))


def chart(at: AppTest, name: str) -> dict:
    """Return the figure that has a trace of this name."""
    figures = [json.loads(element.proto.spec) for element in at.get("plotly_chart")]
    return next(figure for figure in figures if any(trace.get("name") == name for trace in figure["data"]))


# Links


def open_link(open_page, **parameters) -> AppTest:
    """Open the page by a link; the page that runs before it leaves its parameters alone."""
    at = open_page("budget")
    at.session_state["budget link read"] = False
    for name, value in parameters.items():
        at.query_params[name] = value
    return at.run()


def test_a_link_reproduces_the_view(open_page, study):
    held = study.allocate(average_bits=A).bits
    restrictions = {"pinned": {"head": 6}, "at_most": {"blocks.0.mlp.fc1": 4}, "allowed": {"qkv": (4, 8)}}
    written = budget_url.written(Restrictions(**restrictions), held)
    at = open_link(open_page, **{name: value for name, value in written.items() if value})
    assert not at.exception and not at.warning
    assert memory(at).held == held
    assert memory(at).allocation.bits == study.allocate(average_bits=4.0, **restrictions).bits
    assert at.query_params["pinned"] == "head-6"
    press(at, "Reset")
    press(at, "Let go of A")
    assert not {"pinned", "at_most", "allowed", "held"} & set(at.query_params)


def test_a_link_with_nonsense_is_a_message(open_page):
    at = open_link(open_page, pinned="nothing-4~head-6", held="99", allowed="qkv-1")
    assert not at.exception
    message = at.warning[0].value
    assert "nothing-4" in message and "`held`" in message and "qkv-1" in message
    assert memory(at).wanted.restrictions.pinned == {"head": 6}
    press(at, "Understood")
    assert not at.warning


def test_ceilings_that_no_control_shows_are_a_message(open_page):
    at = open_link(open_page, bitops_g="1e300", size_mb="1e306", average_bits="9")
    assert not at.exception
    message = at.warning[0].value
    assert "`bitops_g`" in message and "`size_mb`" in message and "`average_bits`" in message
    assert memory(at).wanted.budget.ceilings == (("average_bits", 4.0),)


def test_a_pin_that_tied_operands_do_not_have_is_a_message(open_page):
    at = open_link(open_page, pinned="head-4.8~blocks.0.attn.matmul1-4.6~blocks.0.mlp.fc1-5")
    assert not at.exception
    message = at.warning[0].value
    assert "head-4.8" in message and "matmul1-4.6" in message
    assert memory(at).wanted.restrictions.pinned == {"blocks.0.mlp.fc1": 5}


# A against B


def test_a_and_b_are_compared_layer_by_layer_and_image_by_image(page, study):
    page.slider(key="average_bits").set_value(A).run()
    press(page, "Hold this as A")
    page.slider(key="average_bits").set_value(5.0).run()
    assert not page.exception
    first, second = (study.allocate(average_bits=bits) for bits in (A, 5.0))
    strip = chart(page, "B has")["data"][0]
    assert strip["text"] == [[str(bits) for bits, _ in found.bits.values()] for found in (first, second)]
    a, b = study.evaluate(first), study.evaluate(second)
    flips = [index for index, pair in enumerate(zip(a.predicted, b.predicted, strict=True)) if pair[0] != pair[1]]
    assert flips, "2 and 5 bits must not be alike on all images, or this tests nothing"
    assert f"{len(flips)} of 100 evaluation images change their predicted class" in text(page)
    assert len(page.image) == min(len(flips), 12)
    differing = sum(first.bits[name] != second.bits[name] for name in first.bits)
    assert f"{differing} of 38 layers differ" in text(page)


# Strategies


def test_strategies_are_compared_on_a_button(page, study, monkeypatch):
    monkeypatch.setattr(
        "pages.parts.budget_strategies.CRITERIA",
        {name: CRITERIA[name] for name in ("sensitivity", "uniform", "random")},
    )
    assert not any(element.value.columns[0] == "strategy" for element in page.dataframe)
    press(page, next(button.label for button in page.button if button.label.startswith("Compare the strategies, ")))
    frame = next(element.value for element in page.dataframe if element.value.columns[0] == "strategy")
    assert frame["strategy"].tolist() == ["sensitivity", "uniform", "random"]
    allocation = study.allocate(average_bits=4.0, strategy="random")
    row = frame.set_index("strategy").loc["random"]
    assert row["predicted harm"] == pytest.approx(study.predicted_harm(allocation.bits))
    assert row["top-1 (%)"] == pytest.approx(100 * study.evaluate(allocation).top1)
    assert "Closest to full precision" in text(page)


@pytest.mark.slow
def test_clado_is_offered_with_tied_operands_only(page):
    page.toggle(key="strategies_with_pairs").set_value(True).run()
    set_operands(page, "independent")
    toggle = page.toggle(key="strategies_with_pairs")
    assert toggle.disabled and "tie the weights" in toggle.help
    page.selectbox(key="strategy").set_value("clado").run()
    assert not page.exception and not page.error
    assert "both operands of a layer" in page.warning[0].value
    page.selectbox(key="strategy").set_value("mix-qvit").run()
    set_operands(page, "tied")
    assert not page.toggle(key="strategies_with_pairs").disabled


def test_pairs_that_take_long_wait_for_a_button(page, study):
    page.session_state[f"seconds of scores for clado on {measuring.key(study)}"] = 600.0
    page.session_state["stopped Scores for clado on digits_vit 1"] = True
    page.selectbox(key="strategy").set_value("clado").run()
    assert not page.exception
    press(page, "Score the layers for clado, about 10 min")
    assert any(button.label == "Resume" for button in page.button)


# Keeping


def test_an_allocation_is_saved_loaded_deleted_and_brought_back(page, study):
    page.slider(key="average_bits").set_value(3.0)
    page.slider(key="gamma").set_value(0.5).run()
    page.text_input(key="kept name").set_value("small one").run()
    press(page, "Save")
    assert list(study.kept.all()) == ["small one"]
    press(page, "Reset")
    press(page, "Load")
    assert page.slider(key="average_bits").value == 3.0
    assert page.slider(key="gamma").value == 0.5
    assert memory(page).allocation.bits == study.allocate(average_bits=3.0, gamma=0.5).bits
    press(page, "Delete")
    assert not study.kept.all()
    press(page, "Bring back “small one”")
    assert list(study.kept.all()) == ["small one"]


def test_what_a_callback_cannot_do_is_said_by_its_message(page, study, monkeypatch):
    def refuse(_, name: str) -> None:
        raise StoreError(f"the folder that holds {name} is full")

    page.text_input(key="kept name").set_value("small one").run()
    press(page, "Save")
    monkeypatch.setattr(KeptAllocations, "delete", refuse)
    press(page, "Delete")  # which fails the test where there is a traceback
    assert "The folder that holds small one is full." in [warning.value for warning in page.warning]


def test_an_allocation_without_a_name_is_not_saved(page, study):
    press(page, "Save")
    assert "name" in page.warning[0].value
    assert not study.kept.all()


def document(study, request: Request | None, average_bits: float = 3.0) -> dict:
    allocation = study.allocate(average_bits=average_bits)
    return json.loads(json.dumps(allocation_document(study.model.name, study.settings, allocation, request)))


@pytest.mark.slow
def test_loading_sets_every_control(page, study):
    request = REQUEST.changed(size_bytes=400_000, bitops=10**9, strategy="sensitivity", tied=False)
    study.kept.save("other", document(study, request))
    page.run()
    press(page, "Load")
    assert memory(page).wanted == request
    assert "lead to other bits" in text(page)
    # Independent operands have rows of their own.
    strip = chart(page, "changed")["data"][0]
    allocation = study.allocate(request)
    assert strip["text"][:2] == [[str(pair[operand]) for pair in allocation.bits.values()] for operand in (0, 1)]


def test_a_file_that_says_bits_only_pins_them(page, study):
    study.kept.save("bits only", document(study, None))
    page.run()
    press(page, "Load")
    assert memory(page).allocation.bits == study.allocate(average_bits=3.0).bits
    assert "lead to other bits" not in text(page)


def test_what_the_controls_cannot_show_of_a_file_is_said(page, study):
    request = Request().changed(average_bits=9, gamma=3, pinned={"tail": 4, "head": 6}, allowed={"reduction": [4]})
    study.kept.save("odd", document(study, request))
    page.run()
    press(page, "Load")
    message = page.warning[0].value
    for words in ("average bits is 9", "γ is 3", "`tail`", "`reduction`"):
        assert words in message
    assert memory(page).wanted == Request().changed(average_bits=8.0, gamma=2.0, pinned={"head": 6})


@pytest.mark.slow
def test_bits_that_differ_within_a_layer_are_pinned_with_independent_operands(page, study):
    changed = document(study, None)
    changed["bits"]["head"] = [4, 6]
    study.kept.save("mixed head", changed)
    page.run()
    press(page, "Load")
    assert not page.warning
    assert memory(page).allocation.bits == {name: tuple(bits) for name, bits in changed["bits"].items()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (
            json.dumps({"mixqvit_allocation": 2, "model": "digits_swin", "bits": {"head": [4, 4]}}).encode(),
            "digits_swin",
        ),
        (json.dumps({"mixqvit_recipe": 1, "model": "digits_vit", "bits": {"tail": [4, 4]}}).encode(), "tail"),
    ],
)
def test_a_file_that_is_no_allocation_of_this_model_is_a_message(page, study, monkeypatch, content, words):
    class File:
        name = "some.json"

        def getvalue(self) -> bytes:
            return content

    state = {"allocation file": File()}
    monkeypatch.setattr(budget_keep.st, "session_state", state)
    budget_keep.open_file(study)
    kind, sentence = state["kept message"]
    assert kind == "warning"
    assert words in sentence


# The tour


def test_the_tour_leads_through_five_steps(page):
    press(page, "Tour")
    press(page, "Set 3 bits")
    assert page.slider(key="average_bits").value == 3.0
    for step in range(2, 6):
        press(page, "Next")
        assert f"{step} of 5" in text(page)
        if step == 4:
            press(page, "Hold as A and set 2.5 bits")
            assert memory(page).held is not None
            assert page.slider(key="average_bits").value == 2.5
    press(page, "End the tour")
    assert "of 5:" not in text(page)
