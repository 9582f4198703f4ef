"""Eight browser sessions on one server, each moving its slider on a study of its own."""

import os
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import expect

from mixqvit.files.open_studies import open_study
from mixqvit.models.cards import EMBEDDED
from mixqvit.stages.store import Store
from mixqvit.study.library import StudyDescription, keep_study
from mixqvit.views.budget import harm_text
from mixqvit.views.overview import accuracy
from tests.browser.dashboard import MINUTES, dashboard, metric_value, needs_chromium, no_errors, wait_until_finished

pytestmark = needs_chromium

SESSIONS = 8
STEPS_DOWN = 3  # of a tenth of a bit
LARGEST_GIGABYTES = 5
SLIDER = "Budget: average bits per weight"


@pytest.fixture(scope="module")
def studies() -> dict[str, StudyDescription]:
    """Studies of which no two have the same model and the same images."""
    small = {"calibration_images": 8, "analysis_images": 4}
    return {
        f"session {number}": StudyDescription(
            EMBEDDED[number % len(EMBEDDED)], settings={**small, "evaluation_images": 40 + number}
        )
        for number in range(SESSIONS)
    }


def average_bits(number: int) -> float:
    return 3.5 + 0.2 * number


def test_eight_sessions_get_the_answers_of_a_single_user(browser, studies, tmp_path: Path):
    store = Store(tmp_path / "shared")
    for name, description in studies.items():
        keep_study(store, name, description)
    environment = {**os.environ, "MIXQVIT_CACHE": str(store.folder)}
    with dashboard(tmp_path / "log.txt", environment) as server:
        contexts = [browser.new_context(viewport={"width": 1400, "height": 900}) for _ in studies]
        pages = [context.new_page() for context in contexts]
        for number, (name, page) in enumerate(zip(studies, pages, strict=True)):
            page.goto(f"{server.address}/budget?study={name}&average_bits={average_bits(number)}")
        for page in pages:
            expect(page.get_by_test_id("stMain").get_by_role("slider", name=SLIDER)).to_be_visible(timeout=5 * MINUTES)
        memory = []
        for _ in range(STEPS_DOWN):  # all sessions move while all others compute
            for page in pages:
                page.get_by_test_id("stMain").get_by_role("slider", name=SLIDER).focus()
                page.keyboard.press("ArrowLeft")
            memory.append(psutil.Process(server.process).memory_info().rss / 1e9)
        for page in pages:
            wait_until_finished(page, minutes=15)
            no_errors(page)
        memory.append(psutil.Process(server.process).memory_info().rss / 1e9)
        shown = [
            (metric_value(page, "Predicted harm").inner_text(), metric_value(page, "Top-1, mixed bits").inner_text())
            for page in pages
        ]
        for context in contexts:
            context.close()
    assert max(memory) < LARGEST_GIGABYTES

    for number, (description, answer) in enumerate(zip(studies.values(), shown, strict=True)):
        alone = open_study(description, store=Store(tmp_path / f"alone {number}"))
        allocation = alone.allocate(average_bits=round(average_bits(number) - 0.1 * STEPS_DOWN, 1))
        measured = alone.evaluate(allocation)
        assert answer == (harm_text(allocation.harm), accuracy(measured)[0])
        in_company = open_study(description, store=store).saved_evaluation(allocation)
        assert in_company is not None, "the server measured another allocation"
        assert in_company.predicted == measured.predicted
