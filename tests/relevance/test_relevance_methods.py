import pytest
import torch

from mixqvit.errors import MixQViTError
from mixqvit.relevance.captum_methods import LAYER_METHODS, STEPS, layer_attribution_steps
from mixqvit.relevance.methods import METHODS, find_method, importance_steps
from mixqvit.relevance.propagation import propagate_steps
from mixqvit.relevance.result import MEASURES, LayerTotals, Relevance
from mixqvit.relevance.rules import RULE_SETS


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "conductance", 4)
    monkeypatch.setitem(STEPS, "integrated gradients", 2)


def _equal(found: list[LayerTotals], expected: list[LayerTotals]) -> bool:
    return len(found) == len(expected) and all(
        one.measure == other.measure
        and list(one.totals) == list(other.totals)
        and all(
            torch.equal(totals, other.totals[measure][name])
            for measure, layers in one.totals.items()
            for name, totals in layers.items()
        )
        for one, other in zip(found, expected, strict=True)
    )


def test_every_rule_set_and_layer_method_has_a_name_here() -> None:
    assert next(iter(METHODS)) == "chefer"
    assert set(METHODS) == {*RULE_SETS, *LAYER_METHODS}
    for name, method in METHODS.items():
        assert find_method(name) is method and method.name == name
        assert "arXiv" in method.description and method.description.endswith(".")
        assert method.double_precision == (name in RULE_SETS or name == "gradient x relevance")


@pytest.mark.parametrize("method", [*RULE_SETS, *LAYER_METHODS])
def test_every_method_gives_an_importance_of_every_layer(build, method: str) -> None:
    _, graph, pixels = build("swin")
    parts = list(importance_steps(graph, pixels, method=method, measure="absolute"))
    assert sum(len(part.shares[graph.layers[-1].name]) for part in parts) == 3
    for part in parts:
        assert list(part.totals) == list(MEASURES) and part.measure == "absolute"
        assert list(part.importance) == [layer.name for layer in graph.layers]
        assert min(part.importance.values()) > 0 and abs(sum(part.importance.values()) - 1) <= 1e-12


@pytest.mark.parametrize("rules", RULE_SETS)
def test_rule_sets_are_propagated(build, rules: str) -> None:
    _, graph, pixels = build("vit")
    settings = {"measure": "positive", "batch_size": 2}
    found = list(importance_steps(graph, pixels, 3, method=rules, **settings))
    assert _equal(found, list(propagate_steps(graph, pixels, 3, rules=rules, **settings)))
    assert all(isinstance(part, Relevance) and not part.outputs for part in found)


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_layer_methods_are_attributed(build, method: str) -> None:
    _, graph, pixels = build("vit")
    settings = {"measure": "positive", "batch_size": 4}
    found = list(importance_steps(graph, pixels, 3, method=method, **settings))
    assert _equal(found, list(layer_attribution_steps(graph, pixels, 3, method=method, **settings)))


def test_unknown_methods_are_refused_with_the_known_ones(build) -> None:
    _, graph, pixels = build("vit")
    with pytest.raises(MixQViTError, match=r"no importance method 'lime'; choose one of chefer, .*conductance"):
        importance_steps(graph, pixels, method="lime")
