"""The report of the open study, made on the page of studies."""

import pytest

from mixqvit.engines.progress import Progress
from mixqvit.report.files import Report


@pytest.mark.slow
def test_a_report_is_made_on_a_button_and_offered_for_download(open_page):
    page = open_page("studies")
    assert not [button for button in page.get("download_button") if "Report" in button.label]
    page.button(key="make report").click().run()
    assert not page.exception
    labels = [button.label for button in page.get("download_button")]
    assert any(label.startswith("Report, HTML") for label in labels)
    assert any(label.startswith("Tables, zip") for label in labels)


def test_comparisons_are_made_when_they_are_wanted(open_page, monkeypatch):
    asked = []

    def steps(study, **options):
        asked.append(options)
        yield Progress(1, 1, "report", Report("digits", "<html>", b"zip"))

    page = open_page("studies")
    monkeypatch.setattr("pages.parts.report_download.report_steps", steps)
    page.checkbox(key="report comparisons").check().run()
    page.button(key="make report").click().run()
    assert not page.exception
    assert [options["comparisons"] for options in asked] == [True]
