import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mixqvit
from mixqvit.allocation.request import Request
from mixqvit.allocation.search import _SOLVERS
from mixqvit.commands.parser import parser
from mixqvit.criteria.choices import ChoiceHarms
from mixqvit.criteria.criterion import NOTHING, Asked, Criterion, Given, Search
from mixqvit.criteria.error_power import importance_only
from mixqvit.criteria.registry import CRITERIA, find_criterion
from mixqvit.errors import AllocationError
from mixqvit.network.bits import possible_bits
from mixqvit.stages.context import Context
from mixqvit.study.settings import Settings
from tests.stages.tiny_study import tiny_study

ROOM = Path(mixqvit.__file__).parent / "criteria"
BELOW = ("cache", "criteria", "engines", "errors", "images", "models", "network", "notes")
BELOW += ("quantization", "relevance", "stages", "tasks")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tiny_study(tmp_path_factory.mktemp("store"), settings=Settings(calibration_images=2, analysis_images=2))


def test_names_are_unique_sentences_are_sentences_and_controls_come_last():
    assert all(name == criterion.name for name, criterion in CRITERIA.items())
    assert len({type(criterion) for criterion in CRITERIA.values()}) == len(CRITERIA)
    assert all(criterion.sentence[0].isupper() and criterion.sentence[-1] == "." for criterion in CRITERIA.values())
    controls = [criterion.is_control for criterion in CRITERIA.values()]
    assert controls == sorted(controls)
    with pytest.raises(AllocationError, match=r"no allocation strategy 'luck'; choose one of mix-qvit, .*inverse"):
        find_criterion("luck")


def test_every_search_has_a_solver():
    assert set(_SOLVERS) == set(Search)


def test_all_criteria_are_known_without_torch():
    code = "import sys, mixqvit.criteria.registry; print({'torch', 'timm', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_no_criterion_imports_a_room_above():
    for file in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                for name in names:
                    assert name.split(".")[0] not in ("streamlit", "plotly", "pages"), f"{file.name} imports {name}"
                    assert not name.startswith("mixqvit.") or name.split(".")[1] in BELOW, f"{file.name} imports {name}"


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_are_those_of_the_stages_that_it_needs_and_cover_every_choice(study, name, monkeypatch):
    criterion = CRITERIA[name]
    for tied in (True, False) if criterion.is_independent else (True,):
        request = Request(strategy=name, tied=tied)
        list(study.score_steps(request))
        with monkeypatch.context() as patch:
            for stage in study.scores.stages(request):
                patch.setattr(type(stage), "compute", lambda *_: pytest.fail("this was not named among what it needs"))
            harms = criterion.harms(study, request)
        assert list(harms) == [layer.name for layer in study.layers]
        for layer in study.layers:
            possible = possible_bits(layer, tied or not criterion.is_search)
            assert set(harms[layer.name]) == set(possible)
        assert study.scores.estimate(request) == 0


def test_what_takes_long_is_estimated_from_what_is_missing(study, tmp_path):
    fresh = tiny_study(tmp_path)
    fresh.memory["seconds per image", 4] = (float("inf"), 1.0)
    for name, seconds in (("hawq-v2", 6 * 110), ("limpq", 6 * 120), ("uniform", 0)):
        assert fresh.scores.estimate(name) == pytest.approx(seconds)
    assert fresh.scores.estimate("clado") > 0


class Sizes(Criterion):
    """Layers count by their weights."""

    name = "sizes"
    sentence = "The number of weights in place of Ω."

    def harms(self, study: Context, asked: Asked, given: Given = NOTHING) -> ChoiceHarms:
        return importance_only(study.layers, {layer.name: layer.parameters for layer in study.layers}, asked.tied)


def test_a_criterion_is_known_everywhere_once_it_is_listed(study, monkeypatch):
    monkeypatch.setitem(CRITERIA, Sizes.name, Sizes())
    assert study.strategies["sizes"] == Sizes.sentence
    options = parser().parse_args(["allocate", "--average-bits", "3", "--strategy", "sizes"])
    assert Request.from_json({"strategy": options.strategy}).criterion is CRITERIA["sizes"]
    *_, last = study.compare_strategies_steps(("sizes", "uniform"), average_bits=3.0)
    assert last.result.results["sizes"].allocation == study.allocate(3.0, strategy="sizes")
    assert study.allocate(3.0, strategy="sizes").cost.average_bits <= 3
    assert len(list(study.frontier_steps(strategy="sizes"))) > 1
