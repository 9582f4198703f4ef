import pytest
import torch

from mixqvit.criteria.sensitivity import sweep
from mixqvit.criteria.sensitivity.sweep import cell_bits, sensitivity_steps
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import calibrate
from mixqvit.quantization.model import quantize
from mixqvit.tasks.classification import METRICS
from tests.tiny_models import ARCHITECTURES, TRANSFORMERS, small_transformer, tiny_images, tiny_model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def calibration(request):
    graph = trace(tiny_model(request.param), tiny_images(1))
    return calibrate(graph, tiny_images(4))


@pytest.mark.parametrize("baseline", [FULL_PRECISION, 6])
@pytest.mark.parametrize("operands", ["both", "weights", "activations"])
def test_every_cell_is_what_a_whole_pass_with_one_quantized_layer_measures(calibration, operands, baseline):
    images, labels = tiny_images(3), torch.tensor([0, 4, 2])
    task, reference = calibration.graph.task, calibration.graph(images)
    cells = list(sensitivity_steps(calibration, images, labels, operands, (2, 5), baseline))
    layers = calibration.graph.layers
    measured = [layer for layer in layers if operands != "weights" or not layer.is_matmul]
    assert [(cell.layer, cell.bits) for cell in cells] == [(layer.name, bits) for layer in measured for bits in (2, 5)]
    for cell in cells:
        bits = {layer.name: cell_bits(layer, "both", baseline) for layer in layers if baseline != FULL_PRECISION}
        layer = calibration.graph.by_name[cell.layer]
        bits[cell.layer] = cell_bits(layer, operands, cell.bits, baseline)
        logits = quantize(calibration, bits, compensation=None)(images)
        assert cell.effect["kl"] == pytest.approx(task.divergence(reference, logits).numpy(), rel=1e-10, abs=1e-15)
        assert cell.effect["squared_error"] == pytest.approx((logits - reference).square().mean(1).numpy(), rel=1e-10)
        losses = (torch.nn.functional.cross_entropy(values, labels) for values in (logits, reference))
        assert METRICS["cross-entropy"].harm(cell.effect) == pytest.approx(
            float(next(losses) - next(losses)), rel=1e-9, abs=1e-14
        )
        assert METRICS["kl"].harm(cell.effect) == pytest.approx(
            float(task.divergence(reference, logits).mean()), rel=1e-10
        )
        assert METRICS["kl"].harm(cell.effect) > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_single_precision_a_cell_is_the_whole_pass_to_1e_4(architecture):
    images = tiny_images(4, torch.float32)
    calibration = calibrate(trace(tiny_model(architecture, torch.float32), images), images)
    reference = calibration.graph(images)
    for cell in sensitivity_steps(calibration, images, bit_widths=(2, 5, 8)):
        bits = {cell.layer: cell_bits(calibration.graph.by_name[cell.layer], "both", cell.bits)}
        plain = calibration.graph.task.divergence(
            reference, quantize(calibration, bits, compensation=None)(images)
        ).mean()
        assert METRICS["kl"].harm(cell.effect) == pytest.approx(float(plain), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_runs_shared_by_bit_widths_and_split_by_images_change_nothing(name, monkeypatch):
    module, pixels = small_transformer(name)
    calibration = calibrate(trace(module, pixels), pixels, "min-max")

    def harms():
        cells = sensitivity_steps(calibration, pixels, bit_widths=(3, 4, 8))
        return [value for cell in cells for value in cell.effect["kl"]]

    shared = harms()  # three images: all bit-widths in one run
    monkeypatch.setattr(sweep, "SHARED_MACS", 1)
    monkeypatch.setattr(sweep, "IMAGES_AT_ONCE", 2)
    assert harms() == pytest.approx(shared, rel=1e-9, abs=1e-13)


def test_only_what_is_wanted_is_measured(calibration):
    layers = calibration.graph.layers
    asked = []

    def wanted(name):
        asked.append(name)
        return [3] if name == layers[2].name else []

    (cell,) = sensitivity_steps(calibration, tiny_images(2), wanted=wanted)
    assert (cell.layer, cell.bits) == (layers[2].name, 3)
    assert asked == [layer.name for layer in layers]  # each once, when the run has come to it


def test_the_callers_gradient_mode_is_left_alone(calibration):
    for _ in sensitivity_steps(calibration, tiny_images(2), bit_widths=(4,)):
        assert torch.is_grad_enabled()


def test_operands_say_which_bits_are_swept(calibration):
    layers = {layer.kind: layer for layer in calibration.graph.layers}
    assert cell_bits(layers["qkv"], "both", 3) == (3, 3)
    assert cell_bits(layers["patch_embed"], "both", 3) == (3, 8)  # as in every allocation
    assert cell_bits(layers["patch_embed"], "weights", 3, 6) == (3, 8)
    assert cell_bits(layers["qkv"], "weights", 3) == (3, FULL_PRECISION)
    assert cell_bits(layers["qkv"], "weights", 3, 8) == (3, 8)
    assert cell_bits(layers["qkv"], "activations", 3) == (FULL_PRECISION, 3)
    assert cell_bits(layers["matmul1"], "weights", 3) is None
    assert cell_bits(layers["matmul1"], "activations", 3) == (3, 3)


def test_harm_falls_with_bits_on_the_whole(calibration):
    harms = {name: dict.fromkeys((2, 4, 8), 0.0) for name in METRICS}
    for cell in sensitivity_steps(calibration, tiny_images(4), torch.arange(4), bit_widths=(2, 4, 8)):
        for name, metric in METRICS.items():
            harms[name][cell.bits] += metric.harm(cell.effect)
    for name in ("kl", "mse", "sqnr"):
        assert harms[name][2] > harms[name][4] > harms[name][8]
    assert len(BIT_WIDTHS) == 7
