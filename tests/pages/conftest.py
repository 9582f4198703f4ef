"""Opening a page without a browser."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from mixqvit.stages.store import Store
from mixqvit.study.study import Study
from tests.small import SMALL

APP = Path(__file__).resolve().parents[2] / "app.py"
STAGES = ("Accuracy", "Relevance", "Sensitivity", "Mixed bits", "Uniform bits")


@pytest.fixture(scope="module", autouse=True)
def small_studies(first_results):
    """Make the pages open small studies, and find what the embedded ones begin with."""
    for name in ("digits_vit", "digits_swin"):
        first_results.put(name, Store())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixqvit.files.open_studies.Settings", SMALL)
        yield


@pytest.fixture(scope="session")
def study() -> Study:
    """The study that the pages open by default."""
    return Study("digits_vit", settings=SMALL())


@pytest.fixture
def open_page():
    """Open one page; the Overview, which runs before it, is kept from computing anything."""

    def open_page(name: str, model: str = "digits_vit", stopped: tuple[str, ...] = ()) -> AppTest:
        at = AppTest.from_file(str(APP), default_timeout=600)
        at.query_params["study"] = model
        for stage in STAGES:
            at.session_state[f"stopped {stage} on {model} 1"] = True
        at.run()
        for stage in STAGES:
            at.session_state[f"stopped {stage} on {model} 1"] = stage in stopped
        at.switch_page(f"pages/{name}.py").run()
        assert not at.exception
        return at

    return open_page
