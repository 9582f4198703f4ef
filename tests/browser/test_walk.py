"""The main walk of a user in a real browser: every page opens, a moved slider gives a newly measured accuracy."""

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.dashboard import MINUTES, metric_value, needs_chromium, no_errors, wait_until_finished

HEADINGS = {
    "Overview": "Mix-QViT explorer",
    "Relevance": "Relevance",
    "Sensitivity": "Sensitivity",
    "Budget": "Budget",
    "Quantizers": "Quantizers",
    "Outliers": "Outliers",
    "Training": "Training",
    "Models and images": "Models and images",
}
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def cache() -> Path:
    """The cache folder of this test run: what one test computed, the others find."""
    return Path(os.environ["MIXQVIT_CACHE"])


def open_page(page: Page, name: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", level=1, name=HEADINGS[name])).to_be_visible(timeout=MINUTES)


def test_a_link_to_a_page_works_as_the_servers_first_visit(browser, server):
    """Streamlit runs files in a folder called pages by itself until navigation is declared; keep this test first."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(f"{server}/budget?average_bits=3.0")
    expect(page.get_by_role("heading", level=1, name="Budget")).to_be_visible(timeout=MINUTES)
    wait_until_finished(page)
    expect(page.get_by_test_id("stException")).to_have_count(0)
    assert "average_bits=3" in page.url
    page.close()


def test_the_first_paint_says_what_this_is(page):
    expect(page.get_by_role("heading", level=1)).to_be_visible(timeout=MINUTES)
    wait_until_finished(page)
    expect(page.get_by_test_id("stException")).to_have_count(0)


def test_every_page_shows_a_figure_and_no_error(page):
    for name in HEADINGS:
        open_page(page, name)
        wait_until_finished(page)
        no_errors(page)
        if name not in ("Overview", "Models and images"):
            expect(page.get_by_test_id("stPlotlyChart").first).to_be_visible(timeout=MINUTES)


def saved_evaluations(cache: Path) -> int:
    """How many settings were measured on all 500 evaluation images."""
    with closing(sqlite3.connect(cache / "results.sqlite")) as database:
        query = "SELECT COUNT(*) FROM results WHERE item LIKE 'images % to 500'"
        return database.execute(query).fetchone()[0]


def test_moving_the_budget_slider_measures_a_new_accuracy(page, cache):
    open_page(page, "Budget")
    wait_until_finished(page)
    measured = re.compile(r"^\s*\d+\.\d\s%\s*$")
    harm, accuracy = metric_value(page, "Predicted harm"), metric_value(page, "Top-1, mixed bits")
    expect(accuracy).to_have_text(measured, timeout=MINUTES)
    before, evaluations = harm.inner_text(), saved_evaluations(cache)
    slider = page.get_by_test_id("stMain").get_by_role("slider", name="Budget: average bits per weight")
    slider.focus()
    for _ in range(13):  # to 2.7 bits, which no other test asks for
        page.keyboard.press("ArrowLeft")
    expect(harm).not_to_have_text(before, timeout=MINUTES)
    wait_until_finished(page)
    expect(accuracy).to_have_text(measured, timeout=MINUTES)
    for _ in range(120):  # the accuracy is shown while images still come in
        if saved_evaluations(cache) > evaluations:
            break
        page.wait_for_timeout(500)
    assert saved_evaluations(cache) > evaluations
    assert "average_bits=" in page.url


def click_middle(page: Page, mark: Locator) -> None:
    """Click a mark of a figure, where plotly's own layer lies on top."""
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def test_a_click_on_a_bar_of_importance_looks_at_its_layer(browser, server):
    page = browser.new_page(viewport={"width": 1400, "height": 2400})
    page.goto(f"{server}/relevance?relevance_view=bars")
    wait_until_finished(page)
    bars = page.get_by_test_id("stPlotlyChart").first.locator(".bars").nth(1).locator(".point path")
    click_middle(page, bars.nth(2))  # the second kind is qkv
    expect(page.get_by_role("heading", name="Layer blocks.2.attn.qkv")).to_be_visible(timeout=MINUTES)
    wait_until_finished(page)  # the link below the heading follows a moment later
    page.get_by_role("link", name="How sensitive is it?").click()
    expect(page.get_by_role("heading", level=1, name="Sensitivity")).to_be_visible(timeout=MINUTES)
    expect(page.get_by_test_id("stMain").get_by_label("Highlight")).to_have_value("blocks.2.attn.qkv", timeout=MINUTES)
    page.close()


def test_relevance_is_followed_through_the_blocks(page):
    open_page(page, "Relevance")
    wait_until_finished(page)
    slider = page.get_by_role("slider", name="Where in the network")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("Tokens after block 1")).to_be_visible(timeout=MINUTES)
    page.get_by_text("side by side", exact=True).click()
    page.get_by_role("button", name="Next ones").click()
    expect(page.get_by_text("4: 4", exact=True).first).to_be_visible(timeout=MINUTES)
    expect(page.get_by_test_id("stException")).to_have_count(0)


def test_two_allocations_are_compared_layer_by_layer_and_image_by_image(page):
    open_page(page, "Budget")
    wait_until_finished(page)
    page.get_by_role("button", name="Hold this as A").click()
    wait_until_finished(page)
    slider = page.get_by_test_id("stMain").get_by_role("slider", name="Budget: average bits per weight")
    slider.focus()
    for _ in range(15):
        page.keyboard.press("ArrowLeft")
    wait_until_finished(page)
    expect(page.get_by_text(re.compile("evaluation images changes? (its|their) predicted class"))).to_be_visible(
        timeout=5 * MINUTES
    )
    expect(page.get_by_test_id("stException")).to_have_count(0)
    assert "held=" in page.url


def test_a_link_reproduces_the_view(browser, server):
    page = browser.new_page()
    page.goto(f"{server}/budget?study=digits_swin&average_bits=3.0&strategy=sensitivity&pinned=head.fc-8~nonsense")
    wait_until_finished(page)
    expect(page.get_by_text("1 of 39 layers pinned")).to_have_count(1, timeout=MINUTES)
    expect(page.get_by_text("nonsense")).to_be_visible(timeout=MINUTES)  # what is not usable is named, and dropped
    slider = page.get_by_test_id("stMain").get_by_role("slider", name="Budget: average bits per weight")
    expect(slider).to_have_value("3", timeout=MINUTES)
    expect(page.get_by_text("Swin transformer: 2 stages")).to_be_visible(timeout=MINUTES)
    page.close()


def test_nothing_is_wider_than_the_window(page):
    overflow = "document.querySelector('[data-testid=stMain]').scrollWidth - window.innerWidth"
    for name in HEADINGS:
        open_page(page, name)
        wait_until_finished(page)
        for width in (1400, 420):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(500)
            assert page.evaluate(overflow) <= 1, (name, width)
        page.set_viewport_size({"width": 1400, "height": 900})
