"""Images side by side: every picture with its own map, on one scale or each on its own."""

import numpy as np
import pytest

from mixqvit.views import image_rows as figures
from mixqvit.views import maps
from tests.views.explained import explained

NAMES = ["zero", "one", "two"]


def heatmaps(figure) -> list:
    return [trace for trace in figure.data if trace.type == "heatmap"]


def test_maps_are_those_that_the_model_has():
    assert figures.map_names(explained()) == ["pixels", "attribution", "patches", "block 0", "block 1"]
    assert figures.map_names(explained(class_token=False)) == ["pixels", "patches", "block 0", "block 1"]
    assert figures.map_words("block 1") == "tokens after block 1"


def test_one_scale_keeps_the_values_and_ends_at_the_largest():
    results = [explained(), explained(scale=4)]
    figure = figures.row_figure(results, NAMES, "pixels", True)
    assert figure.layout.coloraxis.cmax == pytest.approx(maps.scale_end([found.pixels for found in results]))
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax
    assert [trace.z[3][5] for trace in heatmaps(figure)] == pytest.approx([-0.75, -3])


def test_scales_of_their_own_make_maps_of_different_size_alike():
    results = [explained(), explained(scale=4)]
    figure = figures.row_figure(results, NAMES, "pixels", False)
    assert figure.layout.coloraxis.cmax == 1
    first, second = heatmaps(figure)
    assert first.z == pytest.approx(second.z)
    assert first.z[3][5] == pytest.approx(-0.75 / maps.scale_end([results[0].pixels]))
    assert f"{maps.scale_end([results[0].pixels]):.3e}" in first.hovertemplate


def test_each_picture_is_above_its_own_map():
    results = [explained(scale=number + 1) for number in range(6)]
    figure = figures.row_figure(results, NAMES, "block 0", True)
    columns = [trace.xaxis for trace in figure.data]
    assert len(set(columns)) == 12
    top = [figure.layout["yaxis" + trace.yaxis[1:]].domain[0] for trace in figure.data]
    for place in range(6):
        picture, ground, heatmap = range(3 * place, 3 * place + 3)
        assert columns[ground] == columns[heatmap] != columns[picture]
        assert top[picture] > top[heatmap]
        assert figure.data[heatmap].z[0][1] == pytest.approx(0.2 * (place + 1))


def test_headings_say_predicted_and_true():
    figure = figures.row_figure([explained(), explained(label=2), explained(label=None)], NAMES, "pixels", True)
    headings = [title.text for title in figure.layout.annotations]
    assert headings == ["<b>two</b> 70\u00a0%<br>✗ true: one", "<b>two</b> 70\u00a0% ✓", "<b>two</b> 70\u00a0%"]


def test_the_table_has_a_column_per_image():
    frame = figures.row_frame([explained(), explained(name="digit 0002", scale=2)], NAMES, "attribution")
    assert frame.columns.tolist()[2:] == ["digit 0001, predicted two", "digit 0002, predicted two"]
    assert np.allclose(frame.iloc[-1], [1, 2, 0.5, 1.0])
