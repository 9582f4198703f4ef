"""Two allocations image by image: which images flip, in which way, and by how much."""

import pytest

from mixqvit.tasks.evaluation import Evaluation
from mixqvit.views import flips as figures
from tests.views.allocations import BEFORE, BITS, LAYERS

EXPECTED = [0, 1, 2, 3, 4]
FIRST = Evaluation(5, 5, 3, 5, 0.1, (0, 1, 9, 3, 8), (0.1, 0.2, 0.3, 0.0, 0.5))
SECOND = Evaluation(5, 5, 3, 5, 0.1, (0, 7, 2, 3, 7), (0.1, 0.9, 0.2, 0.0, 0.8))
KINDS = figures.flip_kinds(has_labels=True)
NAMES = [f"image {index}" for index in range(5)]


@pytest.fixture
def found():
    return figures.flips(EXPECTED, FIRST, SECOND, KINDS)


def test_flips_are_sorted_by_how_much_the_kl_changes(found):
    assert [flip.index for flip in found] == [1, 4, 2]
    assert [flip.kind for flip in found] == [KINDS.worse, KINDS.other, KINDS.better]
    assert (found[0].expected, found[0].first, found[0].second) == (1, 1, 7)
    assert (found[0].first_kl, found[0].second_kl) == (0.2, 0.9)


def test_words_count_them_by_kind(found):
    words = figures.flip_words(found, KINDS, 5)
    assert "3 of 5 evaluation images" in words
    assert "1 right → wrong, 1 wrong → right, 1 wrong → wrong otherwise" in words
    assert "None of the 5" in figures.flip_words([], KINDS, 5)


def test_without_labels_they_are_named_after_full_precision():
    assert "agreed" in figures.flip_kinds(has_labels=False).worse


def test_every_image_is_a_marker_in_the_group_of_its_flip(found):
    figure = figures.kl_figure(NAMES, found, FIRST, SECOND, KINDS)
    groups = {trace.name: trace for trace in figure.data}
    worse = groups["right → wrong (1)"]
    assert (list(worse.x), list(worse.y)) == ([0.2], [0.9])
    assert "image 1" in worse.text[0]
    same = groups["same class (2)"]
    assert list(same.x) == [0.1, 1e-8]  # no harm at all is shown at the floor of the scale
    assert "A: 0 nats" in same.text[1]
    assert len({trace.marker.symbol for trace in figure.data if trace.mode == "markers"}) == 4


def test_the_frame_has_the_classes_by_name(found):
    frame = figures.flip_frame(NAMES, list("abcdefghij"), found, has_labels=True)
    assert frame.loc[0, ["image", "label", "A", "B"]].tolist() == ["image 1", "b", "b", "h"]
    assert "full precision" in figures.flip_frame(NAMES, list("abcdefghij"), [], has_labels=False)


def test_layers_that_differ_are_listed_with_their_direction():
    frame = figures.difference_frame(LAYERS, BEFORE, BITS, changed_only=True).set_index("layer")
    assert frame.loc["patch_embed.proj"].tolist() == ["3", "5", "▲"]
    assert frame.loc["blocks.0.mlp.fc1"].tolist() == ["4", "2", "▼"]
    assert len(frame) == 2
    assert figures.difference_frame(LAYERS, BEFORE, BITS).set_index("layer").loc["head", "B has"] == "="


def test_captions_have_first_synonyms_and_hovers_whole_names(found):
    classes = [f"{index} shark, man-eater, Carcharodon {index}" for index in range(10)]
    caption = figures.flip_caption(found[0], "n01491361/photo.jpg", classes, has_labels=True)
    assert caption.startswith("photo.jpg")
    assert "label **1 shark**" in caption
    assert "A 1 shark → B 7 shark" in figures.flip_caption(found[0], "photo", classes, has_labels=True)
    assert "full precision **1 shark**" in figures.flip_caption(found[0], "photo", classes, has_labels=False)
    assert "B: 7 shark, man-eater, Carcharodon 7" in figures.flip_hover(found[0], classes, has_labels=True)
    assert figures.flip_hover(found[0], [str(index) for index in range(10)], has_labels=True) is None
