"""The Relevance page: importance of the layers, and one image explained for the classes a person picks."""

from streamlit.testing.v1 import AppTest


def text(at: AppTest) -> str:
    return "\n".join(element.value for kind in (at.markdown, at.caption, at.info) for element in kind)


def charts(at: AppTest) -> list[str]:
    return [chart.proto.alt for chart in at.get("plotly_chart")]


def test_importance_and_one_image_are_shown(open_page, study):
    at = open_page("relevance")
    assert f"over the {len(study.layers)} layers" in text(at)
    assert charts(at)[0].startswith("Importance of the layers of digits_vit")
    found = study.image_relevance(0)
    assert found.name in text(at)
    assert any(alt.startswith("Attribution of every patch") for alt in charts(at))
    grid = at.get("plotly_chart")[0].proto.spec
    at.segmented_control(key="relevance_view").set_value("bars").run()
    assert at.get("plotly_chart")[0].proto.spec != grid


def test_next_previous_and_reset_choose_the_image(open_page, study):
    at = open_page("relevance")
    buttons = {button.label: button for button in at.button}
    buttons["Previous"].click().run()
    assert at.number_input(key="image").value == len(study.evaluation_images) - 1
    next(button for button in at.button if button.label == "Next").click().run()
    next(button for button in at.button if button.label == "Next").click().run()
    assert study.image_relevance(1).name in text(at)
    next(button for button in at.button if button.label == "Reset").click().run()
    assert at.number_input(key="image").value == 0


def test_two_classes_are_explained_side_by_side_on_one_scale(open_page, study):
    at = open_page("relevance")
    predicted = study.image_relevance(0).predicted
    other = (predicted + 1) % 10
    before = len(charts(at))
    at.selectbox(key="beside").set_value(other).run()
    assert not at.exception
    assert f"explained **{other}**" in text(at)
    assert len(charts(at)) == 2 * before - 1
    at.selectbox(key="beside").set_value("predicted").run()
    assert "shown once" in text(at)


def test_a_model_without_class_token_has_no_attribution(open_page):
    at = open_page("relevance", "digits_swin", ("Relevance",))
    assert "no class token" in text(at)
    assert not any(alt.startswith("Attribution") for alt in charts(at))


def test_stopped_importance_leaves_the_image_usable(open_page):
    at = open_page("relevance", stopped=("Relevance",))
    assert "once all of them are through" in text(at)
    assert any(button.label == "Resume" for button in at.button)
    assert any(alt.startswith("Relevance of every pixel") for alt in charts(at))


def test_an_error_of_the_image_is_a_message(open_page, monkeypatch):
    from mixqvit.errors import ImageError
    from mixqvit.study import Study

    at = open_page("relevance", stopped=("Relevance",))

    def refuse(*_):
        raise ImageError("There is no evaluation image 7; they are numbered 0 to 3.")

    monkeypatch.setattr(Study, "image_relevance", refuse)
    at.run()
    assert not at.exception
    assert "no evaluation image 7" in at.error[0].value
