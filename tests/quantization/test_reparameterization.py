import pytest
import torch
from torch.nn.functional import layer_norm, linear

from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import calibrate
from mixqvit.quantization.ranges import fit_per_channel, uniform_quantizer
from mixqvit.quantization.reparameterization import clip_ranges, reparameterized_quantizer
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        "inputs": random(50, 12) * 3 + 1,
        "gamma": random(12) * torch.logspace(-2, 1, 12, dtype=torch.float64),
        "beta": random(12),
        "weight": random(20, 12),
        "bias": random(20),
    }


@pytest.mark.parametrize("round_zero_point", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_full_precision_function_is_unchanged(parts, round_zero_point, with_bias, bits):
    bias = parts["bias"] if with_bias else None
    normed = layer_norm(parts["inputs"], (12,), parts["gamma"], parts["beta"])
    quantizer = reparameterized_quantizer(fit_per_channel(normed, bits), round_zero_point)
    weight, folded_bias = quantizer.fold(parts["weight"], bias)
    before = linear(normed, parts["weight"], bias)
    # As hardware would run it: the move is part of LayerNorm's own γ' = γ / r and β' = β / r - t ...
    gamma, beta = parts["gamma"] / quantizer.ratio, parts["beta"] / quantizer.ratio - quantizer.shift
    in_the_norm = linear(layer_norm(parts["inputs"], (12,), gamma, beta), weight, folded_bias)
    # ... and as it runs here: the layer moves its own input.
    at_the_input = linear(normed / quantizer.ratio - quantizer.shift, weight, folded_bias)
    for after in (in_the_norm, at_the_input):
        assert float((after - before).abs().max() / before.abs().max()) < 1e-10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_whole_network_is_unchanged_when_nothing_is_rounded(architecture):
    """Every post-LayerNorm layer moved and folded, with the quantizers' grids left out."""
    graph = trace(tiny_model(architecture), tiny_images(1))
    images = tiny_images(4)
    calibration = calibrate(graph, images)
    replace = {}
    for layer in graph.layers:
        if layer.is_reparameterized:
            (quantizer,) = calibration.quantizers(layer, (4, 4))
            weight, bias = quantizer.fold(graph.weight(layer), graph.bias(layer))

            def moved(values, quantizer=quantizer, weight=weight, bias=bias):
                return linear(values / quantizer.ratio - quantizer.shift, weight, bias)

            replace[layer.node] = moved
    expected = graph(images)
    found, _ = graph.run(images, replace)
    assert len(replace) >= 4
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-10


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_one_scale_on_the_moved_input_is_one_scale_per_channel_on_the_input(parts, bits):
    """Section 3.2 of RepQ-ViT: (x / r - t) quantized by (s*, z*) gives the codes of x quantized by (s_c, z_c)."""
    normed = layer_norm(parts["inputs"], (12,), parts["gamma"], parts["beta"])
    channels = fit_per_channel(normed, bits)
    quantizer = reparameterized_quantizer(channels)
    restored = (quantizer(normed) + quantizer.shift) * quantizer.ratio
    torch.testing.assert_close(restored, channels(normed), rtol=1e-9, atol=1e-9)
    assert torch.equal(quantizer.per_channel.scale, channels.scale)
    assert torch.equal(quantizer.per_channel.zero_point, channels.zero_point)


def test_the_formulas_of_the_paper(parts):
    normed = layer_norm(parts["inputs"], (12,), parts["gamma"], parts["beta"])
    channels = fit_per_channel(normed, 4)
    quantizer = reparameterized_quantizer(channels, round_zero_point=False)
    scale, zero_point = channels.scale.mean(), channels.zero_point.mean()
    ratio = channels.scale / scale
    shift = -channels.zero_point * channels.scale / ratio + zero_point * scale
    torch.testing.assert_close(quantizer.ratio, ratio)
    torch.testing.assert_close(quantizer.shift, shift)
    weight, bias = quantizer.fold(parts["weight"], parts["bias"])
    torch.testing.assert_close(weight, parts["weight"] @ torch.diag(ratio))
    torch.testing.assert_close(bias, parts["bias"] + weight @ shift)


def test_rounding_the_zero_point_makes_codes_whole(parts):
    channels = uniform_quantizer(-torch.rand(12, dtype=torch.float64), 1 + torch.rand(12, dtype=torch.float64), 4)
    assert float(reparameterized_quantizer(channels).tensor.zero_point) % 1 == 0


def test_clipping_limits_the_outlier_channels_only():
    lower = -torch.ones(100)
    upper = torch.ones(100)
    lower[7], upper[3] = -50.0, 80.0
    clipped_lower, clipped_upper = clip_ranges(lower, upper, 0.02)
    assert float(clipped_upper.max()) < 2
    assert float(clipped_lower.min()) > -2
    untouched = [channel for channel in range(100) if channel not in (3, 7)]
    assert torch.equal(clipped_lower[untouched], lower[untouched])
    assert torch.equal(clipped_upper[untouched], upper[untouched])
    assert clip_ranges(lower, upper, 0.0) == (lower, upper)
