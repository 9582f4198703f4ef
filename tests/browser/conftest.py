"""One browser for all browser tests, a server for each file of them."""

import os

import pytest
from playwright.sync_api import sync_playwright

from tests.browser.dashboard import CHROMIUM, dashboard


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A dashboard on the cache of this test run; yields its address."""
    with dashboard(tmp_path_factory.mktemp("server") / "log.txt", dict(os.environ)) as running:
        yield running.address


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(server)
    yield page
    page.close()
