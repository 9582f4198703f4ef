"""The Budget page's figures and texts show exactly the allocation, cost and measurement they are given."""

from math import nan

import pytest

from mixqvit.allocation.costs import Cost, cost
from mixqvit.allocation.quantities import QUANTITIES
from mixqvit.tasks.classification import METRICS
from mixqvit.views import budget as figures
from mixqvit.views.allocation_words import LayerFacts, bits_text, changes, mark
from mixqvit.views.grid import cells
from tests.views.allocations import BEFORE, BITS, LAYERS, SENSITIVITY, STORAGE, allocation, evaluation, facts


def grid_cell(heatmap, name):
    row, column = cells(LAYERS)[name]
    return list(heatmap.y).index(row), list(heatmap.x).index(column)


def test_grid_shows_bits_and_marks_what_changed():
    heatmap = figures.bits_grid(LAYERS, facts(pinned={"head": 32}, at_most={"blocks.0.mlp.fc1": 3})).data[0]
    expected = {"patch_embed.proj": "5 ▲", "blocks.0.attn.matmul1": "4", "blocks.0.mlp.fc1": "2 ▼", "head": "32 ●"}
    for name, text in expected.items():
        row, column = grid_cell(heatmap, name)
        assert heatmap.text[row][column] == text
    row, column = grid_cell(heatmap, "blocks.0.mlp.fc1")
    words = ("blocks.0.mlp.fc1", "before: 4 bits", "30.00\u00a0%", "Λ = 0.5", "128 parameters", "0.001 M MACs")
    for word in (*words, "at most 3 bits by hand"):
        assert word in heatmap.hovertext[row][column]


def test_grid_marks_only_pins_that_the_allocation_has():
    heatmap = figures.bits_grid(LAYERS, facts(previous=None, pinned={"head": 32, "blocks.0.mlp.fc1": (8, 4)})).data[0]
    for name, text, marked in (("head", "32 ●", True), ("blocks.0.mlp.fc1", "2", False)):
        row, column = grid_cell(heatmap, name)
        assert heatmap.text[row][column] == text
        assert ("pinned by hand" in heatmap.hovertext[row][column]) == marked


def test_grid_colours_do_not_move_with_the_values():
    low = dict.fromkeys(BITS, (2, 2))
    first, second = (figures.bits_grid(LAYERS, facts(bits, None)).data[0] for bits in (BITS, low))
    assert (first.zmin, first.zmax) == (second.zmin, second.zmax) == (1.5, 9.5)
    assert list(first.colorbar.ticktext) == ["2", "3", "4", "5", "6", "7", "8", "32"]


def test_hover_does_without_importance_and_without_a_harm_that_was_not_measured():
    known = LayerFacts({**BITS, "blocks.0.mlp.fc1": (2, 4)}, None, None, SENSITIVITY, METRICS["kl"])
    assert "importance" not in known.hover(LAYERS[0])
    assert "Λ" not in known.hover(LAYERS[2])
    assert "2 bits for the weights, 4 bits for the input" in known.hover(LAYERS[2])
    assert "no harm" in known.hover(LAYERS[3])


@pytest.mark.parametrize(
    ("before", "now", "sign"),
    [((4, 4), (4, 4), ""), ((4, 4), (5, 4), "▲"), ((4, 4), (4, 3), "▼"), ((4, 4), (5, 3), "◆")],
)
def test_marks_say_in_which_direction_bits_moved(before, now, sign):
    assert mark(before, now) == sign


def test_the_eight_bits_of_images_go_without_saying():
    assert bits_text(LAYERS[0], (5, 8)) == "5"
    assert bits_text(LAYERS[2], (5, 8)) == "5/8"


def test_changes_list_layers_by_direction():
    text = changes(LAYERS, BITS, BEFORE)
    more, fewer = text.split("\n\n")
    assert "more bits (1)" in more and "`patch_embed.proj`\u00a03→5" in more
    assert "fewer bits (1)" in fewer and "`blocks.0.mlp.fc1`\u00a04→2" in fewer
    assert "head" not in text
    assert "No layer changed" in changes(LAYERS, BITS, BITS)
    assert "Move the budget" in changes(LAYERS, BITS, None)


def test_comparison_never_shows_a_number_that_was_not_measured():
    settings = cost(LAYERS, BITS, STORAGE)
    table = figures.comparison(
        {"Mixed": (settings, nan, None), "Uniform": None, "Full precision": (settings, 0.0, evaluation(180))}
    )
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table.split("\n")}
    assert rows["Top-1 accuracy"] == ["…", "–", "90.0\u00a0%"]
    assert rows["KL divergence"] == ["…", "–", "0.25 nats"]
    assert rows["Predicted harm"] == ["–", "–", "0"]
    assert rows["Average bits"][0] == f"{settings.average_bits:.2f}"


def test_without_labels_the_comparison_has_agreement_and_no_top1():
    settings = cost(LAYERS, BITS, STORAGE)
    table = figures.comparison({"Mixed": (settings, 0.5, evaluation(None)), "Uniform": (settings, 0.5, None)}, False)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n")]
    assert ["Agreement", "75.0\u00a0%", "…"] in rows
    assert sum(row[0].startswith("its") for row in rows) == 1
    assert not any("Top-1" in row[0] for row in rows)


def test_comparison_splits_the_size_of_the_file():
    found = Cost(2_000_000, 300_000, 50_000, 6_000, 10**9, 4.0)
    table = figures.comparison({"Mixed": (found, 0.5, None)})
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in table.split("\n")}
    assert rows["Model size"] == "2.36 MB"
    assert rows["· weight codes"] == "2.00 MB"
    assert rows["· scales, zero points"] == "0.30 MB"
    assert rows["· kept in float32"] == "50.0 kB"
    assert rows["· file header"] == "6.0 kB"


def test_gauges_measure_against_the_ceiling_or_full_precision():
    full = cost(LAYERS, dict.fromkeys(BITS, (32, 32)), STORAGE)
    spent = allocation().cost
    costs = [{name: getattr(one, name) for name in QUANTITIES} for one in (spent, full)]
    bits, size, bitops = figures.gauges(*costs, {"average_bits": 10.0})
    assert bits[1] == pytest.approx(spent.average_bits / 10)
    assert "of 10.00 allowed" in bits[0]
    assert size[1] == pytest.approx(spent.size_bytes / full.size_bytes)
    assert "of full precision" in size[0]
    assert bitops[1] == pytest.approx(spent.bitops / full.bitops)
    *_, bitops = figures.gauges(*costs, {"bitops": 1e5})
    assert bitops[1] == pytest.approx(spent.bitops / 1e5)
    assert "of 0.000 G allowed" in bitops[0]


@pytest.mark.parametrize(
    ("gap", "is_search", "words"),
    [(0.0, True, "Proven optimal"), (0.004, True, "Within 0.4\u00a0%"), (0.0, False, "largest uniform")],
)
def test_words_claim_no_more_than_was_proven(gap, is_search, words):
    assert words in figures.solved_words(gap, "clado", is_search)


def test_frames_hold_the_numbers_of_the_figures():
    frame = figures.allocation_frame(LAYERS, facts()).set_index("layer")
    assert frame.loc["blocks.0.mlp.fc1", ["weight bits", "codes (bytes)", "BitOps"]].tolist() == [2, 32, 5120]
    assert frame.loc["head", "sensitivity"] == 0
    assert frame.loc["head", "importance"] == 0.4
