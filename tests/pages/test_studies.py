"""The page where models and images are chosen."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

from mixqvit.files.access import ROOTS_VARIABLE
from mixqvit.models.layouts import SUFFIXES
from mixqvit.models.loading import load_model
from mixqvit.stages.store import Store
from mixqvit.study.library import StudyDescription, find_study, forget_study, keep_study, known_studies
from pages.parts.common import NEXT_STUDY, as_sentence, open_studies
from tests.pages.conftest import STAGES

APP = Path(__file__).resolve().parents[2] / "app.py"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the dashboard may read: a checkpoint, photographs, and something broken; no study saved."""
    monkeypatch.setenv(ROOTS_VARIABLE, str(tmp_path))
    torch.save({"model": load_model("digits_swin").module.state_dict(), "epoch": 3}, tmp_path / "weights.pth")
    (tmp_path / "broken.pth").write_bytes(b"PK nonsense")
    for number in range(60):
        path = tmp_path / "photos" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), number + 1).save(path)
    for name in known_studies(Store()):
        forget_study(Store(), name)
    return tmp_path


@pytest.fixture
def page(data: Path, open_page) -> AppTest:
    return open_page("studies")


def opened(at: AppTest) -> str | None:
    """The study that the page asked for; AppTest runs a page without the sidebar, which would switch to it."""
    return at.session_state.get(NEXT_STUDY)


def errors(at: AppTest) -> list[str]:
    assert not at.exception
    return [message.value for message in at.error]


def choose(at: AppTest, model: str, **fields: str) -> AppTest:
    """Fill the form: where the model comes from, then the text fields by their keys."""
    at.segmented_control(key="model source").set_value(model).run()
    for key, value in fields.items():
        at.text_input(key=key.replace("_", " ")).set_value(value)
    return at


def test_the_form_waits_and_says_what_the_chosen_model_is(page: AppTest):
    assert not errors(page)
    assert "5.7 M parameters" in " ".join(caption.value for caption in page.caption)
    page.selectbox(key="timm model").select("deit_base_patch16_224.fb_in1k").run()
    assert "published top-1 81.80\u00a0%" in " ".join(caption.value for caption in page.caption)


def test_a_checkpoint_on_photographs_becomes_the_open_study(page: AppTest):
    at = choose(page, "file", checkpoint_path="weights.pth", images_path="photos", architecture="digits_swin")
    at.text_input(key="study name").set_value("my study")
    at.button(key="open").click().run()
    assert not errors(at)
    assert opened(at) == "my study"
    assert find_study(Store(), "my study").images.endswith("photos")
    assert not find_study(Store(), "my study").follow_links
    at.session_state.study = "my study"
    at.run()
    assert not errors(at)
    assert "Open now: my study" in [heading.value for heading in at.subheader]
    assert next(metric for metric in at.metric if metric.label == "Evaluation images").value == "54"
    at.switch_page("pages/quantizers.py").run()
    assert not errors(at)


def test_preprocessing_and_sampling_are_part_of_the_study(page: AppTest):
    at = choose(page, "file", checkpoint_path="weights.pth", images_path="photos", architecture="digits_swin")
    at.text_input(key="mean").set_value("0.25")
    at.number_input(key="evaluation images").set_value(20)
    at.number_input(key="sampling seed").set_value(5)
    at.selectbox(key="label order").select("number")
    at.checkbox(key="within classes").check()
    at.button(key="open").click().run()
    assert not errors(at)
    (found,) = known_studies(Store()).values()
    assert tuple(found.preprocessing["mean"]) == (0.25,)
    assert found.settings == {
        "evaluation_images": 20,
        "sampling_seed": 5,
        "label_order": "number",
        "within_classes": True,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "Choose a model, or give a checkpoint"),
        ({"checkpoint_path": "weights.pth"}, "Say which images"),
        ({"checkpoint_path": "/etc/passwd"}, "outside of the folders"),
        ({"checkpoint_path": "missing.pth"}, "There is no missing.pth"),
        ({"checkpoint_path": "weights.pth", "images_path": "../.."}, "outside of the folders"),
        ({"checkpoint_path": "broken.pth", "images_path": "photos"}, "broken.pth"),
        ({"checkpoint_path": "weights.pth", "images_path": "photos", "mean": "grey"}, "numbers with commas"),
        ({"checkpoint_path": "weights.pth", "images_path": "photos", "std": "0"}, "above 0"),
        ({"architecture": "local-dir:/etc", "images_path": "photos"}, "outside of the folders"),
    ],
)
def test_what_cannot_be_opened_is_said_and_nothing_is_lost(page: AppTest, fields: dict[str, str], message: str):
    at = choose(page, "file", **{"architecture": "digits_swin", **fields} if fields else {})
    at.button(key="open").click().run()
    assert message in " ".join(errors(at))
    assert known_studies(Store()) == {}
    assert opened(at) is None
    for key, value in fields.items():
        assert at.text_input(key=key.replace("_", " ")).value == value


def test_a_misspelt_name_gets_suggestions(page: AppTest):
    at = choose(page, "file", images_path="photos", architecture="deit_tiny_patch16_244")
    at.button(key="open").click().run()
    assert "deit_tiny_patch16_224" in " ".join(errors(at))


def test_saved_studies_are_chosen_removed_and_brought_back(data: Path, open_page):
    keep_study(Store(), "kept", StudyDescription("digits_swin", settings={"evaluation_images": 12}))
    at = open_page("studies")
    at.selectbox(key="saved study").select("kept").run()
    at.button(key="choose saved").click().run()
    assert opened(at) == "kept"
    next(button for button in at.button if button.label == "Remove").click().run()
    assert known_studies(Store()) == {}
    next(button for button in at.button if button.label.startswith("Bring back")).click().run()
    assert "kept" in known_studies(Store())
    assert not errors(at)


def test_a_link_to_a_study_that_is_not_here_says_so(data: Path):
    at = AppTest.from_file(str(APP), default_timeout=300)
    at.query_params["study"] = "somewhere else"
    for stage in STAGES:  # the Overview below the sidebar is not what this is about
        at.session_state[f"stopped {stage} on digits_vit 1"] = True
    at.run()
    assert "somewhere else" in " ".join(message.value for message in at.warning)
    assert at.session_state.study == "digits_vit"


def test_a_data_set_may_be_named_with_its_prefix(page: AppTest):
    at = choose(page, "embedded")
    at.segmented_control(key="image source").set_value("hub").run()
    at.text_input(key="data set").set_value(" hf:nobody ")
    at.button(key="open").click().run()
    assert "'hf:nobody' names no data set" in " ".join(errors(at))


def test_another_study_of_the_same_default_name_stays(data: Path, open_page):
    taken = StudyDescription("digits_swin", settings={"evaluation_images": 12})
    keep_study(Store(), "digits_swin on photos", taken)
    at = choose(open_page("studies"), "file", checkpoint_path="weights.pth", images_path="photos")
    at.text_input(key="architecture").set_value("digits_swin")
    at.button(key="open").click().run()
    assert not errors(at)
    assert opened(at) == "digits_swin on photos (2)"
    assert find_study(Store(), "digits_swin on photos") == taken


def test_names_of_files_are_shown_as_they_are(data: Path, open_page):
    for number, name in enumerate(["![x](http:", "$b$", *"cdefghij"]):
        (data / "photos" / str(number)).rename(data / "photos" / name)
    description = StudyDescription("digits_swin", images=str(data / "photos"))
    keep_study(Store(), "odd names", description)
    for _ in open_studies().open_steps(description):
        pass
    at = open_page("studies", "odd names")
    at.session_state.study = "odd names"
    at.run()
    notes = " ".join(text.value for text in at.markdown)
    assert "from \\!\\[x\\](http" in notes


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("unknown model 'x'; did you mean y?", "Unknown model 'x'; did you mean y?"),
        ("vit_tiny has no head; choose another", "vit_tiny has no head; choose another."),
        ("The path a lies outside.", "The path a lies outside."),
        ("the class ![x](http://evil) is unknown", r"The class \!\[x\](http://evil) is unknown."),
    ],
)
def test_messages_are_shown_as_plain_sentences(message: str, shown: str):
    assert as_sentence(message) == shown


def test_every_file_of_weights_that_is_read_can_be_sent(page: AppTest):
    at = choose(page, "file")
    uploader = next(element for element in at.get("file_uploader") if "upload" in element.proto.label)
    assert set(SUFFIXES) == set(uploader.proto.type)
