"""The report of the open study, made on the page of studies."""

import pytest


@pytest.mark.slow
def test_a_report_is_made_on_a_button_and_offered_for_download(open_page):
    page = open_page("studies")
    assert not [button for button in page.get("download_button") if "Report" in button.label]
    page.button(key="make report").click().run()
    assert not page.exception
    labels = [button.label for button in page.get("download_button")]
    assert any(label.startswith("Report, HTML") for label in labels)
    assert any(label.startswith("Tables, zip") for label in labels)
