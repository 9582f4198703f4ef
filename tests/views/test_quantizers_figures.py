"""Figures of the Quantizers page sort, mark and describe what was measured."""

import numpy as np
import pytest

from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.quantization.quantizer_comparison import FittedQuantizer, Histogram, OperandComparison
from mixqvit.quantization.quantizers.base import Described
from mixqvit.tasks.evaluation import Evaluation
from mixqvit.views import quantizers as figures

EDGES = np.array([0.0, 0.5, 1.0])


def fitted(name: str, error: float, recipes: tuple[str, ...] = (), per_channel: bool = False) -> FittedQuantizer:
    errors = {bits: error / 4**bits for bits in BIT_WIDTHS}
    levels = {bits: np.linspace(0, error, 2**bits) for bits in BIT_WIDTHS}
    look = ("min-max", "percentile", "per channel").index(name)
    return FittedQuantizer(Described(name, "what", "when", "source"), look, recipes, per_channel, errors, levels)


@pytest.fixture
def comparison() -> OperandComparison:
    quantizers = (
        fitted("min-max", 64.0, ("min-max",)),
        fitted("percentile", 0.0),
        fitted("per channel", 16.0, ("mix-qvit",), per_channel=True),
    )
    values, channel = Histogram(EDGES, np.array([1000, 0])), Histogram(EDGES, np.array([10, 0]))
    return OperandComparison("blocks.0.attn.matmul2", "value", values, 5, channel, quantizers)


def test_every_look_is_a_colour_and_a_symbol_of_its_own(comparison):
    assert len({colour for colour, _ in figures._LOOKS}) == len({symbol for _, symbol in figures._LOOKS}) == 8
    drawn = [(trace.line.color, trace.marker.symbol) for trace in figures.error_curves(comparison, 4).data]
    assert drawn == list(figures._LOOKS[:3])


def test_bars_are_sorted_and_the_default_is_marked(comparison):
    (bars,) = figures.error_bars(comparison, 3, "mix-qvit").data
    assert list(bars.y) == ["percentile", "per channel", "min-max"]
    assert list(bars.x) == pytest.approx([0, 25, 100])
    assert ["default" in text for text in bars.text] == [False, True, False]
    # Bars end where the error is as large as the output; the number does not.
    (wide,) = figures.error_bars(comparison, 2, "mix-qvit").data
    assert list(wide.x) == pytest.approx([0, 100, 100])
    assert wide.text[2] == "400 %"


def test_curves_leave_out_what_a_logarithm_cannot_show(comparison):
    drawn = {trace.name: list(trace.y) for trace in figures.error_curves(comparison, 4).data}
    assert drawn["percentile"] == [None] * len(BIT_WIDTHS)
    assert drawn["min-max"] == pytest.approx([6400 / 4**bits for bits in BIT_WIDTHS])
    assert figures.error_frame(comparison)["error at 3 bits (%)"].tolist() == pytest.approx([100, 0, 25])


def test_words_name_the_least_error_and_the_defaults_choice(comparison):
    words = figures.error_words(comparison, 3, "mix-qvit")
    assert "**percentile** changes the layer's output least: by 0 %" in words
    assert "uses per channel (25 %)" in words
    assert "min-max" not in figures.error_words(comparison, 3, "none").replace("**", "")
    without = OperandComparison(**{**vars(comparison), "quantizers": comparison.quantizers[::2]})
    words = figures.error_words(without, 3, "mix-qvit")
    assert "min-max by 4.0 times as much" in words
    assert "mix-qvit, uses it" in words


def test_grids_show_the_levels_under_the_values_they_serve(comparison):
    figure = figures.grid_figure(comparison, 2, ["min-max", "per channel"])
    bars = [trace for trace in figure.data if trace.type == "bar"]
    levels = [trace for trace in figure.data if trace.type == "scatter"]
    assert [list(trace.customdata[:, 2]) for trace in bars] == [[10], [1000]]
    assert [len(trace.x) for trace in levels] == [4, 4]
    assert levels[0].x[-1] == 16
    assert "channel 5" in figure.layout.annotations[0].text
    frame = figures.grid_frame(comparison, 2, ["per channel"])
    assert frame["what"].tolist() == ["level"] * 4 + ["bin"] * 4
    assert frame["values"].dropna().tolist() == [1000, 0, 10, 0]


def test_recipes_are_drawn_as_far_as_measured_with_full_precision_as_a_line():
    found = {
        "full precision": Evaluation(100, 100, 95, 100, 0.0),
        "min-max": Evaluation(100, 100, 40, 42, 2.0),
        "mix-qvit": Evaluation(100, 100, 90, 93, 0.1),
    }
    names = ["min-max", "fq-vit", "mix-qvit"]
    figure = figures.recipe_figure(found, names, 3, "mix-qvit")
    top1, agreement = figure.data
    assert list(top1.x) == pytest.approx([40, 90])
    assert list(agreement.x) == pytest.approx([42, 93])
    assert top1.y[1] != "mix-qvit"
    assert "mix-qvit" in top1.y[1]
    assert top1.x[0] - top1.error_x.arrayminus[0] == pytest.approx(100 * found["min-max"].interval[0])
    assert figure.layout.shapes[0].x0 == pytest.approx(95)
    frame = figures.recipe_frame(found, dict.fromkeys(names, "how"))
    assert frame["recipe"].tolist() == ["full precision", "min-max", "mix-qvit"]
    words = figures.recipe_words(found, 3, "mix-qvit")
    assert "**mix-qvit** stays nearest" in words
    assert "overlap" not in words


def test_images_without_labels_have_an_agreement_only():
    found = {"full precision": Evaluation(10, 10, None, 10, 0.0), "adalog": Evaluation(10, 10, None, 9, 0.2)}
    figure = figures.recipe_figure(found, ["adalog"], 4, "mix-qvit")
    assert [trace.name for trace in figure.data] == ["agreement, 95 % interval"]
    assert figure.layout.showlegend  # plotly leaves it out for one trace
    frame = figures.recipe_frame(found, {"adalog": "how"})
    assert "top-1 (%)" not in frame
    low, high = found["adalog"].agreement_interval
    assert frame.loc[1, ["agreement (%)", "from (%)", "to (%)"]].tolist() == pytest.approx([90, 100 * low, 100 * high])
    assert figures.recipe_words(found, 4, "mix-qvit") == ""
