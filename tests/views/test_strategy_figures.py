"""Strategies side by side: every one with its own numbers, controls told apart."""

from dataclasses import replace

import pytest

from mixqvit.study.records import StrategyComparison, StrategyResult
from mixqvit.views import strategies as figures
from tests.views.allocations import allocation, evaluation


def result(correct: int, kl: float, harm: float) -> StrategyResult:
    return StrategyResult(allocation(), harm, evaluation(correct, kl), 12.0, 0.01)


COMPARISON = StrategyComparison(
    {
        "random": result(100, 2.0, 5.0),
        "mix-qvit": result(180, 0.2, 0.5),
        "sensitivity": result(185, 0.1, 0.4),
    },
    {"uniform": "No uniform setting fits."},
)


def trace(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_each_strategy_has_its_number_and_interval_and_controls_come_last():
    figure = figures.strategy_figure(COMPARISON, "Top-1 accuracy", "mix-qvit")
    assert list(figure.layout.yaxis.categoryarray) == ["random", "sensitivity", "mix-qvit"]  # from the bottom
    chosen, others, controls = (trace(figure, name) for name in ("shown above", "strategies", "controls"))
    assert (list(chosen.y), list(chosen.x)) == (["mix-qvit"], [90.0])
    assert (list(others.y), list(others.x)) == (["sensitivity"], [92.5])
    assert (list(controls.y), list(controls.x)) == (["random"], [50.0])
    lowest, highest = evaluation(180).interval
    assert chosen.error_x.array[0] == pytest.approx(100 * highest - 90)
    assert chosen.error_x.arrayminus[0] == pytest.approx(90 - 100 * lowest)
    assert len({found.marker.symbol for found in figure.data}) == 3


@pytest.mark.parametrize(("measure", "value"), [("KL divergence", 0.2), ("Predicted harm", 0.5), ("Agreement", 75.0)])
def test_other_measures_show_their_own_numbers(measure, value):
    figure = figures.strategy_figure(COMPARISON, measure, "mix-qvit")
    assert list(trace(figure, "shown above").x) == [value]
    assert (figure.layout.xaxis.type == "log") == (measure != "Agreement")


def test_without_labels_there_is_no_accuracy():
    found = replace(COMPARISON.results["random"], evaluation=evaluation(None))
    unlabelled = StrategyComparison({"random": found})
    assert not trace(figures.strategy_figure(unlabelled, "Top-1 accuracy", "mix-qvit"), "controls").x
    assert "top-1 (%)" not in figures.strategy_frame(unlabelled)


def test_the_frame_has_a_row_per_strategy():
    frame = figures.strategy_frame(COMPARISON).set_index("strategy")
    assert frame.index.tolist() == ["mix-qvit", "sensitivity", "random"]
    row = frame.loc["sensitivity"]
    assert (row["predicted harm"], row["top-1 (%)"], row["KL (nats)"], row["scoring (s)"]) == (0.4, 92.5, 0.1, 12.0)
    assert row["gap (%)"] == 0


def test_words_say_so_where_a_simpler_criterion_wins():
    words = figures.strategy_words(COMPARISON, "mix-qvit")
    assert "**sensitivity** (0.1 nats)" in words
    assert "mix-qvit is second of 3" in words
    assert "Farthest: random" in words and "criterion matters" in words
    first = StrategyComparison({**COMPARISON.results, "random": result(190, 0.05, 0.1)})
    assert "does not help" in figures.strategy_words(first, "mix-qvit")
    assert figures.strategy_words(StrategyComparison({}), "mix-qvit") == ""


def test_without_labels_agreement_stands_first_and_top1_is_not_offered():
    found = StrategyComparison({"mix-qvit": result(None, 0.2, 0.5)})
    assert figures.measures(has_labels=False)[0] == "Agreement"
    assert set(figures.MEASURES) - set(figures.measures(has_labels=False)) == {"Top-1 accuracy"}
    frame = figures.strategy_frame(found)
    low, high = evaluation(None).agreement_interval
    assert frame.loc[0, ["agreement (%)", "from (%)", "to (%)"]].tolist() == pytest.approx([75, 100 * low, 100 * high])
