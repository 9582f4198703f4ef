"""The Budget page's figures and texts show exactly the allocation, cost and measurement they are given."""

import json

import pytest

from mixqvit.allocation import Allocation, Budget
from mixqvit.costs import Cost, Storage, cost
from mixqvit.evaluation import Evaluation
from mixqvit.figures import budget as figures
from mixqvit.figures.grid import cells
from mixqvit.layers import Layer
from mixqvit.records import Settings


@pytest.fixture
def layers() -> tuple[Layer, ...]:
    return (
        Layer("patch_embed.proj", "patch_embed", None, 64, 8, 640, (1, 1, 8, 8), (1, 8, 4, 4), "a", None),
        Layer("blocks.0.attn.matmul1", "matmul1", 0, 0, 0, 320, (1, 1, 4, 8), (1, 1, 4, 4), "b", None),
        Layer("blocks.0.mlp.fc1", "fc1", 0, 128, 16, 1280, (1, 4, 8), (1, 4, 16), "c", "n"),
        Layer("head", "head", None, 32, 4, 32, (1, 8), (1, 4), "d", None),
    )


REST = Storage("mix-qvit", 40, 600)
BITS = {"patch_embed.proj": (5, 8), "blocks.0.attn.matmul1": (4, 4), "blocks.0.mlp.fc1": (2, 2), "head": (32, 32)}
BEFORE = {**BITS, "blocks.0.mlp.fc1": (4, 4), "patch_embed.proj": (3, 8)}
IMPORTANCE = {"patch_embed.proj": 0.1, "blocks.0.attn.matmul1": 0.2, "blocks.0.mlp.fc1": 0.3, "head": 0.4}
SENSITIVITY = {name: {bits: 1.0 / bits for bits in range(2, 9)} for name in BITS}


def evaluation(correct: int | None, kl: float = 0.25) -> Evaluation:
    return Evaluation(200, 200, correct, 150, kl)


def point(layers, name: str, correct: int | None, bits=BITS) -> figures.MeasuredPoint:
    return figures.MeasuredPoint(name, cost(layers, bits, REST), 0.5, evaluation(correct))


def grid_cell(heatmap, layers, name):
    row, column = cells(layers)[name]
    return list(heatmap.y).index(row), list(heatmap.x).index(column)


def test_grid_shows_bits_and_marks_what_changed(layers):
    heatmap = figures.bits_grid(layers, BITS, BEFORE, IMPORTANCE, SENSITIVITY, {"head": 32}).data[0]
    expected = {"patch_embed.proj": "5 ▲", "blocks.0.attn.matmul1": "4", "blocks.0.mlp.fc1": "2 ▼", "head": "32 ●"}
    for name, text in expected.items():
        row, column = grid_cell(heatmap, layers, name)
        assert heatmap.text[row][column] == text
    row, column = grid_cell(heatmap, layers, "blocks.0.mlp.fc1")
    for words in ("blocks.0.mlp.fc1", "before: 4 bits", "30.00\u00a0%", "Λ = 0.5", "128 parameters", "0.001 M MACs"):
        assert words in heatmap.hovertext[row][column]


def test_grid_marks_only_pins_that_the_allocation_has(layers):
    pinned = {"head": 32, "blocks.0.mlp.fc1": 8}
    heatmap = figures.bits_grid(layers, BITS, None, IMPORTANCE, SENSITIVITY, pinned).data[0]
    for name, text, marked in (("head", "32 ●", True), ("blocks.0.mlp.fc1", "2", False)):
        row, column = grid_cell(heatmap, layers, name)
        assert heatmap.text[row][column] == text
        assert ("pinned by hand" in heatmap.hovertext[row][column]) == marked


def test_grid_colours_do_not_move_with_the_values(layers):
    low = dict.fromkeys(BITS, (2, 2))
    first = figures.bits_grid(layers, BITS, None, IMPORTANCE, SENSITIVITY, {}).data[0]
    second = figures.bits_grid(layers, low, None, IMPORTANCE, SENSITIVITY, {}).data[0]
    assert (first.zmin, first.zmax) == (second.zmin, second.zmax) == (1.5, 9.5)
    assert list(first.colorbar.ticktext) == ["2", "3", "4", "5", "6", "7", "8", "32"]


def test_changes_list_layers_by_direction():
    text = figures.changes(BITS, BEFORE)
    more, fewer = text.split("\n\n")
    assert "more bits (1)" in more and "`patch_embed.proj`\u00a03→5" in more
    assert "fewer bits (1)" in fewer and "`blocks.0.mlp.fc1`\u00a04→2" in fewer
    assert "head" not in text
    assert "No layer changed" in figures.changes(BITS, BITS)
    assert "Move the budget" in figures.changes(BITS, None)


def test_comparison_never_shows_a_number_that_was_not_measured(layers):
    settings = cost(layers, BITS, REST)
    table = figures.comparison(
        {"Mixed": (settings, 0.5, None), "Uniform": None, "Full precision": (settings, 0.0, evaluation(180))}
    )
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table.split("\n")}
    assert rows["Top-1 accuracy"] == ["…", "–", "90.0\u00a0%"]
    assert rows["KL divergence"] == ["…", "–", "0.25 nats"]
    assert rows["Average bits"][0] == f"{settings.average_bits:.2f}"


def test_comparison_splits_the_size_of_the_file(layers):
    found = Cost(2_000_000, 300_000, 50_000, 6_000, 10**9, 4.0)
    table = figures.comparison({"Mixed": (found, 0.5, None)})
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in table.split("\n")}
    assert rows["Model size"] == "2.36 MB"
    assert rows["· weight codes"] == "2.00 MB"
    assert rows["· scales, zero points"] == "0.30 MB"
    assert rows["· kept in float32"] == "50.0 kB"
    assert rows["· file header"] == "6.0 kB"


def test_gauges_measure_against_the_ceiling_or_full_precision(layers):
    full = cost(layers, dict.fromkeys(BITS, (32, 32)), REST)
    spent = cost(layers, BITS, REST)
    bits, size, bitops = figures.gauges(Allocation(BITS, 0.5, spent, Budget(average_bits=10.0)), full, None)
    assert bits[1] == pytest.approx(spent.average_bits / 10)
    assert "of 10.00 allowed" in bits[0]
    assert size[1] == pytest.approx(spent.size_bytes / full.size_bytes)
    assert "of full precision" in size[0]
    assert bitops[1] == pytest.approx(spent.bitops / full.bitops)
    *_, bitops = figures.gauges(Allocation(BITS, 0.5, spent, Budget(average_bits=10.0)), full, 1e5)
    assert bitops[1] == pytest.approx(spent.bitops / 1e5)
    assert "of 0.000 G allowed" in bitops[0]


def test_measured_points_carry_their_intervals(layers):
    mixed = point(layers, "mixed", 180)
    figure = figures.measured_points([mixed], evaluation(190), mixed.cost, "Top-1 accuracy")
    uniform_trace, mixed_trace, ring = figure.data
    assert len(uniform_trace.x) == 0
    assert list(mixed_trace.y) == [90.0]
    lowest, highest = mixed.evaluation.interval
    assert mixed_trace.error_y.array[0] == pytest.approx(100 * highest - 90)
    assert mixed_trace.error_y.arrayminus[0] == pytest.approx(90 - 100 * lowest)
    assert list(ring.x) == [mixed.cost.average_bits]
    assert figure.layout.shapes[0].y0 == 95.0


def test_points_without_labels_have_no_accuracy_but_agreement(layers):
    unlabelled = point(layers, "mixed", None)
    accuracy = figures.measured_points([unlabelled], None, None, "Top-1 accuracy")
    agreement = figures.measured_points([unlabelled], None, None, "Agreement with full precision")
    assert len(accuracy.data[1].x) == 0
    assert list(agreement.data[1].y) == [75.0]


def test_frames_hold_the_numbers_of_the_figures(layers):
    frame = figures.allocation_frame(layers, BITS, IMPORTANCE, SENSITIVITY).set_index("layer")
    assert frame.loc["blocks.0.mlp.fc1", ["weight bits", "codes (bytes)", "BitOps"]].tolist() == [2, 32, 5120]
    assert frame.loc["head", "sensitivity (nats)"] == 0
    measured = figures.measured_frame([point(layers, "mixed", 180)])
    assert measured.loc[0, "top-1"] == 0.9
    assert measured.loc[0, "images"] == 200


def test_pins_survive_the_editable_table(layers):
    pinned = {"head": 32, "blocks.0.mlp.fc1": 3}
    assert figures.pins(figures.pin_frame(layers, pinned)) == {"blocks.0.mlp.fc1": 3, "head": 32}
    assert figures.pins(figures.pin_frame(layers, {})) == {}


def test_recipe_is_json_with_all_that_reproduces_the_setting(layers):
    allocation = Allocation(BITS, 0.5, cost(layers, BITS, REST), Budget(average_bits=4.0))
    settings, pinned = Settings(outlier_factor=8.0), {"head": 32}
    written = figures.recipe("digits_vit", settings, allocation, 0.25, pinned, evaluation(180))
    document = json.loads(json.dumps(written))
    assert document["recipe"] == "mix-qvit"
    assert Settings(**document["settings"]) == settings
    assert document["gamma"] == 0.25
    assert document["pinned"] == pinned
    assert document["bits"]["patch_embed.proj"] == [5, 8]
    assert document["budget"] == {"average_bits": 4.0, "size_bytes": None, "bitops": None, "cap_bitops": True}
    assert document["measured"]["top1"] == 0.9
    assert document["predicted_harm"] == 0.5
    parts = ("weight_bytes", "scale_bytes", "full_precision_bytes", "container_bytes")
    assert sum(document["cost"][part] for part in parts) == document["cost"]["size_bytes"]
    assert figures.recipe("digits_vit", settings, allocation, 0.25, pinned, None)["measured"] is None
