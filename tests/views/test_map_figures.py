"""Maps lie exactly over their pictures, on the scale they are given."""

import numpy as np
import pytest

from mixqvit.views import maps


@pytest.mark.parametrize("grid", [(4, 6), (2, 3), (1, 2)])
def test_values_cover_the_picture_exactly(grid):
    heatmap = maps.overlay(np.zeros(grid), (4, 6, 3), "", diverging=False)
    left, right = heatmap.x0 - heatmap.dx / 2, heatmap.x0 + (grid[1] - 0.5) * heatmap.dx
    top, bottom = heatmap.y0 - heatmap.dy / 2, heatmap.y0 + (grid[0] - 0.5) * heatmap.dy
    assert (left, right, top, bottom) == pytest.approx((-0.5, 5.5, -0.5, 3.5))
    assert ("patch row" in heatmap.hovertemplate) == (grid != (4, 6))


def test_relevance_is_centred_on_zero_where_it_shows_the_picture():
    axis = maps.colours(3.0, diverging=True, bar={})
    assert (axis["cmin"], axis["cmax"]) == (-3, 3)
    middle = [colour for position, colour in axis["colorscale"] if position == 0.5]
    assert middle
    assert all(colour.endswith("0.00)") for colour in middle)


def test_what_has_one_sign_starts_at_zero():
    axis = maps.colours(3.0, diverging=False, bar={})
    assert axis["cmin"] == 0
    assert axis["colorbar"] == {"tickvals": [0, 1.5, 3], "ticktext": ["0", "1.5", "≥ 3"]}


def test_the_scale_of_maps_shown_together_leaves_out_the_strongest_percent_of_either_sign():
    many = np.arange(-100.0, 100.0)
    assert maps.scale_end([many]) == pytest.approx(99, abs=1)
    assert maps.scale_end([many, np.full(2, -1e6)]) < 101
    assert maps.scale_end([many, 3 * many]) > 200


def test_a_scale_never_ends_at_zero():
    assert maps.scale_end([np.zeros(300)]) > 0
    assert maps.scale_end([np.zeros(300), np.array([-0.5])]) == 0.5


def test_a_map_becomes_rows():
    frame = maps.map_frame(np.array([[1.0, 2.0], [3.0, 4.0]]), "relevance")
    assert frame.values.tolist() == [[0, 0, 1], [0, 1, 2], [1, 0, 3], [1, 1, 4]]


def test_a_thumbnail_enlarges_without_blurring():
    small = maps.thumbnail(np.array([[[0.0], [1.0]]]), side=8)
    assert small.shape == (4, 8, 3)
    assert set(small[:, :4].ravel()) == {0}
    assert set(small[:, 4:].ravel()) == {255}


def test_a_thumbnail_of_a_photograph_is_small_and_keeps_its_colours():
    photograph = np.zeros((224, 200, 3))
    photograph[:112, :, 0] = 1
    small = maps.thumbnail(photograph)
    assert small.shape == (74, 66, 3)
    assert small[0, 0].tolist() == [255, 0, 0]
    assert small[-1, -1].tolist() == [0, 0, 0]
