import math

import numpy as np
import pytest
import torch

from mixqvit.errors import BitWidthError, MixQViTError
from mixqvit.network.tracing import trace
from mixqvit.quantization.channels import CLIPS, VARIANTS
from mixqvit.quantization.fits import channel_range, output_error
from mixqvit.quantization.outliers import (
    amplify_outliers,
    channel_distribution,
    channel_ranges,
    channel_statistics,
    clip_curve,
    clip_harm_steps,
    layer_input,
    layer_input_steps,
    post_layer_norm_layers,
    token_map,
)
from mixqvit.quantization.ranges import fit_per_channel, fit_weight, uniform_quantizer
from mixqvit.quantization.reparameterization import clip_ranges, reparameterized_quantizer
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model


def graph_and_input(architecture="vit", images=5, layer="blocks.1.attn.qkv"):
    pixels = tiny_images(images)
    graph = trace(tiny_model(architecture), pixels)
    return graph, layer_input(graph, graph.by_name[layer], pixels), pixels


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_amplified_outliers_leave_the_full_precision_function_unchanged(architecture):
    model = tiny_model(architecture, torch.float32)
    images = tiny_images(3, torch.float32)
    amplified = amplify_outliers(model, images, 16.0, 2)
    with torch.no_grad():
        assert torch.equal(amplified(images), model(images))  # a power of two is exact
        torch.testing.assert_close(
            amplify_outliers(model, images, 10.0, 2)(images), model(images), rtol=1e-4, atol=1e-4
        )
    changed = [
        name for name, tensor in amplified.state_dict().items() if not torch.equal(tensor, model.state_dict()[name])
    ]
    norms = {layer.norm for layer in post_layer_norm_layers(trace(model, images).layers)}
    assert len([name for name in changed if "norm" in name and name.endswith("weight")]) == len(norms)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_amplified_outliers_are_outliers_and_hurt_one_scale_per_tensor(architecture):
    images = tiny_images(8)
    found = []
    for factor in (1.0, 16.0):
        graph = trace(amplify_outliers(tiny_model(architecture), images, factor, 2), images)
        first = post_layer_norm_layers(graph.layers)[0]
        found.append(channel_ranges(graph, layer_input(graph, first, images), 6))
    mild, strong = found
    assert strong.max_to_median > 8 * mild.max_to_median
    error = {variant: strong.variants[variant].output_error for variant in VARIANTS}
    assert error["per tensor"] > 10 * mild.variants["per tensor"].output_error
    assert error["reparameterized"] < error["per tensor"] / 10


def test_statistics_are_those_of_a_literal_loop():
    graph, found, pixels = graph_and_input()
    statistics = channel_statistics(found)
    _, kept = graph.run(pixels, keep={found.layer.norm})
    rows = kept[found.layer.norm].flatten(0, 1).tolist()
    assert statistics.tokens == len(rows) == 5 * 17
    for channel in range(16):
        values = [row[channel] for row in rows]
        mean = sum(values) / len(values)
        second = sum((value - mean) ** 2 for value in values) / len(values)
        fourth = sum((value - mean) ** 4 for value in values) / len(values)
        assert statistics.lower[channel] == min(values)
        assert statistics.upper[channel] == max(values)
        assert statistics.mean[channel] == pytest.approx(mean, abs=1e-12)
        assert statistics.deviation[channel] == pytest.approx(math.sqrt(second), rel=1e-12)
        assert statistics.kurtosis[channel] == pytest.approx(fourth / second**2, rel=1e-10)
    widths = sorted(statistics.width)
    assert statistics.max_to_median == pytest.approx(widths[-1] / ((widths[7] + widths[8]) / 2))
    assert statistics.width[statistics.median_channel] == widths[7]


def test_constant_channels_have_no_kurtosis_and_no_nan():
    model = tiny_model("vit", torch.float32)
    with torch.no_grad():
        model.blocks[0].norm1.weight[3:5] = 0
        model.blocks[0].norm1.bias[3] = 0.1
        model.blocks[0].norm1.bias[4] = 0
    images = tiny_images(3, torch.float32)
    graph = trace(model, images)
    ranges = channel_ranges(graph, layer_input(graph, graph.by_name["blocks.0.attn.qkv"], images), 4, 0.05)
    assert ranges.statistics.kurtosis[3:5].tolist() == [0, 0]
    assert ranges.statistics.deviation[3:5].tolist() == [0, 0]
    assert (ranges.statistics.kurtosis[:3] >= 1).all()
    for variant in ranges.variants.values():
        assert all(np.isfinite(value).all() for value in vars(variant).values())
    assert ranges.variants["per channel"].value_error[3:5] == pytest.approx([0, 0], abs=1e-12)


def test_every_layer_is_seen_in_one_pass():
    for architecture in ARCHITECTURES:
        images = tiny_images(2)
        graph = trace(tiny_model(architecture), images)
        pieces = list(layer_input_steps(graph, images))
        assert [piece.layer for piece in pieces] == list(post_layer_norm_layers(graph.layers))
        for piece in pieces:
            alone = layer_input(graph, piece.layer, images)
            assert torch.equal(piece.values, alone.values)
            assert {"vit": 1, "deit": 2, "swin": 0}[architecture] == piece.extra_tokens


def test_errors_by_channel_are_those_of_a_literal_quantizer():
    graph, found, _ = graph_and_input()
    bits = 3
    ranges = channel_ranges(graph, found, bits, 0.05)
    rows, weight = found.rows.numpy(), graph.weight(found.layer).numpy()
    quantized_weight = fit_weight(graph.weight(found.layer), bits)(graph.weight(found.layer)).numpy()
    size = (np.square(rows @ weight.T)).sum(axis=1).mean()
    for name in ("per tensor", "per channel"):
        variant = ranges.variants[name]
        step = (variant.grid_upper - variant.grid_lower) / (2**bits - 1)
        codes = np.clip(np.round((rows - variant.grid_lower) / step), 0, 2**bits - 1)
        quantized = variant.grid_lower + codes * step
        value_error = np.square(quantized - rows).mean(axis=0)
        weight_error = np.square(quantized_weight - weight).sum(axis=0)
        np.testing.assert_allclose(variant.value_error, value_error, rtol=1e-9)
        np.testing.assert_allclose(variant.weight_error, weight_error, rtol=1e-9)
        share = value_error * np.square(weight).sum(axis=0) + weight_error * np.square(quantized).mean(axis=0)
        np.testing.assert_allclose(variant.contribution, share / size, rtol=1e-9)
        error = np.square(quantized @ quantized_weight.T - rows @ weight.T).sum(axis=1).mean() / size
        assert variant.output_error == pytest.approx(error, rel=1e-9)
        np.testing.assert_allclose(variant.weight_rows, np.ptp(weight, axis=1))
    assert np.ptp(ranges.variants["per tensor"].grid_upper) == 0
    assert np.ptp(ranges.variants["per channel"].grid_upper) > 0


def test_reparameterization_leaves_the_values_their_grid_and_changes_the_weights():
    graph, found, _ = graph_and_input()
    ranges = channel_ranges(graph, found, 4, 0.05)
    own, moved, clipped = (ranges.variants[name] for name in VARIANTS[1:])
    np.testing.assert_allclose(moved.grid_lower, own.grid_lower, atol=1e-12)
    np.testing.assert_allclose(moved.value_error, own.value_error, rtol=1e-6)
    np.testing.assert_allclose(moved.weight_columns, own.weight_columns * moved.ratio)
    # Moved, every channel has the same grid.
    np.testing.assert_allclose(np.ptp(moved.grid_lower / moved.ratio - moved.shift), 0, atol=1e-12)
    assert clipped.grid_upper.max() < moved.grid_upper.max()
    total = float((found.rows @ graph.weight(found.layer).T).square().sum())
    quantizer = reparameterized_quantizer(fit_per_channel(found.rows, 4))
    assert moved.output_error == pytest.approx(
        output_error(graph.weight(found.layer), found.rows, quantizer, 4) / total
    )


def test_the_clip_curve_belongs_to_the_clipped_variant():
    graph, found, _ = graph_and_input()
    curve = clip_curve(graph, found, 4)
    assert tuple(curve.output_errors) == CLIPS
    for clip in (0.0, 0.02, 0.1):
        clipped = channel_ranges(graph, found, 4, clip).variants["clipped"]
        assert curve.output_errors[clip] == pytest.approx(clipped.output_error, rel=1e-9)
    assert curve.output_errors[curve.least] == min(curve.output_errors.values())


def test_harm_of_clipping_is_that_of_the_layer_quantized_alone():
    graph, found, pixels = graph_and_input()
    layer, harms = found.layer, {}
    for clip, harm in clip_harm_steps(graph, found, pixels, 3, finished=CLIPS[1:-1]):
        harms[clip] = harm
    assert tuple(harms) == (0.0, 0.1)
    lower, upper = clip_ranges(*channel_range(fit_per_channel(found.rows, 3)), 0.1)
    quantizer = reparameterized_quantizer(uniform_quantizer(lower, upper, 3))
    weight, bias = quantizer.fold(graph.weight(layer), graph.bias(layer))
    weight = fit_weight(weight, 3)(weight)
    logits, _ = graph.run(pixels, {layer.node: lambda values: quantizer(values) @ weight.T + bias})
    assert harms[0.1] == pytest.approx(float(graph.task.divergence(graph(pixels), logits).mean()), rel=1e-6)
    assert list(clip_harm_steps(graph, found, pixels, 3, finished=CLIPS)) == []


def test_a_distribution_counts_every_token_once():
    _, found, _ = graph_and_input("deit")
    counted = channel_distribution(found, 7)
    values = found.values[..., 7].numpy()
    assert counted.extra_tokens == 2
    assert (counted.patches.sum(), counted.extra.sum()) == (5 * 16, 5 * 2)
    inside = (values[:, :2] >= counted.edges[20]) & (values[:, :2] < counted.edges[30])
    assert counted.extra[20:30].sum() == inside.sum()
    assert (counted.edges[0], counted.edges[-1]) == (values.min(), values.max())


def test_a_map_keeps_the_tokens_of_an_image_together():
    graph, found, pixels = graph_and_input("swin", 3, "layers.0.blocks.1.attn.qkv")
    single = token_map(layer_input(graph, found.layer, pixels[1:2]))
    np.testing.assert_allclose(single.values, found.values[1].numpy())
    assert (single.windows, single.extra_tokens, single.patches_per_row) == (4, 0, 0)
    graph, found, pixels = graph_and_input("vit", 2)
    single = token_map(found)
    assert single.values.shape == (17, 16)
    assert (single.windows, single.extra_tokens, single.patches_per_row) == (1, 1, 4)


def test_errors_come_from_a_sample_and_ranges_from_all_tokens():
    _, found, _ = graph_and_input("vit", 130)
    assert found.rows.shape == (130 * 17, 16)
    assert found.sample.shape == (2048, 16)
    rows = {tuple(row) for row in found.rows.tolist()}
    assert all(tuple(row) in rows for row in found.sample[:5].tolist())


def test_bad_requests_are_refused_in_words():
    images = tiny_images(2)
    model = tiny_model("vit")
    for factor in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(MixQViTError, match="outlier factor"):
            amplify_outliers(model, images, factor, 2)
    with pytest.raises(MixQViTError, match="16 channels; 17"):
        amplify_outliers(model, images, 2.0, 17)
    graph, found, _ = graph_and_input()
    with pytest.raises(MixQViTError, match="does not come from a LayerNorm"):
        layer_input(graph, graph.by_name["head"], images)
    with pytest.raises(MixQViTError, match="from 0 up to"):
        channel_ranges(graph, found, 4, 0.5)
    with pytest.raises(BitWidthError, match="9 bits"):
        channel_ranges(graph, found, 9)
    with pytest.raises(MixQViTError, match="numbered 0 to 15"):
        channel_distribution(found, 16)
