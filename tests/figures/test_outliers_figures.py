"""Figures of the Outliers page mark the right channels and say what a grid leaves to them."""

from dataclasses import replace

import numpy as np
import pytest

from mixqvit.figures import outliers as figures
from mixqvit.layers import Layer
from mixqvit.outliers import ChannelRanges

LAYERS = tuple(
    Layer(f"blocks.{block}.mlp.fc1", "fc1", block, 8, 2, 16, (1, 4), (1, 2), f"fc1_{block}", f"norm_{block}")
    for block in range(2)
)


@pytest.fixture
def ranges() -> ChannelRanges:
    """Four channels of width 2 and, as number 2, one of width 20."""
    lower, upper = np.array([-1.0, -1, -10, -1, -1]), np.array([1.0, 1, 10, 1, 1])
    return ChannelRanges(
        layer="blocks.0.mlp.fc1",
        bits=4,
        lower=lower,
        upper=upper,
        grid_lower=lower / 2,
        grid_upper=upper / 2,
        moved_lower=np.full(5, -3.0),
        moved_upper=np.full(5, 3.0),
        moved_grid=(-3.5, 3.25),
        ratio=np.array([0.4, 0.4, 3.4, 0.4, 0.4]),
        clip=0.01,
        weight_before=np.ones(5),
        weight_after=np.array([1.0, 1, 4, 1, 1]),
        errors={"one scale for all channels": 0.5, "reparameterized": 0.02, "clipped and reparameterized": 0.01},
    )


def trace(figure, name):
    (found,) = (trace for trace in figure.data if trace.name == name)
    return found


def test_outliers_are_measured_against_the_median(ranges):
    assert figures.outlier_channels(ranges) == [2]
    assert figures.channel_frame(ranges)["times the median"].tolist() == [1, 1, 10, 1, 1]
    assert figures.outlier_channels(replace(ranges, lower=ranges.lower.clip(-1), upper=ranges.upper.clip(max=1))) == []


def test_words_say_what_one_scale_leaves(ranges):
    sentence = figures.outlier_words(ranges)
    assert "1 of 5 channels" in sentence
    assert "10.0 times" in sentence
    assert "uses 1.5 of the 15 steps" in sentence  # 2 / 20 of 15


def test_words_say_which_clipping_was_chosen(ranges):
    assert "1 / 99" in figures.clip_words(ranges)
    assert "No clipping" in figures.clip_words(replace(ranges, clip=0.0))


def test_before_shows_the_measured_ranges_and_one_grid(ranges):
    figure = figures.range_figure(ranges, "before", widest_first=False)
    outlier = trace(figure, "outlier channel")
    assert (list(outlier.x), list(outlier.base), list(outlier.y)) == ([2], [-10], [20])
    assert [line.y0 for line in figure.layout.shapes] == [-10, 10]


def test_widest_first_moves_the_outlier_to_the_front(ranges):
    figure = figures.range_figure(ranges, "before", widest_first=True)
    assert list(trace(figure, "outlier channel").x) == [0]
    assert trace(figure, "outlier channel").customdata[0][0] == 2


def test_the_clipped_grid_is_marked_per_channel(ranges):
    figure = figures.range_figure(ranges, "clipped grid", widest_first=False)
    ends = [list(found.y) for found in figure.data if found.name == "ends of its grid"]
    assert ends == [(ranges.upper / 2).tolist(), (ranges.lower / 2).tolist()]
    assert not figure.layout.shapes


def test_after_reparameterization_one_grid_serves_all(ranges):
    figure = figures.range_figure(ranges, "reparameterized", widest_first=False)
    assert list(trace(figure, "outlier channel").y) == [6]
    assert [line.y0 for line in figure.layout.shapes] == [-3.5, 3.25]


def test_the_least_error_is_named_in_words_too(ranges):
    bars = figures.error_bars(ranges).data[0]
    assert list(bars.text) == ["50 %", "2 %", "1 % least"]
    assert list(bars.x) == pytest.approx([50, 2, 1])


def test_weight_columns_before_and_after(ranges):
    figure = figures.weight_columns(ranges)
    assert list(trace(figure, "before").y) == ranges.weight_before.tolist()
    assert list(trace(figure, "after").y) == ranges.weight_after.tolist()
    assert figures.weight_spread(ranges.weight_after) == 4


def test_the_widest_channels_come_first(ranges):
    assert figures.widest_channels(ranges, 2)["channel"].tolist() == [2, 0]


def test_the_overview_shows_every_measured_layer():
    widest = {"blocks.0.mlp.fc1": 1.5}
    figure = figures.overview_strip(LAYERS, widest)
    assert list(figure.data[0].x) == ["block 0 · fc1"]
    assert list(figure.layout.xaxis.categoryarray) == ["block 0 · fc1", "block 1 · fc1"]
    assert figures.overview_frame(LAYERS, widest).values.tolist() == [["blocks.0.mlp.fc1", 1.5]]


def test_channels_without_any_range_do_not_divide_by_zero(ranges):
    flat = replace(ranges, lower=np.zeros(5), upper=np.zeros(5))
    assert np.isfinite(figures.channel_frame(flat)["times the median"]).all()
    assert "0.0 of the 15 steps" in figures.outlier_words(flat)
