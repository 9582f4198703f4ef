"""Figures of the Sensitivity page show curves as measured, finished or not, by any metric."""

from math import log10

import pytest

from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.network.layers import Layer
from mixqvit.tasks.classification import METRICS
from mixqvit.views import sensitivity as figures
from mixqvit.views.numbers import percent
from mixqvit.views.style import KIND_SYMBOLS


def make_layer(name: str, kind: str, block: int | None) -> Layer:
    return Layer(name, kind, block, 8, 2, 16, (1, 4), (1, 2), name, None)


LAYERS = (
    make_layer("blocks.0.attn.qkv", "qkv", 0),
    make_layer("blocks.0.attn.matmul1", "matmul1", 0),
    make_layer("blocks.1.attn.qkv", "qkv", 1),
    make_layer("head", "head", None),
)
HARMS = {
    "blocks.0.attn.qkv": {2: 0.5, 3: 0.1, 4: 0.2},
    "blocks.0.attn.matmul1": {2: 0.05, 3: 0.02, 4: 0.0},
    "blocks.1.attn.qkv": {2: 0.3, 3: 0.2},
    "head": {2: 0.02, 3: -0.02, 4: 0.02},
}
INTERVALS = {name: {bits: (harm - 0.01, harm + 0.03) for bits, harm in curve.items()} for name, curve in HARMS.items()}


def trace(figure, name):
    (found,) = (trace for trace in figure.data if trace.name == name)
    return found


def curves(**choices):
    return figures.harm_curves(LAYERS, HARMS, METRICS["kl"], **{"logarithmic": False, **choices})


def test_curves_are_shown_as_measured_with_gaps_between_layers():
    figure = curves()
    qkv = trace(figure, "qkv")
    assert list(qkv.x) == [2, 3, 4, None, 2, 3, None]
    assert list(qkv.y) == [0.5, 0.1, 0.2, None, 0.3, 0.2, None]
    assert not qkv.connectgaps
    assert "blocks.0.attn.qkv" in qkv.text[2] and "4 bits: Λ = 0.2\u00a0nats" in qkv.text[2]
    assert "interval" not in qkv.text[2]
    assert len({found.marker.symbol[0] for found in figure.data}) == 3


def test_curves_are_grouped_by_block_with_the_kind_in_the_marker():
    figure = curves(by="block")
    assert [found.name for found in figure.data] == ["block 0", "block 1", "head"]
    first = trace(figure, "block 0")
    assert list(first.y) == [0.5, 0.1, 0.2, None, 0.05, 0.02, 0.0, None]
    assert (first.marker.symbol[0], first.marker.symbol[4]) == (KIND_SYMBOLS["qkv"], KIND_SYMBOLS["matmul1"])
    assert len({found.line.color for found in figure.data}) == 3


def test_what_a_logarithmic_scale_cannot_place_lies_on_its_lowest_line_and_is_exact_on_hover():
    figure = curves(logarithmic=True)
    matmul, head = trace(figure, "matmul1"), trace(figure, "head")
    assert figure.layout.yaxis.type == "log"
    assert matmul.y[2] == head.y[1] == pytest.approx(0.01)
    assert "Λ = -0.02" in head.text[1]
    low, high = figure.layout.yaxis.range
    assert low < log10(0.01) < low + 0.2
    assert high > log10(0.5)
    assert figures.undrawable(LAYERS, HARMS) == 2
    assert trace(curves(), "head").y[1] == -0.02


def test_harms_below_the_resolution_do_not_stretch_the_scale():
    figure = figures.harm_curves(LAYERS, {"head": {2: 1e-3, 8: 1e-15}}, METRICS["kl"], logarithmic=True)
    assert figure.layout.yaxis.range[0] >= log10(figures.FLOOR) - 0.2
    assert figures.undrawable(LAYERS, {"head": {2: 1e-3, 8: 1e-15}}) == 1


def test_a_highlighted_layer_stands_out_with_its_envelope_and_interval():
    figure = curves(highlighted="blocks.0.attn.qkv", intervals=INTERVALS)
    assert list(trace(figure, "envelope").y) == [0.5, 0.1, 0.1]
    assert list(trace(figure, "block 0 · qkv").y)[:3] == [0.5, 0.1, 0.2]
    assert trace(figure, "qkv").opacity < trace(figure, "block 0 · qkv").opacity
    band = trace(figure, "95 % interval")
    assert list(band.x) == [2, 3, 4, 4, 3, 2]
    assert list(band.y) == pytest.approx([0.49, 0.09, 0.19, 0.23, 0.13, 0.53])
    assert "95 % interval 0.49 to 0.53" in trace(figure, "block 0 · qkv").text[0]


def test_no_band_before_the_intervals_are_known():
    names = [found.name for found in curves(highlighted="head").data]
    assert "95 % interval" not in names and "envelope" in names


def test_nothing_measured_yet_still_draws_axes():
    assert figures.harm_curves(LAYERS, {}, METRICS["kl"], logarithmic=True).layout.yaxis.range[0] < 0


def test_filters_leave_everything_in_when_empty():
    assert figures.selected(LAYERS, [], []) == list(LAYERS)
    assert [layer.name for layer in figures.selected(LAYERS, ["qkv"], [1])] == ["blocks.1.attn.qkv"]
    assert figures.selected(LAYERS, ["head"], [0]) == []


@pytest.mark.parametrize(("logarithmic", "colour"), [(False, 0.1), (True, -1.0)])
def test_the_grid_prints_the_harm_whatever_colours_it(logarithmic, colour):
    heatmap = figures.harm_grid(LAYERS, HARMS, METRICS["kl"], 3, logarithmic, INTERVALS).data[0]
    row, column = list(heatmap.y).index("block 0"), list(heatmap.x).index("qkv")
    assert heatmap.z[row][column] == pytest.approx(colour)
    assert heatmap.text[row][column] == "0.1"
    assert "3 bits: Λ = 0.1\u00a0nats<br>95 % interval 0.09 to 0.13" in heatmap.hovertext[row][column]


def test_words_name_the_worst_measured_layers():
    sentence = figures.first_to_break(LAYERS, HARMS, METRICS["kl"], 4, 2)
    assert "**block 0 · qkv** (0.2\u00a0nats), **head** (0.02\u00a0nats)" in sentence
    assert "100\u00a0% of the harm summed over the 3 measured layers" in sentence
    assert "no layer" in figures.first_to_break(LAYERS, HARMS, METRICS["kl"], 8, 2)


def test_negative_harm_counts_as_none_in_the_sum():
    sentence = figures.first_to_break(LAYERS, HARMS, METRICS["cross-entropy"], 3, 1)
    assert "cross-entropy increase" in sentence and percent(0.2 / 0.32, 0) in sentence
    assert "none of the 1" in figures.first_to_break(LAYERS, {"head": {3: -0.1}}, METRICS["top1-drop"], 3, 1)


def test_rising_curves_are_found():
    assert figures.rising(HARMS) == ["blocks.0.attn.qkv", "head"]
    assert figures.rising({"falls": {4: 2.0, 2: 3.0, 3: 2.0}, "rises": {4: 1.5, 2: 3.0, 3: 1.0}}) == ["rises"]


def test_a_sweep_of_weights_is_complete_without_attention_products():
    whole = {layer.name: dict.fromkeys(BIT_WIDTHS, 0.1) for layer in LAYERS if not layer.is_matmul}
    assert figures.complete(LAYERS, whole, "weights")
    assert not figures.complete(LAYERS, whole, "both")
    assert not figures.complete(LAYERS, {}, "weights")


def test_the_frame_leaves_unmeasured_cells_empty():
    frame = figures.harm_frame(LAYERS, HARMS).set_index("layer")
    assert frame.loc["blocks.0.attn.qkv", "4 bits"] == 0.2
    assert frame["4 bits"].isna().tolist() == [False, False, True, False]


def test_the_long_frame_has_intervals_and_decibels():
    frame = figures.long_frame(LAYERS, HARMS, METRICS["sqnr"], INTERVALS)
    assert len(frame) == 11
    row = frame[(frame["layer"] == "blocks.0.attn.qkv") & (frame["bits"] == 3)].iloc[0]
    assert row[["harm", "interval from", "interval to", "SQNR (dB)"]].tolist() == pytest.approx([0.1, 0.09, 0.13, 10])
    assert frame.loc[frame["harm"] <= 0, "SQNR (dB)"].tolist() == [float("inf")] * 2
    assert len(figures.long_frame(LAYERS, HARMS, METRICS["kl"], None, 4)) == 3
    assert list(figures.long_frame(LAYERS, HARMS, METRICS["kl"]).columns) == ["layer", "kind", "block", "bits", "harm"]


@pytest.mark.parametrize(
    ("harm", "text"), [(0.0123, "0.012"), (1.26, "1.3"), (4.2e-5, "4e-5"), (0.0, "0"), (-0.012, "-0.012")]
)
def test_a_harm_is_short_enough_for_a_cell(harm, text):
    assert figures.brief(harm) == text
