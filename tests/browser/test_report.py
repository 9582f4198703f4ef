"""A report opened from disk in a real browser."""

import pytest

from mixqvit.report.steps import report_steps
from mixqvit.stages.store import Store
from mixqvit.study.study import Study
from tests.small import SMALL


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 420])
def test_a_report_opens_from_disk_without_a_network(browser, first_results, tmp_path, width):
    store = first_results.put("digits_vit", Store())
    *_, last = report_steps(Study("digits_vit", settings=SMALL(), store=store))
    page_file, _ = last.result.write(tmp_path / "report.html")
    page = browser.new_page(viewport={"width": width, "height": 900})
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url))
    page.goto(page_file.as_uri())
    figures = page.locator(".figure")
    assert figures.count() >= 15
    for index in range(figures.count()):
        figures.nth(index).scroll_into_view_if_needed()
        figures.nth(index).locator(".main-svg").first.wait_for(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not wrong
    page.close()
