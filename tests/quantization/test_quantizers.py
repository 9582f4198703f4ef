"""Quantizers and range search against slow, literal float64 re-implementations of the papers' formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixqvit.quantization.quantizers import LogSqrt2Quantizer, UniformQuantizer
from mixqvit.quantization.ranges import (
    PERCENTILES,
    fit_log_sqrt2,
    fit_per_channel,
    fit_per_tensor,
    fit_weight,
    tail_quantiles,
    uniform_quantizer,
)


def literal_uniform(value, scale, zero_point, bits):
    code = min(max(round_half_even(value / scale) + zero_point, 0), 2**bits - 1)
    return (code - zero_point) * scale


def literal_log_sqrt2(value, scale, bits):
    if value == 0:
        return 0.0
    exponent = max(round_half_even(-2 * math.log2(value / scale)), 0)
    return 0.0 if exponent >= 2**bits else scale * 2 ** (-exponent / 2)


def round_half_even(value):
    return float(np.round(value))


def literal_range_search(values, bits):
    """RepQ-ViT's published search: one quantile at a time, the least squared error wins."""
    best = None
    for percentile in PERCENTILES:
        upper = float(np.quantile(values, percentile))
        lower = float(np.quantile(values, 1 - percentile))
        scale = (upper - lower) / (2**bits - 1)
        zero_point = round_half_even(-lower / scale)
        error = sum((literal_uniform(value, scale, zero_point, bits) - value) ** 2 for value in values)
        if best is None or error < best[0]:
            best = (error, scale, zero_point)
    return best[1:]


@pytest.fixture
def values():
    return torch.randn(300, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) ** 3 + 0.5


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_uniform_quantization_is_the_formula(values, bits):
    quantizer = UniformQuantizer(torch.tensor(0.37, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64), bits)
    expected = [literal_uniform(value, 0.37, 2.0, bits) for value in values.flatten().tolist()]
    np.testing.assert_allclose(quantizer(values).flatten().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_log_sqrt2_quantization_is_the_formula(bits):
    values = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) ** 6
    values[:3] = torch.tensor([0.0, 1.0, 1e-300])
    quantizer = LogSqrt2Quantizer(torch.tensor(0.8, dtype=torch.float64), bits)
    expected = [literal_log_sqrt2(value, 0.8, bits) for value in values.tolist()]
    np.testing.assert_allclose(quantizer(values).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 999, 1001, 5000])
def test_tail_quantiles_are_those_of_numpy(count):
    values = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    lower, upper = tail_quantiles(values, (*PERCENTILES, 1.0))
    for index, percentile in enumerate((*PERCENTILES, 1.0)):
        np.testing.assert_allclose(upper[index], np.quantile(values, percentile, axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(lower[index], np.quantile(values, 1 - percentile, axis=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_range_search_is_the_published_one(values, bits):
    per_channel = fit_per_channel(values, bits)
    for channel in range(values.shape[1]):
        scale, zero_point = literal_range_search(values[:, channel].tolist(), bits)
        assert float(per_channel.scale[channel]) == pytest.approx(scale, rel=1e-9)
        assert float(per_channel.zero_point[channel]) == zero_point
    per_tensor = fit_per_tensor(values, bits)
    scale, zero_point = literal_range_search(values.flatten().tolist(), bits)
    assert float(per_tensor.scale) == pytest.approx(scale, rel=1e-9)
    assert float(per_tensor.zero_point) == zero_point


def test_weights_are_fitted_per_output_channel_whatever_their_shape():
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    quantizer = fit_weight(weight, 4)
    assert quantizer(weight).shape == weight.shape
    for channel in range(4):
        scale, zero_point = literal_range_search(weight[channel].flatten().tolist(), 4)
        assert float(quantizer.scale[channel]) == pytest.approx(scale, rel=1e-9)
        assert float(quantizer.zero_point[channel]) == zero_point


def test_the_logarithm_keeps_the_scale_of_least_error():
    values = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(6)) ** 8
    fitted = fit_log_sqrt2(values, 3)

    def error(scale):
        return sum((literal_log_sqrt2(value, scale, 3) - value) ** 2 for value in values.tolist())

    candidates = [float(np.quantile(values, percentile)) for percentile in PERCENTILES]
    assert float(fitted.scale) == pytest.approx(min(candidates, key=error), rel=1e-9)


def test_more_bits_never_fit_worse(values):
    errors = [float((fit_per_channel(values, bits)(values) - values).square().sum()) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(10, 2),
        torch.full((10, 2), 3.5),
        torch.full((10, 2), -1e-30),
        torch.full((1, 2), 2.0),
        torch.tensor([[0.0, 5.0]] * 9 + [[0.0, -5.0]]),
    ],
    ids=["zeros", "one value", "tiny value", "one row", "a constant channel"],
)
@pytest.mark.parametrize("bits", [2, 8])
def test_degenerate_values_never_give_nan(values, bits):
    quantized = fit_per_channel(values, bits)(values)
    assert torch.isfinite(quantized).all()
    constant = values.amax(dim=0) == values.amin(dim=0)
    torch.testing.assert_close(quantized[:, constant], values[:, constant], rtol=1e-6, atol=1e-20)
    assert torch.isfinite(fit_log_sqrt2(values.abs(), bits)(values.abs())).all()


@settings(max_examples=60, deadline=None)
@given(
    lower=st.floats(-1e3, 1e3),
    width=st.floats(1e-6, 1e3),
    bits=st.integers(2, 8),
    values=st.lists(st.floats(-2e3, 2e3), min_size=1, max_size=20),
)
def test_quantized_values_lie_on_a_grid_of_the_right_size_and_are_near_inside_the_range(lower, width, bits, values):
    ends = torch.tensor([lower, lower + width], dtype=torch.float64)
    quantizer = uniform_quantizer(ends[:1], ends[1:], bits)
    quantized = quantizer(torch.tensor(values, dtype=torch.float64))
    codes = quantized / quantizer.scale + quantizer.zero_point
    assert float((codes - codes.round()).abs().max()) < 1e-6
    assert float(codes.min()) > -0.5
    assert float(codes.max()) < 2**bits - 0.5
    torch.testing.assert_close(quantizer(quantized.clone()), quantized)
