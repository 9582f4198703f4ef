"""A quantized model through its file: the same logits, the predicted size, and nothing else is accepted."""

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

import mixqvit
from mixqvit.allocation.budget import Budget
from mixqvit.allocation.costs import Storage, cost
from mixqvit.allocation.exact import allocate
from mixqvit.errors import PackingError
from mixqvit.models.preprocessing import Preprocessing
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, uniform
from mixqvit.packing.model import load_packed, pack, packed, packed_source, storage
from mixqvit.quantization.calibration import calibrate
from mixqvit.quantization.model import quantize
from mixqvit.quantization.operations import QuantizedLayer
from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from mixqvit.quantization.recipes import RECIPES
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model

IMAGES = tiny_images(4, torch.float32)
ONE_SETTING = (4, 4)


@pytest.fixture(scope="module")
def calibrated():
    """From architecture and recipe to a calibration, made once."""
    made = {}

    def calibrated(architecture, recipe="mix-qvit"):
        if (architecture, recipe) not in made:
            graph = mixqvit.trace(tiny_model(architecture, torch.float32), IMAGES)
            bits = ONE_SETTING if RECIPES[recipe].one_setting else None
            made[architecture, recipe] = calibrate(graph, IMAGES, recipe, bits)
        return made[architecture, recipe]

    return calibrated


def random_bits(layers, seed, widths=(*BIT_WIDTHS, FULL_PRECISION)):
    chosen = random.Random(seed)
    return {layer.name: (chosen.choice(widths), chosen.choice(widths)) for layer in layers}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_packed_model_has_the_size_of_its_cost_and_gives_the_same_logits(calibrated, tmp_path, architecture, recipe):
    calibration = calibrated(architecture, recipe)
    layers = calibration.graph.layers
    widths = (ONE_SETTING[0], FULL_PRECISION) if RECIPES[recipe].one_setting else (*BIT_WIDTHS, FULL_PRECISION)
    settings = [random_bits(layers, seed, widths) for seed in range(2)]
    for setting in settings:
        if RECIPES[recipe].one_setting:  # such a recipe knows its patch embedding's input at 8 bits only
            setting["patch_embed.proj"] = (ONE_SETTING[0], 8)
    for setting in [*settings, uniform(layers, ONE_SETTING[0]), uniform(layers, FULL_PRECISION)]:
        quantized = quantize(calibration, setting)
        path = tmp_path / "model.safetensors"
        found = pack(quantized, path)
        found.check(cost(layers, quantized.bits, storage(calibration.graph, recipe)))
        assert path.stat().st_size == found.size_bytes
        loaded = load_packed(path, tiny_model(architecture, torch.float32))
        assert loaded.bits == quantized.bits
        assert torch.equal(loaded(IMAGES), quantized(IMAGES))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_predicted_size_holds_at_many_allocations(calibrated, architecture):
    calibration = calibrated(architecture)
    graph = calibration.graph
    predicted = storage(graph, "mix-qvit")
    for seed in range(15):
        quantized = quantize(calibration, random_bits(graph.layers, seed))
        packed(quantized).check(cost(graph.layers, quantized.bits, predicted))


def test_a_size_that_was_predicted_wrongly_is_noticed(calibrated):
    quantized = quantize(calibrated("vit"), 4)
    right = cost(quantized.graph.layers, quantized.bits, storage(quantized.graph, "mix-qvit"))
    for part in ("weight_bytes", "scale_bytes", "full_precision_bytes", "container_bytes"):
        with pytest.raises(PackingError, match=part):
            packed(quantized).check(replace(right, **{part: getattr(right, part) + 1}))


def test_a_budget_by_size_gives_a_file_within_it(calibrated):
    calibration = calibrated("swin")
    layers, storing = calibration.graph.layers, storage(calibration.graph, "mix-qvit")
    harms = {layer.name: {bits: 4.0**-bits for bits in BIT_WIDTHS} for layer in layers}
    least, most = (cost(layers, uniform(layers, bits), storing).size_bytes for bits in (2, 8))
    for budget in range(least, most, (most - least) // 5):
        allocation = allocate(layers, harms, Budget(size_bytes=budget), storing)
        size = packed(quantize(calibration, allocation.bits)).size_bytes
        assert size == allocation.cost.size_bytes <= budget


def test_zero_points_beyond_a_byte_come_back(tmp_path):
    """A channel whose weights are all far from zero: its zero point is no code."""
    model = tiny_model("vit", torch.float32)
    with torch.no_grad():
        model.head.weight[1] = model.head.weight[1].abs() * 0.01 + 1
        model.blocks[1].mlp.fc2.weight[3] = model.blocks[1].mlp.fc2.weight[3].abs() * 0.01 - 1
    quantized = quantize(calibrate(mixqvit.trace(model, IMAGES), IMAGES, "min-max"), 7)
    zero_points = [
        operation.prepared.quantizer.zero_point
        for operation in quantized.operations.values()
        if isinstance(operation, QuantizedLayer)
    ]
    assert min(float(each.min()) for each in zero_points) < -255
    assert max(float(each.max()) for each in zero_points) > 255
    pack(quantized, tmp_path / "model.safetensors")
    loaded = load_packed(tmp_path / "model.safetensors", tiny_model("vit", torch.float32))
    assert torch.equal(loaded(IMAGES), quantized(IMAGES))


def test_the_loaded_graph_has_the_dequantized_weights_without_the_move_of_the_input(calibrated, tmp_path):
    moved = 0
    for architecture in ARCHITECTURES:
        pack(quantize(calibrated(architecture), 8), tmp_path / "model.safetensors")
        loaded = load_packed(tmp_path / "model.safetensors", tiny_model(architecture, torch.float32))
        graph = loaded.graph
        for layer in (layer for layer in graph.layers if not layer.is_matmul):
            operation = loaded.operations[layer.node]
            weight, bias = graph.weight(layer), graph.bias(layer)
            if isinstance(operation.input_quantizer, ReparameterizedQuantizer):
                weight, bias = operation.input_quantizer.fold(weight, bias)
                moved += 1
            assert torch.allclose(weight, operation.prepared.weight, rtol=1e-5, atol=1e-6), layer.name
            if layer.has_bias:
                assert torch.allclose(bias, operation.prepared.bias, rtol=1e-4, atol=1e-5), layer.name
    assert moved > 10


def test_loading_leaves_the_model_it_is_given_and_random_numbers_alone(calibrated, tmp_path):
    pack(quantize(calibrated("vit"), 3), tmp_path / "model.safetensors")
    model = tiny_model("vit", torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_packed(tmp_path / "model.safetensors", model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["digits_vit", "digits_swin"])
def test_an_embedded_model_needs_nothing_but_its_file(tmp_path, name):
    model = mixqvit.load_model(name)
    pixels = mixqvit.load_images("digits", "calibration", model).subset(4).pixels
    quantized = quantize(calibrate(mixqvit.trace(model.module, pixels), pixels, bit_widths=(4, 8)), 4)
    mixqvit.pack(quantized, tmp_path / "model.safetensors", model)
    random_state = torch.get_rng_state()
    loaded = mixqvit.load_packed(tmp_path / "model.safetensors")
    assert torch.equal(loaded(pixels), quantized(pixels))
    assert torch.equal(torch.get_rng_state(), random_state)
    source = packed_source(tmp_path / "model.safetensors")
    assert (source.model, source.fingerprint) == (name, quantized.graph.fingerprint)


def test_a_timm_model_needs_nothing_but_its_file(tmp_path):
    import timm

    name = "test_vit"
    module = timm.create_model(name).eval()
    pixels = torch.randn(2, *module.pretrained_cfg["input_size"])
    quantized = quantize(calibrate(mixqvit.trace(module, pixels), pixels, bit_widths=(5, 8)), 5)
    size, classes = tuple(pixels.shape[1:]), tuple(f"class {index}" for index in range(module.num_classes))
    model = mixqvit.Model(name, module, Preprocessing(size, (0.5,) * 3, (0.5,) * 3), classes)
    mixqvit.pack(quantized, tmp_path / "model.safetensors", model)
    assert torch.equal(mixqvit.load_packed(tmp_path / "model.safetensors")(pixels), quantized(pixels))


def test_a_file_that_does_not_name_its_architecture_needs_the_model(calibrated, tmp_path):
    pack(quantize(calibrated("vit"), 4), tmp_path / "model.safetensors")
    with pytest.raises(PackingError, match="model=MODULE"):
        load_packed(tmp_path / "model.safetensors")


def test_another_model_is_refused(calibrated, tmp_path):
    pack(quantize(calibrated("vit"), 4), tmp_path / "model.safetensors")
    wider = tiny_model("vit", torch.float32)
    wider.head = nn.Linear(16, 6)
    for model in (tiny_model("deit", torch.float32), wider):
        with pytest.raises(PackingError, match="does not fit"):
            load_packed(tmp_path / "model.safetensors", model)


def test_constants_that_differ_are_noticed(calibrated, tmp_path):
    """Attention masks and indices are not in the file, so the model must have the same."""
    pack(quantize(calibrated("swin"), 4), tmp_path / "model.safetensors")
    model = tiny_model("swin", torch.float32)
    index = next(module for module in model.modules() if hasattr(module, "relative_position_index"))
    index.relative_position_index = index.relative_position_index.flip(0)
    with pytest.raises(PackingError, match="does not fit"):
        load_packed(tmp_path / "model.safetensors", model)


def test_a_damaged_file_is_refused(calibrated, tmp_path):
    path = tmp_path / "model.safetensors"
    content = pack(quantize(calibrated("vit"), 4), path).content
    model = tiny_model("vit", torch.float32)
    for damaged in (content[:-1], content[:100], content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]):
        path.write_bytes(damaged)
        with pytest.raises(PackingError, match=r"model\.safetensors (is truncated|was altered)"):
            load_packed(path, model)


def test_what_cannot_be_packed_is_refused(calibrated):
    double = tiny_model("vit")
    images = tiny_images(2)
    with pytest.raises(PackingError, match="float32"):
        packed(quantize(calibrate(mixqvit.trace(double, images), images), 4))

    normalised = tiny_model("vit", torch.float32)
    normalised.patch_embed.proj = nn.Sequential(normalised.patch_embed.proj, nn.BatchNorm2d(16)).eval()
    with pytest.raises(PackingError, match=r"patch_embed\.proj\.1 keeps statistics"):
        packed(quantize(calibrate(mixqvit.trace(normalised, IMAGES), IMAGES), 4))


def test_storage_counts_what_is_never_quantized(calibrated):
    graph = calibrated("vit").graph
    weights = sum(layer.parameters for layer in graph.layers)
    found = storage(graph, "mix-qvit")
    assert found == Storage(RECIPES["mix-qvit"].stored, 4 * (graph.parameters - weights), found.container_bytes)
