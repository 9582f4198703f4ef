"""The report: everything is there, nothing is loaded, and what people named is only text."""

import io
import json
import math
import re
import zipfile
from dataclasses import asdict
from functools import partialmethod
from html.parser import HTMLParser

import pandas as pd
import pytest

from mixqvit.commands import main
from mixqvit.commands.parser import BAD_INPUT
from mixqvit.errors import ReportError, UnsupportedOperationError
from mixqvit.notes import Note
from mixqvit.relevance.methods import METHODS
from mixqvit.report.files import Report
from mixqvit.report.steps import report_steps
from mixqvit.stages.store import Store
from mixqvit.study.study import Study
from tests.small import SMALL

NAME = 'digits </script><img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def study(first_results) -> Study:
    return Study("digits_vit", settings=SMALL(), store=first_results.put("digits_vit", Store()))


@pytest.fixture(scope="module")
def report(study) -> Report:
    *_, last = report_steps(study, name=NAME)
    return last.result


class _Tags(HTMLParser):
    """Collects all tags with their attributes, and the text of JSON blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.blocks: dict[str, str] = {}
        self._block = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._block = dict(attrs).get("id", "") if tag == "script" else ""

    def handle_data(self, data):
        if self._block:
            self.blocks[self._block] = self.blocks.get(self._block, "") + data


@pytest.fixture(scope="module")
def tags(report) -> _Tags:
    found = _Tags()
    found.feed(report.html)
    return found


def test_the_page_loads_nothing(tags):
    for tag, attributes in tags.tags:
        assert "src" not in attributes
        if "href" in attributes:
            assert attributes["href"].startswith(("#", "data:"))
        assert tag not in ("iframe", "object", "embed", "base")
    assert sum(tag == "script" and "id" not in attributes for tag, attributes in tags.tags) == 2


def test_a_hostile_name_is_only_text(report, tags):
    assert "<img" not in report.html.replace("\\u003cimg", "").split("</nav>")[0].split("<body>")[1]
    assert not [attributes for tag, attributes in tags.tags if "onerror" in attributes]
    assert "digits &lt;/script&gt;" in report.html


def test_every_figure_has_its_numbers(tags):
    places = [attributes["data-figure"] for tag, attributes in tags.tags if "data-figure" in attributes]
    assert len(places) == len(set(places)) >= 15
    for place in places:
        figure = json.loads(tags.blocks[place])
        assert figure["data"] and figure["layout"]


def test_all_settings_versions_and_layers_are_there(report, study):
    for name in asdict(study.settings):
        assert name in report.html
    for version in study.made_with.values():
        assert version in report.html
    for layer in study.layers:
        assert layer.name in report.html
    assert study.graph.fingerprint in report.html


def test_the_bundle_holds_the_same_as_tables_and_json(report, study):
    with zipfile.ZipFile(io.BytesIO(report.bundle)) as archive:
        names = archive.namelist()
        document = json.loads(archive.read("report.json"), parse_constant=lambda word: pytest.fail(word))
        frames = {name: pd.read_csv(archive.open(name)) for name in names if name.endswith(".csv")}
    assert len(set(names)) == len(names) >= 10
    assert document["study"] == NAME
    assert document["bits"].keys() == {layer.name for layer in study.layers}
    assert set(document["measured"]) == {"full precision", "mixed", "uniform 4 bits"}
    assert document["measured"]["mixed"]["kl"] == study.evaluate({n: tuple(p) for n, p in document["bits"].items()}).kl
    assert len(frames["quantized_layers.csv"]) == len(study.layers)
    assert len(frames["sensitivity.csv"]) == 7 * len(study.layers)


def test_the_same_study_gives_the_same_tables(report, study):
    *_, last = report_steps(study, name=NAME)
    assert last.result.bundle == report.bundle
    dated = re.compile(r"report of \d{4}-\d\d-\d\d")
    assert dated.sub("", last.result.html) == dated.sub("", report.html)


def test_given_bits_are_reported(study):
    *_, last = report_steps(study, study.resolved(3))
    with zipfile.ZipFile(io.BytesIO(last.result.bundle)) as archive:
        document = json.loads(archive.read("report.json"))
    assert document["bits"]["head"] == [3, 3]
    assert document["request"] == {}


@pytest.mark.slow
def test_comparisons_are_made_within_the_bits_that_were_given(first_results, monkeypatch):
    methods = ("chefer", "gradient x activation")
    monkeypatch.setattr("mixqvit.study.relevance.METHODS", {name: METHODS[name] for name in methods})
    monkeypatch.setattr("mixqvit.relevance.stages.QUALITY_IMAGES", 1)
    some = partialmethod(Study.compare_strategies_steps, ("mix-qvit", "uniform"))
    monkeypatch.setattr(Study, "compare_strategies_steps", some)
    study = Study("digits_swin", settings=SMALL(), store=first_results.put("digits_swin", Store()))
    *_, last = report_steps(study, study.resolved(2), comparisons=True)
    document = json.loads(zipfile.ZipFile(io.BytesIO(last.result.bundle)).read("report.json"))
    average = document["measured"]["mixed"]["cost"]["average_bits"]
    assert average < 2.1
    assert last.result.html.count(f"Within {math.ceil(100 * average) / 100:g} average bits") == 2
    assert len(table_of(last.result, "strategies.csv")) == 2
    assert set(methods) < set(table_of(last.result, "kinds_of_importance.csv")["method"])


def table_of(report: Report, name: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(zipfile.ZipFile(io.BytesIO(report.bundle)).read(name)))


def test_a_model_without_importance_is_reported_by_sensitivity(study, monkeypatch):
    def refuse(self, method=None):
        raise UnsupportedOperationError("Operation erf has no relevance rule.")
        yield

    monkeypatch.setattr(Study, "relevance_steps", refuse)
    *_, last = report_steps(study)
    assert "Operation erf has no relevance rule." in last.result.html


def test_files_are_written_side_by_side_or_not_at_all(report, tmp_path):
    page, tables = report.write(tmp_path / "found.html")
    assert page.read_text(encoding="utf-8") == report.html
    assert tables == tmp_path / "found.zip"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.html", "found.zip"]
    with pytest.raises(ReportError, match="cannot be written"):
        report.write(tmp_path / "nowhere" / "found.html")
    with pytest.raises(ReportError, match="name the page"):
        report.write(tmp_path / "found.zip")


def test_the_command_says_at_once_where_it_cannot_write(capfd, tmp_path):
    assert main(["report", "--model", "digits_vit", "--output", str(tmp_path / "no" / "a.html")]) == BAD_INPUT
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "does not exist" in line


def test_notes_are_on_the_page_and_in_the_bundle(study, monkeypatch):
    told = (Note("Ten images were skipped."), Note("The labels look <shifted>.", is_warning=True))
    monkeypatch.setattr(Study, "notes", told)
    *_, last = report_steps(study)
    assert "<p>Ten images were skipped.</p>" in last.result.html
    assert "<p><strong>Warning:</strong> The labels look &lt;shifted&gt;.</p>" in last.result.html
    with zipfile.ZipFile(io.BytesIO(last.result.bundle)) as archive:
        assert json.loads(archive.read("report.json"))["notes"] == [note.text for note in told]
