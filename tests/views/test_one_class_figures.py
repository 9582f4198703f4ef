"""Where a model has one class, figures and words show that nothing was measured, and none of them fails."""

import json
from dataclasses import replace

import pytest

from mixqvit.study.records import MethodComparison, StrategyComparison, StrategyResult
from mixqvit.training.settings import TrainingSettings
from mixqvit.views import budget, frontier, importance_methods, overview, quantizers, strategies, training
from mixqvit.views.accuracy import accuracy_columns
from tests.views.allocations import allocation, of_one_class

EVALUATIONS = pytest.mark.parametrize("found", [of_one_class(), of_one_class(None)], ids=["labelled", "bare"])


def shown(figure) -> str:
    """Return all texts and numbers of a figure, in which JSON writes NaN as null."""
    return json.dumps(json.loads(figure.to_json()), allow_nan=False)


@EVALUATIONS
def test_words_have_dashes(found):
    assert overview.accuracy(found) == ("–", "one class: any bits are right")
    mixed = allocation()
    assert "**Mixed bits: –**" in overview.four_bits_give(mixed, found, found, 10, 100)
    text = budget.comparison({"mixed": (mixed.cost, 0.5, found)}, has_labels=found.correct is not None)
    assert "| KL divergence | – |" in text
    assert "nan" not in text
    assert accuracy_columns(found)


@EVALUATIONS
def test_figures_are_drawn_without_numbers(found):
    mixed = allocation()
    point = frontier.Point("mixed", mixed.cost, 0.5, found)
    result = StrategyResult(mixed, 0.5, found, 1.0, 0.1)
    compared = StrategyComparison({"mix-qvit": result, "random": replace(result, predicted_harm=0.7)})
    measured = {"full precision": found, "mix-qvit": found, "min-max": found}
    figures = [
        *(frontier.frontier_figure([point], [point], point, found, measure) for measure in frontier.MEASURES),
        *(strategies.strategy_figure(compared, measure, "mix-qvit") for measure in strategies.measures(True)),
        quantizers.recipe_figure(measured, ["min-max", "mix-qvit"], 4, "mix-qvit"),
        training.loss_curves(None, TrainingSettings(), found),
        training.accuracy_curves(None, TrainingSettings(), found.accuracy, found, found),
    ]
    for figure in figures:
        assert "nan" not in shown(figure)
    assert strategies.strategy_words(compared, "mix-qvit") == quantizers.recipe_words(measured, 4, "mix-qvit") == ""
    methods = MethodComparison(4.0, {}, {"uniform": (mixed, found), "sensitivity only": (mixed, found)}, {})
    words = importance_methods.outcome_frame(methods)
    assert words["KL (nats)"].isna().all()
