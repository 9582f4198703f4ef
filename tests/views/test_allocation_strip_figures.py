"""The strip has one cell per layer in network order, and says what changed."""

from mixqvit.views.allocation_strip import allocation_strip, difference_strip
from tests.views.allocations import BEFORE, BITS, LAYERS, facts


def rows(figure) -> dict[str, list]:
    titles = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    heatmap = figure.data[0]
    return {titles[height]: list(texts) for height, texts in zip(heatmap.y, heatmap.text, strict=True)}


def marks(figure, name) -> dict[int, str]:
    (found,) = (trace for trace in figure.data if trace.name == name)
    return dict(zip(found.x, found.text, strict=True))


def test_cells_are_the_bits_in_network_order_above_those_before():
    figure = allocation_strip(LAYERS, facts(pinned={"head": 32}), tied=True)
    assert rows(figure) == {"now": ["5", "4", "2", "32"], "before": ["3", "4", "4", "32"]}
    from_top = sorted(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True), reverse=True)
    assert [title for _, title in from_top] == ["changed", "now", "before", "pinned"]
    assert marks(figure, "changed") == {0: "▲", 2: "▼"}
    assert marks(figure, "pinned") == {3: "●"}
    assert "blocks.0.mlp.fc1" in figure.data[0].hovertext[0][2]
    assert "before: 4 bits" in figure.data[0].hovertext[0][2]


def test_the_room_of_the_row_before_is_kept_while_there_is_none():
    first, later = (allocation_strip(LAYERS, facts(previous=previous), tied=True) for previous in (None, BEFORE))
    assert rows(first)["before"] == [""] * 4
    assert list(first.data[0].z[1]) == [None] * 4
    assert first.layout.height == later.layout.height
    assert not marks(first, "changed")


def test_independent_operands_have_rows_of_their_own():
    figure = allocation_strip(LAYERS, facts(), tied=False)
    assert rows(figure)["now, weights"] == ["5", "4", "2", "32"]
    assert rows(figure)["now, inputs"] == ["8", "4", "2", "32"]


def test_full_precision_has_the_last_place_of_the_scale():
    heatmap = allocation_strip(LAYERS, facts(), tied=True).data[0]
    assert list(heatmap.z[0]) == [5, 4, 2, 9]
    assert (heatmap.zmin, heatmap.zmax) == (1.5, 9.5)


def test_the_difference_says_where_b_has_more_and_fewer():
    figure = difference_strip(LAYERS, BEFORE, BITS)
    assert rows(figure) == {"A": ["3", "4", "4", "32"], "B": ["5", "4", "2", "32"]}
    assert marks(figure, "B has") == {0: "▲", 2: "▼"}
    apart = difference_strip(LAYERS, BITS, {**BITS, "blocks.0.mlp.fc1": (2, 4)})
    assert list(rows(apart)) == ["A, weights", "A, inputs", "B, weights", "B, inputs"]


def test_blocks_are_numbered_in_their_middle_and_divided():
    figure = allocation_strip(LAYERS, facts(), tied=True)
    assert list(figure.layout.xaxis.tickvals) == [1.5]
    assert list(figure.layout.xaxis.ticktext) == ["block 0"]
    assert [shape.x0 for shape in figure.layout.shapes] == [0.5, 2.5]
