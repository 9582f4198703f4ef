"""Figures of one explained image show its maps, on one scale, and say what is on them."""

import numpy as np
import pytest

from mixqvit.views import explained_images as figures
from tests.views.explained import explained


def test_pixels_keep_their_sign_on_the_given_scale():
    figure = figures.relevance_overlay(explained(), 3.0)
    assert figure.data[1].z[3][5] == pytest.approx(-0.75)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-3, 3)


def test_attribution_says_every_patchs_share():
    figure = figures.attribution_overlay(explained(), 0.5)
    assert figure.data[1].text[1][2] == pytest.approx(100 * 0.5 / 1.5)
    assert figure.layout.coloraxis.cmin == 0


def test_tokens_are_those_of_the_stage():
    found = explained()
    overlay = figures.token_overlay(found, "block 0", 1.0).data[1]
    assert np.array_equal(overlay.z, found.tokens["block 0"].astype(np.float32))
    assert "after block 0" in overlay.hovertemplate
    assert "patch embedding" in figures.token_overlay(found, "patches", 1.0).layout.title.text


def test_words_say_what_reaches_the_pixels_and_where_the_rest_left():
    words = figures.relevance_words(explained())
    assert "−0.25 reaches the pixels" in words
    assert words.endswith("the rest left on the way: 0.50 position embedding, 0.25 class token.")
    assert figures.relevance_words(explained(left={})).endswith("reaches the pixels.")


def test_relevance_forms_stage_by_stage_for_every_class():
    results = [explained(target=0), explained(target=1, scale=2)]
    figure = figures.forming_figure(results, ["zero", "one", "two"], "block 0")
    first, second = figure.data
    assert list(first.y) == pytest.approx([1.5, 3, 0])
    assert list(second.y) == pytest.approx([3, 6, 0])
    assert (first.name, second.name) == ("for zero", "for one")
    assert first.marker.size[1] > first.marker.size[0]
    assert figures.clicked_stage([{"customdata": list(first.customdata[2])}]) == "block 1"
    assert figures.clicked_stage([]) is None


def test_heads_share_one_scale_and_say_their_part():
    found = explained()
    shown = figures.HEAD_MAPS[1]
    limit = figures.head_limit([found, explained(scale=2)], 1, shown)
    assert 6 < limit <= 12
    figure = figures.head_figure(found, 1, shown, limit)
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(maps) == 2
    assert {trace.coloraxis for trace in maps} == {"coloraxis"}
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, limit)
    assert [title.text for title in figure.layout.annotations] == ["head 0: 25 %", "head 1: 75 %"]
    assert maps[1].z[1][2] == pytest.approx(6)


def test_relevance_of_heads_has_two_signs():
    figure = figures.head_figure(explained(), 0, figures.HEAD_MAPS[0], 1.5)
    assert figure.layout.coloraxis.cmin == -1.5
    frame = figures.head_frame(explained().heads[0])
    assert frame.iloc[-1].tolist() == pytest.approx([1, 2, 0.5, -1.5])


def test_only_maps_of_heads_that_there_are_can_be_chosen():
    assert list(figures.head_maps(explained())) == list(figures.HEAD_MAPS)
    assert list(figures.head_maps(explained(class_token=False))) == [figures.HEAD_MAPS[0]]
    assert list(figures.head_maps(explained(heads={}))) == [figures.HEAD_MAPS[1]]


def test_many_heads_are_broken_into_rows():
    found = explained(heads={0: np.ones((6, 2, 3))})
    figure = figures.head_figure(found, 0, figures.HEAD_MAPS[0], 1)
    assert {trace.xaxis for trace in figure.data if trace.type == "heatmap"} == {
        "x" if number == 1 else f"x{number}" for number in range(1, 7)
    }


def test_probabilities_mark_what_is_explained_and_what_is_true():
    figure = figures.probability_bars(explained(target=0), ["zero", "one", "two"])
    assert list(figure.layout.yaxis.ticktext) == ["▸ zero", "one", "two"]
    assert list(figure.data[0].text) == ["10.0\u00a0%", "20.0\u00a0% ✓", "70.0\u00a0%"]


def test_many_classes_show_the_likeliest_first_and_never_leave_out_the_true_one():
    found = explained(target=0, probabilities=np.linspace(0, 1, 40), label=1, predicted=39)
    names = [f"a class with quite a long name {index}" for index in range(40)]
    frame = figures.probability_frame(found, names)
    shown = [0, 1, *range(30, 40)]
    assert frame.loc[frame["shown"], "class"].tolist() == [names[index] for index in shown]
    bars = figures.probability_bars(found, names)
    assert [name for name, _ in bars.data[0].customdata] == [names[index] for index in reversed(shown)]
    assert len(set(bars.data[0].y)) == len(shown)
    assert all(len(text) <= 20 for text in bars.layout.yaxis.ticktext)
