"""Figures about layers on the Relevance page show the numbers they are given, in the right place."""

import numpy as np
import pytest

from mixqvit.network.layers import Layer
from mixqvit.relevance.records import BranchShare, Importance
from mixqvit.views import relevance as figures


def make_layer(name: str, kind: str, block: int | None) -> Layer:
    return Layer(name, kind, block, 8, 2, 16, (1, 4), (1, 2), name, None)


LAYERS = (
    make_layer("patch_embed.proj", "patch_embed", None),
    make_layer("blocks.0.attn.qkv", "qkv", 0),
    make_layer("blocks.0.attn.proj", "proj", 0),
    make_layer("head", "head", None),
)
SHARES = {
    "patch_embed.proj": [0.1, 0.1],
    "blocks.0.attn.qkv": [0.2, 0.4],
    "blocks.0.attn.proj": [0.3, 0.1],
    "head": [0.4, 0.4],
}
FLOW = (
    BranchShare(0, "attention", [0.2, 0.4]),
    BranchShare(0, "mlp", [0.5, 0.7]),
    BranchShare(1, "attention", [0.6, 0.6]),
    BranchShare(1, "mlp", [0.1, 0.1]),
)


@pytest.fixture
def importance() -> Importance:
    return Importance({name: float(np.mean(shares)) for name, shares in SHARES.items()}, SHARES, FLOW)


def test_the_frame_holds_mean_and_spread_in_percent(importance):
    frame = figures.importance_frame(LAYERS, importance).set_index("layer")
    assert frame.loc["blocks.0.attn.qkv", "importance (%)"] == pytest.approx(30)
    assert frame.loc["blocks.0.attn.qkv", "standard deviation (%)"] == pytest.approx(10)
    assert frame.loc["blocks.0.attn.qkv", "5 % of images (%)"] == pytest.approx(21)
    assert frame.loc["blocks.0.attn.qkv", "95 % of images (%)"] == pytest.approx(39)


def test_the_grid_starts_its_sequential_scale_at_zero_and_marks_the_chosen_layer(importance):
    heatmap = figures.importance_grid(LAYERS, importance, "blocks.0.attn.proj").data[0]
    assert (heatmap.zmin, heatmap.zmax) == (0, pytest.approx(40))
    row, column = list(heatmap.y).index("block 0"), list(heatmap.x).index("proj")
    assert heatmap.z[row][column] == pytest.approx(20)
    assert "blocks.0.attn.proj" in heatmap.hovertext[row][column]
    assert "[20.0]" in heatmap.text[row][column]
    assert sum("[" in text for texts in heatmap.text for text in texts) == 1


@pytest.mark.parametrize(
    ("largest_first", "order"),
    [
        (False, ["patch_embed", "▸ block 0 · qkv", "block 0 · proj", "head"]),
        (True, ["head", "▸ block 0 · qkv", "block 0 · proj", "patch_embed"]),
    ],
)
def test_bars_come_in_the_order_asked_for(importance, largest_first, order):
    figure = figures.importance_bars(LAYERS, importance, largest_first, "blocks.0.attn.qkv")
    assert list(figure.layout.yaxis.categoryarray) == order
    assert {name for trace in figure.data for name in trace.y} == set(order)
    (qkv,) = (trace for trace in figure.data if trace.name == "qkv")
    assert qkv.error_x.array[0] == pytest.approx(9)
    assert qkv.error_x.arrayminus[0] == pytest.approx(9)
    assert figures.clicked_layer([{"customdata": list(qkv.customdata[0])}]) == "blocks.0.attn.qkv"
    assert figures.clicked_layer([]) is None


def test_the_most_important_layers_are_named(importance):
    assert figures.leading(LAYERS, importance, 2) == "head (40.0\u00a0%), block 0 · qkv (30.0\u00a0%)"
    assert figures.most_important(importance) == "head"
    assert [figures.rank(importance, layer.name) for layer in LAYERS] == [4, 2, 3, 1]


def test_every_image_is_one_point_over_its_share():
    shares = [0.1, 0.1, 0.1, 0.5, 0.3, 0.1]
    importance = Importance({"a": float(np.mean(shares)), "b": 0.8}, {"a": shares, "b": [1 - s for s in shares]})
    names = [f"digit {number}" for number in range(9)]
    figure = figures.share_figure(importance, "a", names)
    points = figure.data[0]
    assert list(points.x) == pytest.approx([100 * share for share in shares])
    assert list(points.y) == [1, 2, 3, 1, 1, 4]
    assert [row[1] for row in points.customdata] == names[:6]
    assert sorted(line.x0 for line in figure.layout.shapes) == pytest.approx([20, 50])


def test_branch_and_skip_fill_every_bar_of_the_flow():
    figure = figures.flow_figure(FLOW)
    attention, skip, mlp, _ = figure.data
    assert list(attention.y) == pytest.approx([30, 60])
    assert list(mlp.y) == pytest.approx([60, 10])
    assert list(np.add(skip.base, skip.y)) == pytest.approx([100, 100])
    assert [list(axis) for axis in attention.x] == [["block 0", "block 1"], ["attn", "attn"]]
    assert attention.error_y.array[0] == pytest.approx(9)


def test_the_bars_of_many_blocks_stand_side_by_side_at_their_number():
    flow = [BranchShare(block, branch, [0.3]) for block in range(12) for branch in ("attention", "mlp")]
    attention, _, mlp, _ = figures.flow_figure(flow).data
    assert list(attention.x) == pytest.approx([block - 0.21 for block in range(12)])
    assert min(b - a for a, b in zip(attention.x, mlp.x, strict=True)) >= attention.width


def test_the_flow_says_where_most_goes():
    words = figures.flow_words(FLOW)
    assert "attention branches take 45 % on average, most in block 1 (60 %)" in words
    assert "MLP branches take 35 % on average, most in block 0 (60 %)" in words


def test_a_click_on_a_branch_chooses_its_last_layer():
    mlp = make_layer("blocks.1.mlp.fc2", "fc2", 1)
    flow = figures.flow_figure(FLOW)
    first = {"customdata": list(flow.data[0].customdata[0])}
    last = {"customdata": list(flow.data[2].customdata[1])}
    assert figures.clicked_branch((*LAYERS, mlp), [first]) == "blocks.0.attn.proj"
    assert figures.clicked_branch((*LAYERS, mlp), [last]) == "blocks.1.mlp.fc2"
    assert figures.clicked_branch(LAYERS, [last]) is None
    assert figures.clicked_branch(LAYERS, []) is None
