"""Shared by all tests: saved results go to a folder of this test run, never to the user's cache."""

import os
import tempfile
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one worker for every core, before torch is imported

os.environ["MIXQVIT_CACHE"] = tempfile.mkdtemp(prefix="mixqvit-tests-")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the project; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"the reference material in {folder} is not part of a user's checkout")
    return folder
