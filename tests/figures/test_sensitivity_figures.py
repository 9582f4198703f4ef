"""Figures of the Sensitivity page show curves as measured, finished or not."""

import pytest

from mixqvit.bits import BIT_WIDTHS
from mixqvit.figures import sensitivity as figures
from mixqvit.layers import Layer
from mixqvit.sensitivity import SensitivityCell


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
    "blocks.0.attn.matmul1": {2: 0.05, 3: 0.01, 4: 0.0},
    "blocks.1.attn.qkv": {2: 0.3, 3: 0.2},
    "head": {2: 0.02, 3: 0.02, 4: 0.02},
}


def trace(figure, name):
    (found,) = (trace for trace in figure.data if trace.name == name)
    return found


def test_cells_become_a_table():
    cells = [SensitivityCell("head", "both", 2, 0.5), SensitivityCell("head", "both", 3, 0.1)]
    assert figures.table(cells) == {"head": {2: 0.5, 3: 0.1}}


def test_curves_are_shown_as_measured_with_gaps_between_layers():
    figure = figures.harm_curves(LAYERS, HARMS, logarithmic=False)
    qkv = trace(figure, "qkv")
    assert list(qkv.x) == [2, 3, 4, None, 2, 3, None]
    assert list(qkv.y) == [0.5, 0.1, 0.2, None, 0.3, 0.2, None]
    assert not qkv.connectgaps
    assert len({found.marker.symbol for found in figure.data}) == 3


def test_a_zero_stays_on_a_logarithmic_scale_and_exact_on_hover():
    figure = figures.harm_curves(LAYERS, HARMS, logarithmic=True)
    matmul = trace(figure, "matmul1")
    assert figure.layout.yaxis.type == "log"
    assert matmul.y[2] == figures.FLOOR
    assert matmul.customdata[2][1] == 0.0
    low, high = figure.layout.yaxis.range
    assert 10**low < figures.FLOOR
    assert 10**high > 0.5


def test_a_highlighted_layer_stands_out_with_its_envelope():
    figure = figures.harm_curves(LAYERS, HARMS, False, highlighted="blocks.0.attn.qkv")
    assert list(trace(figure, "envelope").y) == [0.5, 0.1, 0.1]
    assert list(trace(figure, "block 0 · qkv").y)[:3] == [0.5, 0.1, 0.2]
    assert trace(figure, "qkv").opacity < trace(figure, "block 0 · qkv").opacity


def test_nothing_measured_yet_still_draws_axes():
    assert figures.harm_curves(LAYERS, {}, True).layout.yaxis.range[0] < 0


def test_filters_leave_everything_in_when_empty():
    assert figures.selected(LAYERS, [], []) == list(LAYERS)
    assert [layer.name for layer in figures.selected(LAYERS, ["qkv"], [1])] == ["blocks.1.attn.qkv"]
    assert figures.selected(LAYERS, ["head"], [0]) == []


@pytest.mark.parametrize(("logarithmic", "colour"), [(False, 0.1), (True, -1.0)])
def test_the_grid_prints_the_harm_whatever_colours_it(logarithmic, colour):
    heatmap = figures.harm_grid(LAYERS, HARMS, 3, logarithmic).data[0]
    row, column = list(heatmap.y).index("block 0"), list(heatmap.x).index("qkv")
    assert heatmap.z[row][column] == pytest.approx(colour)
    assert heatmap.text[row][column] == "0.1"


def test_words_name_the_worst_measured_layers():
    sentence = figures.first_to_break(LAYERS, HARMS, 4, 2)
    assert "**block 0 · qkv** (0.2), **head** (0.02)" in sentence
    assert "100% of the harm summed over the 3 measured layers" in sentence
    assert "no layer" in figures.first_to_break(LAYERS, HARMS, 8, 2)


def test_rising_curves_are_found():
    assert figures.rising(HARMS) == ["blocks.0.attn.qkv"]
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


@pytest.mark.parametrize(("harm", "text"), [(0.0123, "0.012"), (1.26, "1.3"), (4.2e-5, "4e-5"), (0.0, "0")])
def test_a_harm_is_short_enough_for_a_cell(harm, text):
    assert figures.brief(harm) == text
