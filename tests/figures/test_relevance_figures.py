"""Figures of the Relevance page show the numbers they are given, in the right place and on one scale."""

import numpy as np
import pytest

from mixqvit.figures import relevance as figures
from mixqvit.layers import Layer
from mixqvit.study import ImageRelevance, Importance


def make_layer(name: str, kind: str, block: int | None) -> Layer:
    return Layer(name, kind, block, 8, 2, 16, (1, 4), (1, 2), name, None)


LAYERS = (
    make_layer("patch_embed.proj", "patch_embed", None),
    make_layer("blocks.0.attn.qkv", "qkv", 0),
    make_layer("blocks.0.mlp.fc1", "fc1", 0),
    make_layer("head", "head", None),
)
SHARES = {
    "patch_embed.proj": [0.1, 0.1],
    "blocks.0.attn.qkv": [0.2, 0.4],
    "blocks.0.mlp.fc1": [0.3, 0.1],
    "head": [0.4, 0.4],
}


@pytest.fixture
def importance() -> Importance:
    return Importance({name: float(np.mean(shares)) for name, shares in SHARES.items()}, SHARES)


def explained(target: int = 2, scale: float = 1.0, patches: bool = True) -> ImageRelevance:
    pixels = np.zeros((4, 6))
    pixels[1, 2], pixels[3, 5] = 0.5 * scale, -0.75 * scale
    return ImageRelevance(
        image=np.linspace(0, 1, 24).reshape(4, 6, 1),
        name="digit 0001",
        label=1,
        predicted=2,
        target=target,
        probabilities=np.array([0.1, 0.2, 0.7]),
        pixels=pixels,
        attribution=np.array([[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]]) * scale if patches else None,
    )


def test_the_frame_holds_mean_and_spread_in_percent(importance):
    frame = figures.importance_frame(LAYERS, importance).set_index("layer")
    assert frame.loc["blocks.0.attn.qkv", "importance (%)"] == pytest.approx(30)
    assert frame.loc["blocks.0.attn.qkv", "standard deviation (%)"] == pytest.approx(10)
    assert frame.loc["blocks.0.attn.qkv", "5 % of images (%)"] == pytest.approx(21)
    assert frame.loc["blocks.0.attn.qkv", "95 % of images (%)"] == pytest.approx(39)


def test_the_grid_starts_its_sequential_scale_at_zero(importance):
    heatmap = figures.importance_grid(LAYERS, importance).data[0]
    assert (heatmap.zmin, heatmap.zmax) == (0, pytest.approx(40))
    row, column = list(heatmap.y).index("block 0"), list(heatmap.x).index("fc1")
    assert heatmap.z[row][column] == pytest.approx(20)
    assert "blocks.0.mlp.fc1" in heatmap.hovertext[row][column]


@pytest.mark.parametrize(
    ("largest_first", "order"),
    [
        (False, ["patch_embed", "block 0 · qkv", "block 0 · fc1", "head"]),
        (True, ["head", "block 0 · qkv", "block 0 · fc1", "patch_embed"]),
    ],
)
def test_bars_come_in_the_order_asked_for(importance, largest_first, order):
    figure = figures.importance_bars(LAYERS, importance, largest_first)
    assert list(figure.layout.yaxis.categoryarray) == order
    assert {name for trace in figure.data for name in trace.y} == set(order)
    (qkv,) = (trace for trace in figure.data if trace.name == "qkv")
    assert qkv.error_x.array[0] == pytest.approx(9)
    assert qkv.error_x.arrayminus[0] == pytest.approx(9)


def test_the_most_important_layers_are_named(importance):
    assert figures.leading(LAYERS, importance, 2) == "head (40.0%), block 0 · qkv (30.0%)"


def test_results_shown_together_share_their_limits():
    assert figures.limits([explained(), explained(scale=4)]) == (3.0, 2.0)
    assert figures.limits([explained(patches=False)])[0] == 0.75


def test_relevance_is_centred_on_zero():
    heatmap = figures.relevance_overlay(explained(), 3.0).data[1]
    assert (heatmap.zmin, heatmap.zmax) == (-3, 3)
    assert heatmap.z[3][5] == -0.75
    middle = [colour for position, colour in heatmap.colorscale if position == 0.5]
    assert all(colour.endswith("0.0)") or colour.endswith("0.00)") for colour in middle)


def test_patches_cover_the_picture_exactly():
    heatmap = figures.attribution_overlay(explained(), 0.5).data[1]
    left, right = heatmap.x0 - heatmap.dx / 2, heatmap.x0 + 2.5 * heatmap.dx
    top, bottom = heatmap.y0 - heatmap.dy / 2, heatmap.y0 + 1.5 * heatmap.dy
    assert (left, right, top, bottom) == (-0.5, 5.5, -0.5, 3.5)


def test_probabilities_mark_what_is_explained_and_what_is_true():
    bars = figures.probability_bars(explained(target=0), ["zero", "one", "two"]).data[0]
    assert list(bars.y) == ["▸ zero", "one", "two"]
    assert list(bars.text) == ["10.0%", "20.0% ✓", "70.0%"]


def test_many_classes_show_the_likeliest_and_never_leave_out_the_true_one():
    found = explained(target=0)
    many = ImageRelevance(**{**vars(found), "probabilities": np.linspace(0, 1, 40), "label": 1, "predicted": 39})
    frame = figures.probability_frame(many, [str(index) for index in range(40)])
    assert frame.loc[frame["shown"], "class"].tolist() == ["0", "1", *map(str, range(30, 40))]


def test_classes_of_one_name_are_told_apart():
    assert figures.class_labels(["crane", "dog", "crane"]) == ["crane (0)", "dog", "crane (2)"]


def test_a_map_becomes_rows():
    frame = figures.map_frame(np.array([[1.0, 2.0], [3.0, 4.0]]), "relevance")
    assert frame.values.tolist() == [[0, 0, 1], [0, 1, 2], [1, 0, 3], [1, 1, 4]]


def test_a_thumbnail_enlarges_without_blurring():
    small = figures.thumbnail(np.array([[[0.0], [1.0]]]), side=8)
    assert small.shape == (4, 8, 3)
    assert set(small[:, :4].ravel()) == {0}
    assert set(small[:, 4:].ravel()) == {255}
