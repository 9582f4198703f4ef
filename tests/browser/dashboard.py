"""A dashboard of its own for browser tests, and what they do on every page."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 60_000
"""In milliseconds, as Playwright counts."""

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]


@dataclass(frozen=True)
class Server:
    """A running dashboard.

    Attributes:
        address: Where a browser finds it.
        process: Its process number.
    """

    address: str
    process: int


@contextmanager
def dashboard(log: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Run a dashboard on a free port; afterwards its log must hold no traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless=true", f"--server.port={port}"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=1)
            break
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
    yield Server(address, process.pid)
    process.terminate()
    process.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


def wait_until_finished(page: Page, minutes: float = 5) -> None:
    """Wait until the script has run to its end."""
    for _ in range(2):  # a rerun may begin just after the first look
        page.wait_for_timeout(500)
        expect(page.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=minutes * MINUTES)


def no_errors(page: Page) -> None:
    """Fail if the page shows a message of an error."""
    expect(page.get_by_test_id("stException")).to_have_count(0)
    expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)


def metric_value(page: Page, name: str) -> Locator:
    """The value of one of the numbers on the page, whose label begins with `name`."""
    return page.get_by_test_id("stMetric").filter(has_text=name).first.get_by_test_id("stMetricValue")
