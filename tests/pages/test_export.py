"""Downloads for other programs on the Budget page."""

import io
import json
import zipfile

import pytest
from streamlit.testing.v1 import AppTest

from mixqvit.errors import ExportError
from mixqvit.files.export.formats import FORMATS, Exported, exported
from pages.parts import export_download


@pytest.fixture
def page(open_page) -> AppTest:
    return open_page("budget")


def choose(at: AppTest, name: str) -> None:
    next(box for box in at.selectbox if box.key == "export format").set_value(name).run()
    assert not at.exception


def labels(at: AppTest) -> list[str]:
    return [button.proto.label for button in at.get("download_button")]


def text(at: AppTest) -> str:
    return " ".join(element.value for element in (*at.caption, *at.markdown))


@pytest.mark.parametrize("name", ["torchao", "modelopt"])
def test_a_configuration_is_offered_with_what_it_cannot_do(page, study, name):
    choose(page, name)
    assert any(label.startswith(f"{FORMATS[name].title}, ") for label in labels(page))
    found = exported(study, study.allocate(average_bits=4.0).bits, name)
    for note in found.notes:
        assert note in text(page)


def test_overlays_are_one_archive(page, study):
    choose(page, "model-explorer")
    assert any(label.startswith("Model Explorer overlays, ") for label in labels(page))
    importance = study.relevance().mean
    found = exported(study, study.allocate(average_bits=4.0).bits, "model-explorer", importance)
    name, content = found.one_file("digits_vit")
    assert name == "digits_vit.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        shown = json.loads(archive.read("digits_vit.importance.json"))
    assert shown["results"]["head"]["value"] == importance["head"]


@pytest.mark.slow
def test_an_onnx_model_is_made_on_a_button_and_forgotten_with_its_bits(page):
    pytest.importorskip("onnx", reason="onnx is not installed")
    assert not any(label.startswith("ONNX model, ") for label in labels(page))
    next(button for button in page.button if button.label == "Make the ONNX model").click().run()
    assert not page.exception
    assert any(label.startswith("ONNX model, ") for label in labels(page))
    assert "Opset " in text(page)
    page.slider(key="average_bits").set_value(5.0).run()
    assert not any(label.startswith("ONNX model, ") for label in labels(page))


def test_a_model_that_cannot_be_exported_is_a_message(page, monkeypatch):
    def refused(*_):
        raise ExportError("This model has an operation that ONNX has no operator for.")

    monkeypatch.setattr(export_download, "exported", refused)
    next(button for button in page.button if button.label == "Make the ONNX model").click().run()
    assert not page.exception
    assert any("no operator" in element.value for element in page.warning)


def test_how_weights_are_stored_is_said():
    bits = {"a": (4, 4), "b": (3, 4), "c": (32, 32)}
    stored = {"a": 4, "b": 4, "c": 32}
    assert "in 1 of 3 layers" in export_download.words(Exported({}, (), 21, stored), bits)
    assert "at its own width in every layer" in export_download.words(Exported({}, (), 21, {"a": 4}), bits)
