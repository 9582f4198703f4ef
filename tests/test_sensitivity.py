import pytest
import torch

from mixqvit.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.evaluation import kl_divergence
from mixqvit.graph import trace
from mixqvit.quantization import calibrate, quantize
from mixqvit.sensitivity import cell_bits, sensitivity_steps
from tests.models import ARCHITECTURES, tiny_images, tiny_model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def calibration(request):
    graph = trace(tiny_model(request.param), tiny_images(1))
    return calibrate(graph, tiny_images(4))


@pytest.mark.parametrize("operands", ["both", "weights", "activations"])
def test_every_cell_is_what_a_whole_pass_with_one_quantized_layer_measures(calibration, operands):
    images = tiny_images(3)
    reference = calibration.graph(images)
    cells = list(sensitivity_steps(calibration, images, operands, (2, 5)))
    measured = [layer for layer in calibration.graph.layers if operands != "weights" or not layer.is_matmul]
    assert [(cell.layer, cell.bits) for cell in cells] == [(layer.name, bits) for layer in measured for bits in (2, 5)]
    for cell in cells:
        layer = calibration.graph.by_name[cell.layer]
        alone = {cell.layer: cell_bits(layer, operands, cell.bits)}
        logits = quantize(calibration, alone, compensation=None)(images)
        assert cell.harm == pytest.approx(float(kl_divergence(reference, logits).mean()), rel=1e-10, abs=1e-15)
        assert cell.harm > 0


def test_finished_cells_are_not_measured_again(calibration):
    layers = calibration.graph.layers
    finished = {(layer.name, bits) for layer in layers for bits in BIT_WIDTHS if (layer, bits) != (layers[2], 3)}
    (cell,) = sensitivity_steps(calibration, tiny_images(2), finished=finished)
    assert (cell.layer, cell.bits) == (layers[2].name, 3)
    everything = finished | {(layers[2].name, 3)}
    assert list(sensitivity_steps(calibration, tiny_images(2), finished=everything)) == []


def test_operands_say_which_bits_are_swept(calibration):
    layers = {layer.kind: layer for layer in calibration.graph.layers}
    assert cell_bits(layers["qkv"], "both", 3) == (3, 3)
    assert cell_bits(layers["patch_embed"], "both", 3) == (3, 8)  # as in every allocation
    assert cell_bits(layers["qkv"], "weights", 3) == (3, FULL_PRECISION)
    assert cell_bits(layers["qkv"], "activations", 3) == (FULL_PRECISION, 3)
    assert cell_bits(layers["matmul1"], "weights", 3) is None
    assert cell_bits(layers["matmul1"], "activations", 3) == (3, 3)


def test_harm_falls_with_bits_on_the_whole(calibration):
    harms = dict.fromkeys((2, 4, 8), 0.0)
    for cell in sensitivity_steps(calibration, tiny_images(4), bit_widths=(2, 4, 8)):
        harms[cell.bits] += cell.harm
    assert harms[2] > harms[4] > harms[8]
    assert torch.isfinite(torch.tensor(list(harms.values()))).all()
