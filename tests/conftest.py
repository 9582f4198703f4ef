"""Shared by all tests: saved results go to a folder of this test run, never to the user's cache."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one worker for every core, before torch is imported

os.environ["MIXQVIT_CACHE"] = tempfile.mkdtemp(prefix="mixqvit-tests-")


def pytest_collection_finish() -> None:
    """Keep the collector from walking through all imported modules again and again: they are never garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["MIXQVIT_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def first_results(tmp_path_factory: pytest.TempPathFactory):
    """What small studies of the embedded models begin with, for all workers of this test run."""
    from tests.small import FirstResults  # which imports torch

    base = tmp_path_factory.getbasetemp()
    return FirstResults((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "first results")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the project; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"the reference material in {folder} is not part of a user's checkout")
    return folder
