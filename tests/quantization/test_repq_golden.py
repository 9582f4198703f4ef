"""Recipe `repq-vit` against values from the published code and against the algorithm spelled out.

A quantized network is chaotic: where attention looks at few tokens, up to a tenth of the inputs of the next `proj` lie
exactly halfway between two codes, and the last bit of a scale decides for all of them. So the recipe has nearly all
golden values or loses them after the first block. They belong to float32 and to vectorized kernels: the literal
algorithm has 85, 82, 85 and 92 % of the golden parameters at 3, 4, 6 and 8 bits in float64, and 94 % at 8 bits with
`ATEN_CPU_CAPABILITY=default`.
"""

import json
from functools import partial

import pytest
import torch
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import calibrate
from mixqvit.quantization.model import quantize
from mixqvit.quantization.quantizers.log_sqrt2 import LogSqrt2Quantizer
from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.ranges import fit_weight
from tests.quantization.literal_repq import LiteralRepQ, LogSqrt2
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model


def literal_parameters(literal):
    """Delta and zero point of every quantizer as flat tensors, named like the golden values."""
    found = {}
    for layer, quantizers in literal.quantizers.items():
        for role, quantizer in quantizers.items():
            found[f"{layer}.{role}.delta"] = quantizer.delta.flatten()
            if not isinstance(quantizer, LogSqrt2):
                found[f"{layer}.{role}.zero_point"] = quantizer.zero_point.flatten()
    return found


def recipe_parameters(calibration, weight_bits):
    """The same of a calibration of this package."""
    graph, found = calibration.graph, {}
    for layer in graph.layers:
        quantizers = [next(iter(operand.values())) for operand in calibration.layers[layer.name].operands]
        roles = ["quantizer_A", "quantizer_B"] if layer.is_matmul else ["input_quantizer"]
        if not layer.is_matmul:
            weight = graph.weight(layer)
            if isinstance(quantizers[0], ReparameterizedQuantizer):
                weight, _ = quantizers[0].fold(weight, graph.bias(layer))
            roles.append("weight_quantizer")
            quantizers.append(fit_weight(weight, weight_bits))
        for role, quantizer in zip(roles, quantizers, strict=True):
            uniform = quantizer.tensor if isinstance(quantizer, ReparameterizedQuantizer) else quantizer
            assert isinstance(uniform, LogSqrt2Quantizer if role_is_log(layer, role) else UniformQuantizer)
            found[f"{layer.name}.{role}.delta"] = uniform.scale.flatten()
            if isinstance(uniform, UniformQuantizer):
                found[f"{layer.name}.{role}.zero_point"] = uniform.zero_point.flatten()
    return found


def role_is_log(layer, role):
    return layer.kind == "matmul2" and role == "quantizer_A"


@pytest.fixture(scope="module")
def published(shared):
    """The traced model of the golden values, and the golden tensors."""
    with safe_open(shared / "reference" / "repq_vit.safetensors", "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        config = json.loads(opened.metadata()["config"])
    model = VisionTransformer(**config, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    model.load_state_dict(
        {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    )
    graph = trace(model.eval(), tensors["test_images"])
    # The published code multiplies the attention scores by 1 / √(channels of a head), timm the queries before.
    head_scale = (config["embed_dim"] // config["num_heads"]) ** -0.5
    return graph, tensors, head_scale


def assert_golden(parameters, logits, bits, published):
    _, tensors, head_scale = published
    setting = f"w{bits}a{bits}."
    golden = {name.removeprefix(setting): value for name, value in tensors.items() if name.startswith(setting)}
    golden_logits = golden.pop("logits")
    assert golden.keys() == parameters.keys()
    close = []
    for name, expected in golden.items():
        factor = head_scale if name.endswith("matmul1.quantizer_A.delta") else 1.0
        close.append((parameters[name] / factor - expected.flatten()).abs() <= 0.01 * expected.flatten().abs())
    assert float(torch.cat(close).double().mean()) >= 0.95
    correlation = torch.corrcoef(torch.stack([logits.flatten(), golden_logits.flatten()]).double())[0, 1]
    assert float(correlation) > 0.98


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_the_recipe_gives_the_published_values(published, bits):
    graph, tensors, _ = published
    calibration = calibrate(graph, tensors["calibration_images"], "repq-vit", (bits, bits))
    logits = quantize(calibration, bits)(tensors["test_images"])
    assert_golden(recipe_parameters(calibration, bits), logits, bits, published)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_the_literal_algorithm_gives_the_published_values(published, bits):
    graph, tensors, _ = published
    literal = LiteralRepQ(graph, bits, bits, tensors["calibration_images"])
    assert_golden(literal_parameters(literal), literal(tensors["test_images"]), bits, published)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(4, 4), (3, 6)])
def test_the_recipe_is_the_literal_algorithm(architecture, weight_bits, activation_bits):
    graph = trace(tiny_model(architecture), tiny_images(1))
    pixels = tiny_images(4)
    literal = LiteralRepQ(graph, weight_bits, activation_bits, pixels)
    calibration = calibrate(graph, pixels, "repq-vit", (weight_bits, activation_bits))

    found, expected = recipe_parameters(calibration, weight_bits), literal_parameters(literal)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: name + text)

    bits = {
        layer.name: (activation_bits if layer.is_matmul else weight_bits, activation_bits) for layer in graph.layers
    }
    patch_embed = next(layer.name for layer in graph.layers if layer.kind == "patch_embed")
    bits[patch_embed] = (weight_bits, 8)
    images = tiny_images(12)[4:]
    torch.testing.assert_close(quantize(calibration, bits)(images), literal(images), rtol=1e-10, atol=1e-10)
