"""The grid of blocks × kinds: where every layer goes, and that each shows its own value."""

import pytest

from mixqvit.network.layers import Layer
from mixqvit.views.grid import blocks_by_kinds, cells, layer_frame


def make_layer(name: str, kind: str, block: int | None) -> Layer:
    return Layer(name, kind, block, 8, 2, 16, (1, 4), (1, 2), name, None)


@pytest.fixture
def layers() -> tuple[Layer, ...]:
    """A gated block, two patch mergings and two heads: every case that needs a place of its own."""
    return (
        make_layer("patch_embed.proj", "patch_embed", None),
        make_layer("blocks.0.qkv", "qkv", 0),
        make_layer("blocks.0.fc1_g", "fc1", 0),
        make_layer("blocks.0.fc1_x", "fc1", 0),
        make_layer("merge.0", "reduction", None),
        make_layer("blocks.1.qkv", "qkv", 1),
        make_layer("blocks.1.fc1", "fc1", 1),
        make_layer("merge.1", "reduction", None),
        make_layer("head", "head", None),
        make_layer("head_dist", "head", None),
    )


def draw(layers, values, **options):
    return blocks_by_kinds(
        layers,
        values,
        colours="Viridis",
        title="share",
        text=lambda layer, value: f"{value:.0f}",
        hover=lambda layer, value: f"value {value}",
        **options,
    )


def test_every_layer_has_its_own_cell(layers):
    places = cells(layers)
    assert len(set(places.values())) == len(layers)
    assert places["blocks.0.fc1_x"] == ("block 0", "fc1 2")
    assert places["blocks.1.fc1"] == ("block 1", "fc1")
    assert places["merge.1"] == ("reduction 2", "reduction")
    assert places["head_dist"] == ("head", "head 2")


def test_rows_follow_the_network_and_columns_the_kinds(layers):
    heatmap = draw(layers, {layer.name: 1.0 for layer in layers}).data[0]
    assert list(heatmap.y) == ["patch_embed", "block 0", "reduction", "block 1", "reduction 2", "head"]
    assert list(heatmap.x) == ["patch_embed", "qkv", "fc1", "fc1 2", "reduction", "head", "head 2"]


def test_a_cell_shows_the_value_text_and_full_name_of_its_layer(layers):
    heatmap = draw(layers, {layer.name: float(index) for index, layer in enumerate(layers)}).data[0]
    for index, layer in enumerate(layers):
        row, column = cells(layers)[layer.name]
        place = list(heatmap.y).index(row), list(heatmap.x).index(column)
        assert heatmap.z[place[0]][place[1]] == index
        assert heatmap.text[place[0]][place[1]] == str(index)
        assert layer.name in heatmap.hovertext[place[0]][place[1]]
        assert f"value {float(index)}" in heatmap.hovertext[place[0]][place[1]]


def test_layers_without_a_value_stay_blank(layers):
    heatmap = draw(layers, {"head": 3.0}).data[0]
    shown = [value for row in heatmap.z for value in row if value is not None]
    assert shown == [3.0]


def test_limits_fix_the_colour_scale(layers):
    heatmap = draw(layers, {"head": 3.0}, limits=(-5, 5), ticks=(-5, 0, 5)).data[0]
    assert (heatmap.zmin, heatmap.zmax) == (-5, 5)
    assert tuple(heatmap.colorbar.tickvals) == (-5, 0, 5)


def test_frame_has_one_row_per_layer_in_network_order(layers):
    frame = layer_frame(layers, {"bits": {"head": 4}})
    assert list(frame["layer"]) == [layer.name for layer in layers]
    assert frame.loc[8, "bits"] == 4
    assert frame["bits"].isna().sum() == len(layers) - 1
    assert frame["block"].tolist()[1] == 0


def test_blank_cells_print_nothing(layers):
    heatmap = draw(layers, {"head": 3.0}).data[0]
    assert {text for row in heatmap.text for text in row} == {"", "3"}
