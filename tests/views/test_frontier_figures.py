"""The frontier shows predictions above measurements, each exactly what it is given."""

from dataclasses import replace
from math import nan

import pytest

from mixqvit.allocation.costs import cost
from mixqvit.network.bits import uniform
from mixqvit.views import frontier as figures
from tests.views.allocations import BITS, LAYERS, STORAGE, evaluation

COST = cost(LAYERS, BITS, STORAGE)
MIXED = figures.Point("mixed", COST, 0.5, evaluation(180))
EIGHT = figures.Point("uniform", replace(COST, average_bits=8.0, weight_bytes=10**6), 0.6)
TWO = figures.Point("uniform", replace(COST, average_bits=2.0), 0.9, evaluation(150))
CURVE = [figures.Point("mixed", cost(LAYERS, uniform(LAYERS, bits), STORAGE), 1 / bits, budget=bits) for bits in (2, 3)]


def draw(points=(MIXED, EIGHT, TWO), current=MIXED, full=None, measure="Top-1 accuracy", curve=CURVE):
    return figures.frontier_figure(curve, points, current, full, measure)


def traces(figure, name, row):
    axis = "y" if row == 1 else "y2"
    return next(trace for trace in figure.data if trace.name == name and (trace.yaxis or "y") == axis)


def test_the_curve_is_the_optimum_of_every_budget():
    line = traces(draw(), "best of every budget", 1)
    assert list(line.x) == pytest.approx([2, 3])
    assert list(line.y) == pytest.approx([1 / 2, 1 / 3])
    assert "the best within 2.0 average bits" in line.text[0]


def test_settings_are_predicted_always_and_shown_below_only_if_measured():
    figure = draw()
    assert list(traces(figure, "uniform bits", 1).x) == [2.0, 8.0]
    assert list(traces(figure, "uniform bits", 2).x) == [2.0]
    assert list(traces(figure, "mixed bits", 2).y) == [90.0]
    assert list(traces(figure, "shown now", 1).y) == [0.5]
    assert list(traces(figure, "shown now", 2).y) == [90.0]


def test_measured_points_carry_their_intervals():
    bars = traces(draw(), "mixed bits", 2).error_y
    lowest, highest = MIXED.evaluation.interval
    assert bars.array[0] == pytest.approx(100 * highest - 90)
    assert bars.arrayminus[0] == pytest.approx(90 - 100 * lowest)


def test_full_precision_is_a_line_with_its_interval():
    shapes = draw(full=evaluation(190)).layout.shapes
    assert shapes[0].y0 == 95.0
    assert shapes[1].y0 == pytest.approx(100 * evaluation(190).interval[0])
    assert not draw(full=evaluation(190), measure="KL divergence").layout.shapes


def test_points_without_labels_have_no_accuracy_but_agreement_and_kl():
    point = replace(MIXED, evaluation=evaluation(None))
    accuracy = draw([point], point)
    assert not traces(accuracy, "mixed bits", 2).x
    assert [trace.yaxis for trace in accuracy.data if trace.name == "shown now"] == ["y"]
    assert list(traces(draw([point], point, measure="Agreement with full precision"), "mixed bits", 2).y) == [75.0]
    assert list(traces(draw([point], point, measure="KL divergence"), "mixed bits", 2).y) == [0.25]


def test_what_is_held_as_a_is_named():
    figure = draw([replace(MIXED, name="A"), EIGHT])
    assert list(traces(figure, "held as A", 2).y) == [90.0]
    assert not any(trace.name == "mixed bits" for trace in figure.data)


def test_a_harm_that_is_not_known_is_not_drawn():
    unknown = replace(MIXED, harm=nan)
    figure = draw([unknown], unknown, curve=[])
    assert not traces(figure, "mixed bits", 1).x
    assert list(traces(figure, "mixed bits", 2).y) == [90.0]
    assert "predicted harm" not in traces(figure, "mixed bits", 2).text[0]


def test_the_frame_has_the_frontier_and_all_settings():
    frame = figures.frontier_frame(CURVE, [MIXED, EIGHT])
    assert frame["setting"].tolist() == ["best of budget", "best of budget", "mixed", "uniform"]
    assert frame.loc[2, "top-1"] == 0.9
    assert frame.loc[2, "images"] == 200
    assert frame.loc[[0, 1, 3], "top-1"].isna().all()


def test_words_name_the_larger_uniform_setting_that_mixed_bits_beat():
    words = figures.frontier_words([TWO, EIGHT], replace(MIXED, cost=replace(COST, average_bits=3.0)))
    assert "than uniform 8 bits (0.6)" in words
    assert "At 3.00 average bits" in words
    assert figures.frontier_words([replace(EIGHT, harm=0.1)], MIXED) == ""
    assert figures.frontier_words([replace(EIGHT, harm=nan)], MIXED) == ""
