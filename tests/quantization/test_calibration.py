import dataclasses

import pytest
import torch

from mixqvit.errors import BitWidthError, CalibrationError
from mixqvit.network.bits import FULL_PRECISION
from mixqvit.network.tracing import trace
from mixqvit.quantization import calibration as calibration_module
from mixqvit.quantization.calibration import calibrate, calibrate_steps, prepare_weight
from mixqvit.quantization.fits import CLIPS, clipped_reparameterized, fitted_weight, output_error
from mixqvit.quantization.model import quantize
from mixqvit.quantization.operands import operands_of
from mixqvit.quantization.quantizers.adaptive_log import AdaptiveLogQuantizer
from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.ranges import fit_per_channel
from mixqvit.quantization.recipes import RECIPES
from mixqvit.quantization.reparameterization import reparameterized_quantizer
from mixqvit.quantization.saving import from_tensors, to_tensors
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def calibration(request):
    graph = trace(tiny_model(request.param), tiny_images(1))
    return calibrate(graph, tiny_images(8))


def correlation(one, other):
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1])


def test_more_bits_come_closer_and_eight_are_nearly_lossless(calibration):
    images = tiny_images(8)
    reference = calibration.graph(images)
    errors = [float((quantize(calibration, bits)(images) - reference).square().mean()) for bits in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert correlation(quantize(calibration, 8)(images), reference) > 0.999
    assert errors[0] > 100 * errors[-1]


def test_full_precision_is_untouched(calibration):
    images = tiny_images(3)
    assert torch.equal(quantize(calibration, FULL_PRECISION)(images), calibration.graph(images))
    assert torch.equal(quantize(calibration, {})(images), calibration.graph(images))


def test_every_operand_gets_its_quantizer(calibration):
    for layer in calibration.graph.layers:
        quantizers = calibration.quantizers(layer, (4, 4))
        if layer.kind in ("matmul2", "fc2"):
            assert isinstance(quantizers[0], AdaptiveLogQuantizer)
        elif layer.kind in ("qkv", "fc1", "reduction", "proj"):
            assert isinstance(quantizers[0], ReparameterizedQuantizer)
        else:
            assert isinstance(quantizers[0], UniformQuantizer)
        if layer.kind == "matmul2":
            assert quantizers[1].scale.shape == (layer.output_shape[1], 1, layer.output_shape[3])


def test_weight_and_activation_bits_are_separate(calibration):
    images = tiny_images(4)
    graph = calibration.graph
    qkv = next(layer for layer in graph.layers if layer.kind == "qkv")
    reference = graph(images)
    found = [
        quantize(calibration, {qkv.name: bits})(images) for bits in ((2, FULL_PRECISION), (FULL_PRECISION, 2), (2, 2))
    ]
    for logits in found:
        assert not torch.equal(logits, reference)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_a_quantized_weight_has_at_most_two_to_the_bits_values_per_channel(calibration):
    for layer in calibration.graph.layers:
        if not layer.is_matmul:
            weight = prepare_weight(calibration, layer, (3, 8)).weight
            assert max(len(channel.unique()) for channel in weight.flatten(1)) <= 8


def test_quantizing_one_layer_changes_its_output_as_the_formula_says():
    """One layer at (3, 4) bits by hand: x / r - t, codes, W · diag(r), per-channel weight codes, bias."""
    graph = trace(tiny_model("vit"), tiny_images(1))
    calibration = calibrate(graph, tiny_images(8))
    layer = graph.by_name["blocks.0.mlp.fc1"]
    ((_, values),) = graph.walk(tiny_images(2), [layer.node])
    (inputs,) = graph.operands(layer, values)
    (quantizer,) = calibration.quantizers(layer, (3, 4))
    scale, zero = quantizer.tensor.scale, quantizer.tensor.zero_point
    moved = inputs / quantizer.ratio - quantizer.shift
    codes = torch.clamp(torch.round(moved / scale) + zero, 0, 15)
    weight = graph.weight(layer) @ torch.diag(quantizer.ratio)
    fitted = fitted_weight(weight, 3)
    weight_codes = torch.clamp(torch.round(weight / fitted.scale) + fitted.zero_point, 0, 7)
    expected = ((codes - zero) * scale) @ ((weight_codes - fitted.zero_point) * fitted.scale).T
    expected = expected + graph.bias(layer) + weight @ quantizer.shift
    bits = {layer.name: (3, 4)}
    _, kept = graph.run(tiny_images(2), quantize(calibration, bits, None).operations, keep={layer.node})
    torch.testing.assert_close(kept[layer.node], expected, rtol=1e-9, atol=1e-9)


def test_clipping_can_only_lower_the_error_of_the_layer_on_the_sample_it_is_chosen_on():
    graph = trace(tiny_model("vit"), tiny_images(1))
    images = tiny_images(8)
    clips = set()
    for layer in graph.layers:
        if layer.kind in ("qkv", "fc1"):
            ((_, values),) = graph.walk(images, [layer.node])
            (operand,) = operands_of(graph, layer, graph.operands(layer, values), len(images))
            for bits, quantizer in clipped_reparameterized(operand, (2, 3, 4)).items():
                unclipped = reparameterized_quantizer(fit_per_channel(operand.rows, bits))
                error = output_error(operand.partner, operand.rows, quantizer, bits)
                assert error <= output_error(operand.partner, operand.rows, unclipped, bits) * (1 + 1e-9)
                clips.add(quantizer.clip)
    assert clips <= set(CLIPS)
    assert len(clips) > 1


def test_the_calibrated_quantizers_do_not_depend_on_other_layers_bits(calibration):
    """Calibrate once, then any bits: a second calibration gives the same quantizers."""
    again = calibrate(calibration.graph, tiny_images(8))
    for name, layer in calibration.layers.items():
        for ours, theirs in zip(layer.operands, again.layers[name].operands, strict=True):
            for bits in ours:
                assert torch.equal(_scale(ours[bits]), _scale(theirs[bits]))


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "repq-vit"])
def test_every_recipe_serves_any_bits_and_more_bits_come_closer(recipe):
    graph = trace(tiny_model("deit"), tiny_images(1))
    images = tiny_images(6)
    calibration = calibrate(graph, images, recipe, bit_widths=(3, 8))
    reference = graph(images)
    coarse, fine = (quantize(calibration, bits)(images) for bits in (3, 8))
    assert float((fine - reference).square().mean()) < 0.2 * float((coarse - reference).square().mean())


def _scale(quantizer):
    return quantizer.tensor.scale if isinstance(quantizer, ReparameterizedQuantizer) else quantizer.scale


def test_saving_and_reading_gives_the_same_logits(calibration):
    layers = {name: from_tensors(name, *to_tensors(piece)) for name, piece in calibration.layers.items()}
    restored = dataclasses.replace(calibration, layers=layers)
    images = tiny_images(3)
    assert torch.equal(quantize(restored, 3)(images), quantize(calibration, 3)(images))


@pytest.mark.parametrize("recipe", ["mix-qvit", "repq-vit"])
def test_a_resumed_calibration_is_the_uninterrupted_one(recipe):
    graph = trace(tiny_model("vit"), tiny_images(1))
    bits = (4, 4) if recipe == "repq-vit" else None
    whole = calibrate(graph, tiny_images(4), recipe, bits)
    steps = calibrate_steps(graph, tiny_images(4), recipe, bits)
    first = {piece.layer: piece for piece, _ in zip(steps, range(5), strict=False)}
    rest = {piece.layer: piece for piece in calibrate_steps(graph, tiny_images(4), recipe, bits, finished=first)}
    assert not set(first) & set(rest)
    resumed = dataclasses.replace(whole, layers=first | rest)
    assert torch.equal(quantize(resumed, 4)(tiny_images(4)), quantize(whole, 4)(tiny_images(4)))


def test_prepared_weights_are_reused_and_bounded(monkeypatch):
    graph = trace(tiny_model("vit"), tiny_images(1))
    calibration = calibrate(graph, tiny_images(2))
    layer = graph.by_name["head"]
    assert prepare_weight(calibration, layer, (4, 4)) is prepare_weight(calibration, layer, (4, 8))
    monkeypatch.setattr(calibration_module, "PREPARED_WEIGHT_BYTES", 10_000)
    small = calibrate(graph, tiny_images(2))
    for bits in range(2, 9):
        quantize(small, bits)
    assert small._prepared._bytes <= 10_000
    assert small._prepared._bytes == sum(weight.bytes for weight in small._prepared._weights.values())


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (1, "1 bits are not possible for every layer"),
        (9, "9 bits"),
        (True, "True bits"),
        ({"head": 9}, "layer head"),
        ({"head": (4, 1)}, "1 bits"),
        ({"head": (4, 4, 4)}, "weight bits, activation bits"),
        ({"heads": 4}, "no layer 'heads'"),
    ],
)
def test_impossible_bits_are_refused(calibration, bits, message):
    if isinstance(bits, dict) and "head" in bits:
        bits = {calibration.graph.layers[-1].name: bits["head"]}
    with pytest.raises(BitWidthError, match=message):
        quantize(calibration, bits)


def test_bad_calibration_input_is_refused_in_words():
    graph = trace(tiny_model("vit"), tiny_images(1))
    with pytest.raises(CalibrationError, match="no recipe 'best'"):
        calibrate(graph, tiny_images(2), "best")
    with pytest.raises(CalibrationError, match="give bits="):
        calibrate(graph, tiny_images(2), "repq-vit")
    with pytest.raises(CalibrationError, match="leave out bits="):
        calibrate(graph, tiny_images(2), "mix-qvit", (4, 4))
    with pytest.raises(CalibrationError, match="at least one image"):
        calibrate(graph, tiny_images(0))
    infinite = tiny_images(2)
    infinite[0, 0, 0, 0] = float("inf")
    with pytest.raises(CalibrationError, match="not finite"):
        calibrate(graph, infinite)


def test_infinite_values_inside_are_refused_with_the_layers_name():
    broken = trace(tiny_model("vit"), tiny_images(1))
    with torch.no_grad():
        broken.operation(broken.by_name["blocks.0.mlp.fc1"]).bias[0] = float("inf")
    with pytest.raises(CalibrationError, match=r"blocks\.0\.mlp\.fc2"):
        calibrate(broken, tiny_images(2))


@pytest.mark.parametrize("images", [tiny_images(1), torch.zeros(2, 1, 16, 16).double()], ids=["one image", "black"])
def test_few_or_constant_images_never_give_nan(images):
    model = tiny_model("vit")
    with torch.no_grad():
        model.blocks[0].norm1.weight[:3] = 0
        model.blocks[0].norm1.bias[:2] = 0
        model.blocks[1].mlp.fc2.weight.zero_()
        model.blocks[1].mlp.fc1.weight[0] = 0.25
    graph = trace(model, images[:1])
    calibration = calibrate(graph, images)
    for bits in (2, 5, 8):
        assert torch.isfinite(quantize(calibration, bits)(images)).all()


def test_repq_vit_serves_the_bits_it_was_calibrated_for_only():
    graph = trace(tiny_model("vit"), tiny_images(1))
    calibration = calibrate(graph, tiny_images(4), "repq-vit", (4, 6))
    quantize(calibration, {layer.name: (6, 6) if layer.is_matmul else (4, 6) for layer in graph.layers[1:]})
    with pytest.raises(CalibrationError, match=r"calibrated for .*\(4, 6\)"):
        quantize(calibration, 4)
