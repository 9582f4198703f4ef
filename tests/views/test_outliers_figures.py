"""Figures of the Outliers page mark the right channels and say what a grid leaves to them."""

from dataclasses import replace

import numpy as np
import pytest

from mixqvit.network.layers import Layer
from mixqvit.quantization.channels import (
    VARIANTS,
    ChannelDistribution,
    ChannelRanges,
    ChannelStatistics,
    ClipCurve,
    TokenMap,
    Variant,
)
from mixqvit.views import outlier_errors, outlier_tokens
from mixqvit.views import outliers as figures

LAYERS = tuple(
    Layer(f"blocks.{block}.mlp.fc1", "fc1", block, 8, 2, 16, (1, 4), (1, 2), f"fc1_{block}", f"norm_{block}")
    for block in range(2)
)


def variant(reach: np.ndarray, **given) -> Variant:
    fields = {
        "grid_lower": -reach,
        "grid_upper": reach,
        "ratio": np.ones(5),
        "shift": np.zeros(5),
        "value_error": np.full(5, 0.01),
        "weight_error": np.full(5, 0.08),
        "contribution": np.array([0.001, 0.002, 0.1, 0, 0.003]),
        "output_error": 0.5,
        "weight_columns": np.ones(5),
        "weight_rows": np.array([1.0, 2]),
    }
    return Variant(**(fields | given))


@pytest.fixture
def ranges() -> ChannelRanges:
    """Four channels of width 2 and, as number 2, one of width 20; channel 4 has the highest kurtosis."""
    reach = np.array([1.0, 1, 10, 1, 1])
    statistics = ChannelStatistics(
        "blocks.0.mlp.fc1", 100, -reach, reach, np.zeros(5), reach / 2, np.array([3.0, 2, 4, 3, 9])
    )
    ratio = np.array([0.5, 0.5, 5, 0.5, 0.5])
    moved = {"ratio": ratio, "weight_columns": ratio, "weight_rows": np.array([2.0, 5])}
    variants = (
        variant(np.full(5, 7.5)),
        variant(reach, output_error=0.03),
        variant(reach, output_error=0.02, **moved),
        variant(reach.clip(max=6), output_error=0.01, **moved),
    )
    return ChannelRanges("blocks.0.mlp.fc1", 4, 0.01, statistics, dict(zip(VARIANTS, variants, strict=True)))


def trace(figure, name):
    (found,) = (trace for trace in figure.data if trace.name == name)
    return found


def test_outliers_are_measured_against_the_median(ranges):
    assert ranges.statistics.is_outlier.tolist() == [False, False, True, False, False]
    assert figures.channel_frame(ranges)["times the median"].tolist() == [1, 1, 10, 1, 1]
    mild = replace(ranges.statistics, lower=ranges.statistics.lower.clip(-1), upper=ranges.statistics.upper.clip(max=1))
    assert not mild.is_outlier.any()


def test_words_say_what_one_grid_leaves_and_where_few_tokens_stand_out(ranges):
    sentence = figures.outlier_words(ranges)
    assert "1 of 5 channels is" in sentence
    assert "channel 2 is 10.0 times" in sentence
    assert "spans 2.0 of them" in sentence  # a width of 2 in steps of 15 / 15
    assert "9.0 in channel 4" in sentence


def test_per_tensor_shows_the_measured_ranges_and_one_grid(ranges):
    figure = figures.range_figure(ranges, "per tensor", "network", chosen=0)
    outlier = trace(figure, "outlier channel")
    assert (list(outlier.x), list(outlier.base), list(outlier.y)) == (["2"], [-10], [20])
    assert [line.y0 for line in figure.layout.shapes if line.type == "line"] == [-7.5, 7.5]


def test_orders_and_the_chosen_channel(ranges):
    orders = {order: figures.channel_order(ranges.statistics, order).tolist() for order in figures.ORDERS}
    assert orders["network"] == [0, 1, 2, 3, 4]
    assert orders["widest first"] == [2, 0, 1, 3, 4]
    assert orders["highest kurtosis first"] == [4, 2, 0, 3, 1]
    figure = figures.range_figure(ranges, "per channel", "widest first", chosen=3)
    assert list(figure.layout.xaxis.categoryarray) == ["2", "0", "1", "3", "4"]
    (mark,) = (shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (mark.x0, mark.x1) == (2.5, 3.5)
    assert figures.clicked_channel([{"x": "4", "y": 1.0}]) == 4
    assert figures.clicked_channel([]) is None


def test_the_clipped_grid_is_marked_per_channel(ranges):
    figure = figures.range_figure(ranges, "clipped", "network", chosen=0)
    ends = [list(found.y) for found in figure.data if found.name == "ends of its grid"]
    assert ends == [[1, 1, 6, 1, 1], [-1, -1, -6, -1, -1]]


def test_after_reparameterization_one_grid_serves_all(ranges):
    figure = figures.range_figure(ranges, "reparameterized", "network", chosen=0)
    assert list(trace(figure, "outlier channel").y) == [4]
    assert list(trace(figure, "ordinary channel").y) == [4, 4, 4, 4]
    assert [line.y0 for line in figure.layout.shapes if line.type == "line"] == [-2, 2]


def test_top_channels_follow_the_order(ranges):
    assert figures.top_channels(ranges, "network", 2)["channel"].tolist() == [2, 0]
    assert figures.top_channels(ranges, "highest kurtosis first", 2)["channel"].tolist() == [4, 2]


def test_the_overview_shows_every_measured_layer(ranges):
    found = {LAYERS[0].name: ranges.statistics}
    shown = {measure: figures.overview_grid(LAYERS, found, measure).data[0].text[0][0] for measure in figures.MEASURES}
    assert shown == {"widest ÷ median": "10.0", "outlier channels": "1", "highest kurtosis": "9.0"}
    frame = figures.overview_frame(LAYERS, found)
    assert frame["widest channel"].tolist()[0] == 2
    assert frame["channel of highest kurtosis"].tolist()[0] == 4


def test_errors_are_relative_to_the_channel(ranges):
    # 0.1 of a standard deviation of 0.5 and of 5; a column of two weights of size 1
    assert outlier_errors.channel_errors(ranges, "clipped", "of the values") == pytest.approx([20, 20, 2, 20, 20])
    assert outlier_errors.channel_errors(ranges, "clipped", "of the weights") == pytest.approx(np.full(5, 20.0))
    figure = outlier_errors.error_figure(ranges, "in the output", "widest first", chosen=2)
    shown = trace(figure, "reparameterized")
    assert list(shown.x) == ["2", "0", "1", "3", "4"]
    assert list(shown.y)[:3] == pytest.approx([10, 0.1, 0.2])
    assert np.isnan(shown.y[3])
    assert len(outlier_errors.error_frame(ranges).columns) == 1 + 3 * len(VARIANTS)


def test_the_least_error_is_named_in_words_too(ranges):
    bars = outlier_errors.error_bars(ranges).data[0]
    assert list(bars.text) == ["50 %", "3 %", "2 %", "1 % least"]
    assert list(bars.x) == pytest.approx([50, 3, 2, 1])


def test_clipping_is_described_as_measured():
    curve = ClipCurve("blocks.0.mlp.fc1", 4, {0.0: 0.02, 0.005: 0.01, 0.01: 0.03})
    words = outlier_errors.clip_words(curve, 0.01)
    assert "2 % without clipping, 3 % at the chosen 1 %" in words
    assert "least with 0.5 % clipped (1 %)" in words
    harms = {0.0: 0.001, 0.005: 0.002, 0.01: 0.003}
    assert "no clipping does the least harm" in outlier_errors.clip_words(curve, 0.01, harms)
    assert "is not the network's: it does 0.002" in outlier_errors.clip_words(curve, 0.0, harms)
    figure = outlier_errors.clip_figure(curve, 0.01, harms)
    least, chosen = ([list(found.x) for found in figure.data if found.name == name] for name in ("least", "chosen"))
    assert (least, chosen) == ([[0.5], [0.0]], [[1.0], [1.0]])
    assert len(outlier_errors.clip_figure(curve, 0.01, {}).data) == 4


def test_weights_before_and_after(ranges):
    figure = outlier_errors.weight_columns(ranges, "widest first", chosen=2)
    assert list(trace(figure, "before").y) == [1] * 5
    assert list(trace(figure, "reparameterized").y) == [5, 0.5, 0.5, 0.5, 0.5]
    rows = trace(outlier_errors.weight_rows(ranges), "clipped")
    assert (list(rows.x), list(rows.y)) == ([1, 2], [2, 5])
    words = outlier_errors.weight_words(ranges)
    assert "1.0 times the median one before, 10.0 times after" in words
    assert "median row becomes 2.33 times as wide" in words


def test_a_distribution_is_drawn_above_the_median_channels_with_the_grids_levels(ranges):
    wide = ChannelDistribution("fc1", 2, np.array([-10.0, 0, 10]), np.array([3, 1]), np.array([0, 2]), 1)
    median = ChannelDistribution("fc1", 0, np.array([-1.0, 0, 1]), np.array([2, 2]), np.array([1, 1]), 1)
    figure = outlier_tokens.distribution_figure(ranges, "clipped", wide, median)
    bars = [found for found in figure.data if found.type == "bar"]
    assert [list(found.y) for found in bars] == [[75, 25], [50, 50]]
    tokens = [list(found.x) for found in figure.data if found.name == "class token"]
    assert tokens == [[5], [-0.5, 0.5]]
    levels = [found for found in figure.data if found.name == "its grid's levels"]
    assert [found.x[::3][-1] for found in levels] == [6, 1]
    assert all(len(found.x) == 3 * 16 for found in levels)
    table = outlier_tokens.distribution_table([wide, median])
    assert table["extra (%)"].tolist() == [0, 100, 50, 50]


def test_a_map_names_tokens_and_follows_the_order():
    values = np.arange(10.0).reshape(5, 2) - 9
    found = TokenMap("fc1", values, extra_tokens=1, patches_per_row=2, windows=1)
    names = outlier_tokens.token_names(found)
    assert names[0] == "class token"
    assert names[-1] == "patch in row 1, column 1"
    heatmap = outlier_tokens.token_figure(found, [1, 0], chosen=0, limit=2.0).data[0]
    assert list(heatmap.x) == ["1", "0"]
    assert np.array(heatmap.z)[0].tolist() == [-8, -9]
    assert (heatmap.zmin, heatmap.zmax) == (-2, 2)
    assert "-9 in channel 0, class token" in outlier_tokens.map_words(found, 2.0)
    windows = TokenMap("fc1", values[:4], extra_tokens=0, patches_per_row=0, windows=2)
    assert outlier_tokens.token_names(windows)[2] == "window 1, token 0"
    assert outlier_tokens.map_frame(windows).shape == (4, 3)


def test_channels_without_any_range_do_not_divide_by_zero(ranges):
    zeros = np.zeros(5)
    flat = replace(ranges.statistics, lower=zeros, upper=zeros, deviation=zeros, kurtosis=zeros)
    flat = replace(ranges, statistics=flat)
    assert np.isfinite(figures.channel_frame(flat)["times the median"]).all()
    assert "spans 0.0 of them" in figures.outlier_words(flat)
    assert np.isfinite(outlier_errors.channel_errors(flat, "clipped", "of the values")).all()


def test_channels_that_are_outliers_in_many_layers_are_named(ranges):
    wide = ranges.statistics
    mild = replace(wide, lower=wide.lower.clip(-1), upper=wide.upper.clip(max=1))
    words = figures.recurring_words({"blocks.0.attn.qkv": wide, "blocks.0.mlp.fc1": wide, "blocks.1.mlp.fc1": mild})
    assert "2 of 3 layers" in words
    assert "**channel 2** in 2" in words
    assert "channel 2 at blocks.0.attn.qkv, 10.0 times" in words
    assert "None of the 1 layers" in figures.recurring_words({"blocks.1.mlp.fc1": mild})
