"""A pretrained DeiT-Tiny on photographs: from a cold start to a measured mixed allocation, in a real browser."""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.dashboard import MINUTES, dashboard, metric_value, needs_chromium, no_errors, wait_until_finished

pytestmark = needs_chromium

TOP1 = re.compile(r"^\s*\d+\.\d\s%\s*$")


@pytest.fixture(scope="module")
def address(shared: Path, tmp_path_factory: pytest.TempPathFactory):
    """A dashboard that may read the real model and the photographs, and has computed nothing yet."""
    folder = tmp_path_factory.mktemp("real")
    environment = {**os.environ, "MIXQVIT_CACHE": str(folder / "cache"), "MIXQVIT_DATA_ROOTS": str(shared / "real")}
    with dashboard(folder / "log.txt", environment) as server:
        yield server.address


def go_to(page: Page, name: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(
        "Mix-QViT explorer" if name == "Overview" else name, timeout=MINUTES
    )


def test_from_a_cold_start_to_a_measured_mixed_allocation(browser, address):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(f"{address}/studies")
    expect(page.get_by_role("heading", level=1, name="Models and images")).to_be_visible(timeout=MINUTES)
    main = page.get_by_test_id("stMain")

    # A path that the owner did not allow is refused, and what was typed stays.
    main.get_by_text("A checkpoint", exact=True).click()
    main.get_by_role("textbox", name="Checkpoint on this machine").fill("/etc/passwd")
    main.get_by_role("textbox", name="Folder or file on this machine").fill("imagenet_sample")
    main.get_by_role("textbox", name="Folder or file on this machine").press("Enter")
    wait_until_finished(page)
    main.get_by_role("button", name="Open", exact=True).first.click()
    expect(page.get_by_test_id("stAlertContentError")).to_contain_text("outside of the folders", timeout=MINUTES)

    checkpoint = main.get_by_role("textbox", name="Checkpoint on this machine")
    checkpoint.fill("deit_tiny_patch16_224.safetensors")
    checkpoint.press("Enter")
    wait_until_finished(page)
    main.get_by_role("button", name="Open", exact=True).first.click()
    expect(main.get_by_text("Open now: deit_tiny_patch16_224")).to_be_visible(timeout=3 * MINUTES)
    wait_until_finished(page)
    no_errors(page)
    assert metric_value(page, "Evaluation images").inner_text() == "302"
    assert "study=deit_tiny" in page.url

    go_to(page, "Overview")
    page.get_by_role("button", name="Start computing").click(timeout=MINUTES)
    wait_until_finished(page, minutes=15)
    no_errors(page)
    expect(metric_value(page, "Full-precision accuracy")).to_have_text("82.5 %")

    go_to(page, "Budget")
    wait_until_finished(page)
    mixed = metric_value(page, "Top-1, mixed bits")
    if not TOP1.match(mixed.inner_text()):
        page.get_by_role("button", name="Measure mixed").click()
    expect(mixed).to_have_text(TOP1, timeout=5 * MINUTES)
    wait_until_finished(page, minutes=10)
    assert 60 < float(mixed.inner_text().split()[0]) < 83, "4 bits on average"
    no_errors(page)

    for name in ("Outliers", "Relevance", "Sensitivity", "Quantizers"):
        go_to(page, name)
        wait_until_finished(page, minutes=10)
        no_errors(page)
        expect(page.get_by_test_id("stPlotlyChart").first).to_be_visible(timeout=MINUTES)
    page.close()
