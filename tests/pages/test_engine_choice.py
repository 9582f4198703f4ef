"""Where sweeps run, chosen in the sidebar."""

from streamlit.testing.v1 import AppTest

from mixqvit.engines.base import Engine
from mixqvit.engines.processes import Processes
from mixqvit.engines.ray_cluster import RayCluster
from mixqvit.engines.this_process import ThisProcess
from mixqvit.study.study import Study
from tests.pages.conftest import APP, STAGES


def opened(monkeypatch, **chosen: object) -> tuple[AppTest, Engine]:
    """Return the Overview with its sidebar, kept from computing anything, and where its study computes."""
    engines, with_engine = [], Study.with_engine

    def noted(study, engine):
        engines.append(engine)
        return with_engine(study, engine)

    monkeypatch.setattr(Study, "with_engine", noted)
    at = AppTest.from_file(str(APP), default_timeout=600)
    for stage in STAGES:
        at.session_state[f"stopped {stage} on digits_vit 1"] = True
    for name, value in chosen.items():
        at.session_state[name] = value
    at.run()
    assert not at.exception
    return at, engines[-1]


def test_a_study_is_measured_in_this_process_unless_the_sidebar_says_otherwise(monkeypatch):
    assert opened(monkeypatch)[1] == ThisProcess()
    assert opened(monkeypatch, engine="processes", workers=3)[1] == Processes(3)


def test_who_runs_the_dashboard_names_the_cluster_and_who_opens_a_page_does_not(monkeypatch):
    monkeypatch.delenv("MIXQVIT_RAY_ADDRESS", raising=False)
    page, engine = opened(monkeypatch, engine="ray", workers=2)
    assert engine == RayCluster(None, 2)
    assert "this machine only" in " ".join(caption.value for caption in page.sidebar.caption)
    assert not page.sidebar.text_input
    monkeypatch.setenv("MIXQVIT_RAY_ADDRESS", "10.0.0.1:6379")
    page, engine = opened(monkeypatch, engine="ray", workers=2)
    assert engine == RayCluster("10.0.0.1:6379", 2)
    assert "10.0.0.1:6379" in " ".join(caption.value for caption in page.sidebar.caption)
