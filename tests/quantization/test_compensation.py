"""Error compensation against literal implementations in float64, and what it must and must not do."""

import pytest
import torch
from torch.nn import functional

from mixqvit.errors import CalibrationError
from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import calibrate
from mixqvit.quantization.compensation import DAMPING, RIDGE, compensated_rounding, ridge_correction
from mixqvit.quantization.fits import fitted_weight
from mixqvit.quantization.model import quantize
from mixqvit.quantization.operations import QuantizedLayer
from mixqvit.quantization.recipes import Compensation
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated_rows(count=200, channels=12):
    return random(count, channels) @ random(channels, channels, seed=1)


def literal_rounding(weight, gram, quantizer):
    """Optimal brain quantization in a fixed order: round a column, move the rest by the inverse, remove the column."""
    channels = len(gram)
    damped = gram + torch.eye(channels, dtype=gram.dtype) * DAMPING * gram.diagonal().mean()
    order = sorted(range(channels), key=lambda index: -float(damped[index, index]))
    rounded = torch.zeros_like(weight)
    for row in range(len(weight)):
        remaining, left = weight[row].clone(), list(order)
        while left:
            inverse = torch.linalg.inv(damped[left][:, left])
            column = left[0]
            value = remaining[column]
            low, high = -quantizer.zero_point[row, 0], 2**quantizer.bits - 1 - quantizer.zero_point[row, 0]
            code = torch.clamp(torch.round(value / quantizer.scale[row, 0]), low, high)
            rounded[row, column] = code * quantizer.scale[row, 0]
            error = (value - rounded[row, column]) / inverse[0, 0]
            for position, other in enumerate(left[1:], start=1):
                remaining[other] -= error * inverse[0, position]
            left = left[1:]
    return rounded


@pytest.mark.parametrize("bits", [2, 4])
def test_compensated_rounding_is_optimal_brain_quantization(bits):
    rows, weight = correlated_rows(), random(5, 12, seed=2)
    quantizer = fitted_weight(weight, bits)
    rounded = compensated_rounding(weight, rows.T @ rows, quantizer)
    torch.testing.assert_close(rounded, literal_rounding(weight, rows.T @ rows, quantizer), rtol=1e-12, atol=1e-12)


def test_compensated_rounding_lowers_the_output_error_and_keeps_to_the_codes():
    rows, weight = correlated_rows(500, 70), random(40, 70, seed=2)
    quantizer = fitted_weight(weight, 3)
    rounded = compensated_rounding(weight, rows.T @ rows, quantizer)
    codes = rounded / quantizer.scale + quantizer.zero_point
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)
    assert codes.min() > -0.5
    assert codes.max() < 7.5
    errors = [float(((candidate - weight) @ rows.T).square().sum()) for candidate in (rounded, quantizer(weight))]
    assert errors[0] < 0.7 * errors[1]


def test_rounding_survives_inputs_that_are_all_zero_and_weights_that_are():
    weight = torch.zeros(3, 6, dtype=torch.float64)
    assert torch.equal(compensated_rounding(weight, torch.zeros(6, 6), fitted_weight(weight, 4)), weight)
    weight = random(3, 6)
    quantizer = fitted_weight(weight, 4)
    # Nothing to compensate with: plain rounding.
    assert torch.equal(compensated_rounding(weight, torch.zeros(6, 6), quantizer), quantizer(weight))


@pytest.mark.parametrize("centred", [True, False])
def test_the_correction_is_the_minimum_of_the_ridge_problem(centred):
    rows, error, weights = correlated_rows(), random(200, 4, seed=3), random(200, seed=4).abs()
    weights = weights / weights.mean()
    found = ridge_correction(rows, error, weights, centred)
    # The same as ordinary least squares with √w-weighted rows and the ridge as additional rows.
    root = weights.sqrt()[:, None]
    if centred:
        rows, error = rows - (weights @ rows) / 200, error - (weights @ error) / 200
    ridge = RIDGE * (weights[:, None] * rows.square()).mean(dim=0).mean()
    stacked = torch.cat([root * rows, (200 * ridge).sqrt() * torch.eye(12, dtype=torch.float64)])
    wanted = torch.cat([root * error, torch.zeros(12, 4, dtype=torch.float64)])
    torch.testing.assert_close(found, torch.linalg.lstsq(stacked, wanted).solution.T, rtol=1e-8, atol=1e-10)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def calibration(request):
    graph = trace(tiny_model(request.param), tiny_images(1))
    return calibrate(graph, tiny_images(16), bit_widths=(4,))


def harm(calibration, compensation):
    images = calibration.pixels
    reference = calibration.graph(images).log_softmax(dim=1)
    logits = quantize(calibration, 4, compensation)(images)
    return float(functional.kl_div(logits.log_softmax(dim=1), reference, log_target=True, reduction="batchmean"))


def test_compensation_lowers_the_harm_on_calibration_images(calibration):
    assert harm(calibration, Compensation()) < 0.8 * harm(calibration, None)


def test_each_part_can_be_left_out_and_leaves_its_trace(calibration):
    plain = quantize(calibration, 4, None).operations
    layer = next(layer for layer in calibration.graph.layers if layer.kind == "fc1")

    def prepared(**parts):
        chosen = Compensation(**{"regression": False, "rounding": False, "bias": False} | parts)
        return quantize(calibration, 4, chosen).operations[layer.node].prepared

    before, after = plain[layer.node].prepared, prepared()
    assert torch.equal(before.weight, after.weight)
    assert torch.equal(before.bias, after.bias)
    assert not torch.equal(prepared(regression=True).weight, before.weight)
    assert not torch.equal(prepared(rounding=True).weight, before.weight)
    assert torch.equal(prepared(rounding=True).bias, before.bias)
    assert torch.equal(prepared(bias=True).weight, before.weight)
    assert not torch.equal(prepared(bias=True).bias, before.bias)


def test_compensation_changes_neither_calibration_nor_activation_quantizers(calibration):
    images = tiny_images(3)
    before = quantize(calibration, 4, None)(images)
    compensated = quantize(calibration, 4)
    assert torch.equal(quantize(calibration, 4, None)(images), before)
    for node, operation in quantize(calibration, 4, None).operations.items():
        other = compensated.operations[node]
        if isinstance(operation, QuantizedLayer):
            assert other.input_quantizer is operation.input_quantizer
        else:
            assert other.first is operation.first and other.second is operation.second


def test_layers_in_full_precision_stay_so(calibration):
    graph = calibration.graph
    chosen = {layer.name: 4 for layer in graph.layers if layer.block == 0}
    quantized = quantize(calibration, chosen)
    assert {layer.node for layer in graph.layers if layer.block == 0} == set(quantized.operations)
    only_activations = quantize(calibration, {layer.name: (32, 4) for layer in graph.layers if layer.kind == "fc2"})
    assert all(operation.prepared.quantizer is None for operation in only_activations.operations.values())


def test_recipes_without_token_weights_cannot_compensate():
    calibration = calibrate(trace(tiny_model("vit"), tiny_images(1)), tiny_images(2), "min-max", bit_widths=(4,))
    with pytest.raises(CalibrationError, match="mix-qvit"):
        quantize(calibration, 4, Compensation())
