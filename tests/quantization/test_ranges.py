"""Fitting against slow, literal float64 searches, and what a fit must do with any values."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixqvit.quantization.quantizers.adaptive_log import fit_adaptive_log
from mixqvit.quantization.quantizers.log_sqrt2 import fit_log_sqrt2
from mixqvit.quantization.quantizers.power_of_two_factor import fit_power_of_two_factor
from mixqvit.quantization.quantizers.twin_uniform import fit_twin_gelu, fit_twin_softmax
from mixqvit.quantization.ranges import (
    PERCENTILES,
    fit_min_max_weight,
    fit_per_channel,
    fit_per_tensor,
    fit_weight,
    tail_quantiles,
    uniform_quantizer,
)
from mixqvit.quantization.sorted_values import SortedValues
from tests.quantization import literal


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def values():
    return torch.randn(300, 7, dtype=torch.float64, generator=generator(3)) ** 3 + 0.5


@pytest.fixture
def attention():
    return torch.softmax(3 * torch.randn(6, 40, dtype=torch.float64, generator=generator(4)), dim=-1)


@pytest.fixture
def gelu():
    inputs = 2 * torch.randn(400, dtype=torch.float64, generator=generator(5)) - 0.5
    inputs[7] = 12.0  # the rare large activation
    return torch.nn.functional.gelu(inputs)


def fit_min_max(values, bits):
    return uniform_quantizer(*torch.aminmax(values), bits)


def fit_min_max_per_channel(values, bits):
    return uniform_quantizer(*torch.aminmax(values, dim=0), bits)


def fit_least_squares_log(values, bits, shift=0.0):
    largest = (values.max() + shift).clamp(min=torch.finfo(values.dtype).tiny)
    return fit_adaptive_log(values, lambda difference: difference.square().sum(), largest, shift, bits)


def squared_error(quantizer, values):
    return float((quantizer(values) - values).square().sum())


@pytest.mark.parametrize("count", [1, 2, 3, 10, 999, 1001, 5000])
def test_tail_quantiles_are_those_of_numpy(count):
    values = torch.randn(count, 3, dtype=torch.float64, generator=generator(count))
    lower, upper = tail_quantiles(values, (*PERCENTILES, 1.0))
    for index, percentile in enumerate((*PERCENTILES, 1.0)):
        np.testing.assert_allclose(upper[index], np.quantile(values, percentile, axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(lower[index], np.quantile(values, 1 - percentile, axis=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 27, 1000, 4096, 100_003])
def test_tail_quantiles_are_those_of_torch_to_the_last_bit(count):
    """One differing bit of a scale is enough to leave the published values (test_repq_golden)."""
    values = torch.randn(count, 3, generator=generator(count))
    lower, upper = tail_quantiles(values, (*PERCENTILES, 1.0))
    for index, percentile in enumerate((*PERCENTILES, 1.0)):
        assert torch.equal(upper[index], torch.quantile(values, percentile, dim=0))
        assert torch.equal(lower[index], torch.quantile(values, 1.0 - percentile, dim=0))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_range_search_is_the_published_one(values, bits):
    per_channel = fit_per_channel(values, bits)
    for channel in range(values.shape[1]):
        scale, zero_point = literal.range_search(values[:, channel].tolist(), bits)
        assert float(per_channel.scale[channel]) == pytest.approx(scale, rel=1e-9)
        assert float(per_channel.zero_point[channel]) == zero_point
    per_tensor = fit_per_tensor(values, bits)
    scale, zero_point = literal.range_search(values.flatten().tolist(), bits)
    assert float(per_tensor.scale) == pytest.approx(scale, rel=1e-9)
    assert float(per_tensor.zero_point) == zero_point


def test_weights_are_fitted_per_output_channel_whatever_their_shape():
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=generator(5))
    for fit, search in ((fit_weight, literal.range_search), (fit_min_max_weight, literal.min_max)):
        quantizer = fit(weight, 4)
        assert quantizer(weight).shape == weight.shape
        for channel in range(4):
            scale, zero_point = search(weight[channel].flatten().tolist(), 4)
            assert float(quantizer.scale[channel]) == pytest.approx(scale, rel=1e-9)
            assert float(quantizer.zero_point[channel]) == zero_point


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_min_max_ends_the_grid_at_the_extremes(values, bits):
    scale, zero_point = literal.min_max(values.flatten().tolist(), bits)
    whole = fit_min_max(values, bits)
    assert float(whole.scale) == pytest.approx(scale, rel=1e-12)
    assert float(whole.zero_point) == zero_point
    channels = fit_min_max_per_channel(values, bits)
    for channel in range(values.shape[1]):
        scale, zero_point = literal.min_max(values[:, channel].tolist(), bits)
        assert float(channels.scale[channel]) == pytest.approx(scale, rel=1e-12)
        assert float(channels.zero_point[channel]) == zero_point


def test_a_logarithm_of_fixed_base_keeps_the_scale_of_least_error():
    values = torch.rand(4000, dtype=torch.float64, generator=generator(6)) ** 8

    def error(scale):
        return literal.squared_error(lambda value: literal.log_sqrt2(value, scale, 3), values.tolist())

    candidates = [float(np.quantile(values, percentile)) for percentile in PERCENTILES]
    assert float(fit_log_sqrt2(values, 3).scale) == pytest.approx(min(candidates, key=error), rel=1e-9)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_power_of_two_factors_are_those_of_the_paper(bits):
    values = torch.randn(40, 6, dtype=torch.float64, generator=generator(7))
    values = values * torch.tensor([0.05, 0.2, 0.7, 1.0, 3.0, 9.0]) - 0.3
    fitted = fit_power_of_two_factor(values, bits)
    scale, zero_point, exponents = literal.fit_power_of_two_factor(values.T.tolist(), bits)
    assert float(fitted.scale) == pytest.approx(scale, rel=1e-12)
    assert float(fitted.zero_point) == zero_point
    assert fitted.exponents.tolist() == exponents
    assert len(set(exponents)) > 1


def test_power_of_two_factors_reach_zero_even_if_the_values_do_not():
    values = 5 + torch.rand(30, 3, dtype=torch.float64, generator=generator(8))
    fitted = fit_power_of_two_factor(values, 4)
    assert float(fitted.zero_point) == 0
    assert float((fitted(values) - values).abs().max()) <= 6 / 15 / 2 + 1e-9


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_twin_ranges_after_softmax_have_the_least_error_of_all_exponents(attention, bits):
    fitted = fit_twin_softmax(attention, bits)
    scale, exponent = literal.fit_twin_softmax(attention.flatten().tolist(), bits)
    assert float(fitted.scale) == pytest.approx(scale, rel=1e-12)
    assert float(fitted.exponent) == exponent
    # A probability of 1 is a code.
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(fitted(one), one)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_twin_ranges_after_gelu_have_the_least_error_of_all_exponents(gelu, bits):
    fitted = fit_twin_gelu(gelu, bits)
    scale, exponent = literal.fit_twin_gelu(gelu.tolist(), bits)
    assert float(fitted.scale) == pytest.approx(scale, rel=1e-12)
    assert float(fitted.exponent) == exponent
    assert float(fitted(gelu.min())) == pytest.approx(float(gelu.min()))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), levels=st.integers(1, 9))
def test_the_error_of_sorted_values_is_the_sum_over_the_values(seed, levels):
    values = torch.randn(50, dtype=torch.float64, generator=generator(seed))
    grids = torch.randn(4, levels, dtype=torch.float64, generator=generator(seed + 1)).sort(dim=1).values
    thresholds = (grids[:, 1:] + grids[:, :-1]) / 2
    found = SortedValues.of(values.reshape(5, 10)).squared_errors(grids, thresholds)
    for grid, error in zip(grids.tolist(), found.tolist(), strict=True):
        expected = sum(min((level - value) ** 2 for level in grid) for value in values.tolist())
        assert error == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize(("which", "shift"), [("attention", 0.0), ("gelu", 0.17)])
def test_the_adaptive_logarithm_has_the_least_error_of_all_candidates(request, which, shift, bits):
    values = request.getfixturevalue(which).flatten()
    largest = float(values.max()) + shift

    def error(candidate):
        scale, octaves, zero_code = candidate
        step = octaves / 2**bits
        formula = lambda value: literal.adaptive_log(value, scale * largest, step, shift, bits, zero_code)  # noqa: E731
        return literal.squared_error(formula, values.tolist())

    scales, octaves = (1.0, 0.8, 0.6, 0.45, 0.3), (3, 4, 5, 6, 7, 8, 10, 12, 15)
    scale, octave, zero_code = min(itertools.product(scales, octaves, (False, True)), key=error)
    fitted = fit_least_squares_log(values, bits, shift)
    assert float(fitted.scale) == pytest.approx(scale * largest, rel=1e-9)
    assert float(fitted.step) == octave / 2**bits
    assert (fitted.shift, fitted.bits, fitted.zero_code) == (shift, bits, zero_code)


def test_values_sorted_once_serve_all_bits(attention, gelu):
    attention_once, gelu_once = SortedValues.of(attention), SortedValues.of(gelu.float())
    for bits in (2, 5):
        assert torch.equal(
            fit_twin_softmax(attention_once, bits)(attention), fit_twin_softmax(attention, bits)(attention)
        )
        assert torch.equal(
            fit_twin_gelu(gelu_once, bits)(gelu.float()), fit_twin_gelu(gelu.float(), bits)(gelu.float())
        )


FITS = {
    "per channel": fit_per_channel,
    "per tensor": fit_per_tensor,
    "min-max": fit_min_max,
    "min-max per channel": fit_min_max_per_channel,
    "power-of-two factor": fit_power_of_two_factor,
    "log√2": fit_log_sqrt2,
    "twin softmax": fit_twin_softmax,
    "twin gelu": fit_twin_gelu,
    "adaptive log": fit_least_squares_log,
    "shifted log": lambda values, bits: fit_least_squares_log(values, bits, 0.17),
}
LOGARITHMS = ("log√2", "adaptive log", "twin softmax")


@pytest.mark.parametrize("name", [name for name in FITS if "twin softmax" not in name])
def test_more_bits_never_fit_worse(values, name):
    values = values.abs() if name in LOGARITHMS else values
    errors = [squared_error(FITS[name](values, bits), values) for bits in range(2, 9)]
    assert all(more <= less * (1 + 1e-9) for less, more in itertools.pairwise(errors))
    # A fixed base or shift sets a floor.
    assert name in ("log√2", "shifted log") or errors[-1] < errors[0] / 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-90, -7, 90])
@pytest.mark.parametrize("name", [name for name in FITS if name not in ("twin softmax", "adaptive log", "shifted log")])
def test_scaling_the_values_scales_the_fit(name, exponent, dtype):
    """Also where squares of the values overflow or vanish in single precision."""
    values = torch.randn(3000, 3, dtype=dtype, generator=generator(9)) ** 3 * torch.tensor([0.1, 1.0, 4.0], dtype=dtype)
    values = values.abs() if name in LOGARITHMS else values
    factor = 2.0**exponent
    for bits in (2, 5):
        fitted, scaled = FITS[name](values, bits), FITS[name](values * factor, bits)
        torch.testing.assert_close(scaled(values * factor) / factor, fitted(values), rtol=1e-5, atol=1e-6)


DEGENERATE = {
    "zeros": torch.zeros(10, 2),
    "negative zeros": -torch.zeros(10, 2),
    "one value": torch.full((10, 2), 3.5),
    "one row": torch.full((1, 2), 0.25),
    "one number": torch.full((1, 1), 0.5),
    "tiny": torch.full((10, 2), 1e-38),
    "subnormal": torch.tensor([[1e-45, 0.0], [0.0, 1e-40]]),
    "huge": torch.tensor([[1e30, 2e30], [3e30, 1e29]]),
    "a constant channel": torch.tensor([[0.0, 5.0]] * 9 + [[0.0, 1.0]]),
    "a zero channel beside a huge one": torch.tensor([[0.0, 1e30], [0.0, 0.0]]),
    "tiny beside huge": torch.tensor([[1e-38, 1e30], [0.0, 2e30]]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name", FITS)
def test_degenerate_values_never_give_nan(name, case, dtype):
    signs = (1,) if name in LOGARITHMS else (1, -1, torch.tensor([1.0, -1.0], dtype=dtype))
    for sign in signs:
        values = DEGENERATE[case].to(dtype) * sign
        for bits in (2, 8):
            quantizer = FITS[name](values, bits)
            quantized = quantizer(values)
            assert quantized.shape == values.shape
            assert quantized.dtype == dtype
            assert torch.isfinite(quantized).all()
            if not values.any():
                assert float(quantized.abs().max()) < 1e-7


@pytest.mark.parametrize("value", [3.5, -3.5, -1e-30, 1e30, 0.0])
@pytest.mark.parametrize("name", ["per channel", "per tensor", "min-max", "min-max per channel"])
def test_a_constant_is_represented_exactly(name, value):
    values = torch.full((10, 2), value)
    torch.testing.assert_close(FITS[name](values, 3)(values), values, rtol=1e-6, atol=1e-20)


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
    values = torch.tensor(values, dtype=torch.float64)
    quantized = quantizer(values)
    codes = quantized / quantizer.scale + quantizer.zero_point
    assert float((codes - codes.round()).abs().max()) < 1e-6
    assert float(codes.min()) > -0.5
    assert float(codes.max()) < 2**bits - 0.5
    torch.testing.assert_close(quantizer(quantized.clone()), quantized)
    # Rounding the zero point moves the grid by up to half a step at its ends.
    inside = (values - ends[0]).minimum(ends[1] - values) >= 0
    assert bool(((quantized - values).abs()[inside] <= 1.000001 * quantizer.scale).all())
