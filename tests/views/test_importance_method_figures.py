"""The comparison of methods shows what was measured and does not make more of it."""

import pytest

from mixqvit.allocation.budget import Allocation
from mixqvit.allocation.costs import Cost
from mixqvit.network.layers import Layer
from mixqvit.study.records import MethodComparison, MethodResult
from mixqvit.tasks.evaluation import Evaluation
from mixqvit.views import importance_methods as figures

LAYERS = tuple(
    Layer(name, kind, 0, 8, 2, 16, (1, 4), (1, 2), name, None) for name, kind in (("a", "qkv"), ("b", "fc1"))
)
HARMS = {"a": {2: 1.0, 3: 0.5}, "b": {2: 0.1, 3: 0.0}}


def measured(correct: int | None, images: int = 100, bits: float = 3.0) -> tuple[Allocation, Evaluation]:
    return Allocation({}, 0.0, Cost(10, 0, 0, 0, 100, bits)), Evaluation(images, images, correct, 60, 0.25)


def method(alone: int, together: int, correlation: float, **changes) -> MethodResult:
    found = {
        "importance": {"a": 0.75, "b": 0.25},
        "images": 8,
        "seconds": 0.5,
        "correlation": {2: correlation, 3: correlation / 2},
        "importance_only": measured(alone),
        "with_sensitivity": measured(together),
        "infidelity": 0.1,
        "max_sensitivity": 0.2,
    }
    return MethodResult(**found | changes)


def compared(*results: MethodResult, references=None) -> MethodComparison:
    names = [f"method {number}" for number in range(len(results))]
    agreement = {(one, other): -0.5 for one in names for other in names if one != other}
    references = {"uniform": measured(50)} if references is None else references
    return MethodComparison(3.0, dict(zip(names, results, strict=True)), references, agreement)


def test_the_table_has_a_row_per_method_and_reference():
    frame = figures.methods_frame(compared(method(40, 60, 0.9)), 2).set_index("method")
    row = frame.loc["method 0"]
    assert (row["top-1, Ω alone (%)"], row["top-1, Ω · Λ (%)"]) == (40, 60)
    assert row["Spearman with Λ at 2 bits"] == 0.9
    assert frame.loc["uniform", "top-1, Ω alone (%)"] == frame.loc["uniform", "top-1, Ω · Λ (%)"] == 50
    assert frame.loc["uniform", ["images", "infidelity"]].isna().all()


def test_without_labels_agreement_stands_for_accuracy():
    found = method(0, 0, 0.1, importance_only=measured(None), with_sensitivity=measured(None))
    comparison = compared(found, references={})
    assert figures.methods_frame(comparison, 2)["agreement, Ω alone (%)"].tolist() == [60]
    assert figures.outcome_figure(comparison).layout.xaxis.title.text == "Agreement with full precision (%)"


def test_accuracy_is_drawn_with_its_interval():
    figure = figures.outcome_figure(compared(method(40, 60, 0.9)))
    alone, together, reference = figure.data
    assert (list(alone.x), list(together.x), list(reference.x)) == ([40], [60], [50])
    low, high = measured(40)[1].interval
    assert alone.error_x.array[0] == pytest.approx(100 * high - 40)
    assert alone.error_x.arrayminus[0] == pytest.approx(40 - 100 * low)
    assert list(figure.layout.yaxis.ticktext) == ["method 0", "uniform"]
    assert alone.y[0] != together.y[0]
    assert reference.y[0] == 1


def test_only_references_can_be_drawn_first():
    figure = figures.outcome_figure(compared())
    assert [trace.name for trace in figure.data] == ["without importance"]


def test_rank_correlations_are_a_square_with_sensitivity_in_it():
    comparison = compared(method(1, 1, 0.9), method(1, 1, -0.3))
    frame = figures.agreement_frame(comparison, 2).set_index("method")
    assert frame.loc["method 0"].tolist() == [1, -0.5, 0.9]
    assert frame.loc["Λ at 2 bits"].tolist() == [0.9, -0.3, 1]
    heatmap = figures.agreement_figure(comparison, 2).data[0]
    assert (heatmap.zmin, heatmap.zmax) == (-1, 1)
    assert heatmap.text[0][1] == "−0.50"


def test_layers_are_where_importance_and_sensitivity_put_them():
    figure = figures.scatter_figure(LAYERS, {"a": 0.75, "b": 0.0}, HARMS, 3, "b")
    ring, first, second = figure.data
    assert (first.x[0], first.y[0]) == (0.75, 0.5)
    # A logarithmic axis has no zero: Ω and Λ of zero are drawn at the least there is, the hover says zero.
    assert second.x[0] == 0.75
    assert second.y[0] > 0
    assert second.customdata[0][1:].tolist() == [0.0, "0"]
    assert (ring.name, ring.customdata[0][0]) == ("looked at", "b")
    assert first.marker.symbol != second.marker.symbol
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    frame = figures.scatter_frame(LAYERS, {"a": 0.75, "b": 0.25}, HARMS, 3)
    assert frame["Λ at 3 bits (nats)"].tolist() == [0.5, 0.0]


def test_differences_inside_the_intervals_are_called_nothing():
    words = figures.comparison_words(compared(method(50, 52, 0.9), method(55, 51, 0.2)), 2, 26)
    assert words.startswith("**method 0** orders the layers most like the damage measured at 2 bits")
    assert "±0.39 by chance." in words
    assert "do not tell the allocations apart" in words


def test_clear_differences_are_counted():
    words = figures.comparison_words(compared(method(10, 90, 0.3), method(55, 88, 0.2)), 2, 26)
    assert "even this says little" in words
    assert "method 0 by Ω · Λ (90.0 %), the worst that of method 0 by Ω alone (10.0 %)" in words
    assert "of 3 of the 4 others" in words
    assert figures.comparison_words(compared(), 2, 26) == "No method is finished yet."
