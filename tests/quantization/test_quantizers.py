"""Every quantizer against its literal float64 formula, and the properties that quantizers have."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixqvit.quantization.quantizers.adaptive_log import AdaptiveLogQuantizer
from mixqvit.quantization.quantizers.log2 import Log2Quantizer
from mixqvit.quantization.quantizers.log_sqrt2 import LogSqrt2Quantizer
from mixqvit.quantization.quantizers.power_of_two_factor import PowerOfTwoFactorQuantizer
from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from mixqvit.quantization.quantizers.twin_uniform import TwinGeluQuantizer, TwinSoftmaxQuantizer
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from tests.quantization import literal


def number(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def quantizer_of(kind, bits, scale=0.37, dtype=torch.float64):
    """A quantizer that is one number wide, and the same thing as a literal function of one number."""
    wide = number(scale, dtype)
    scale = float(wide)
    match kind:
        case "uniform":
            made = UniformQuantizer(wide, number(2.0, dtype), bits)
            return made, lambda value: literal.uniform(value, scale, 2.0, bits)
        case "log2":
            return Log2Quantizer(wide, bits), lambda value: literal.log2(value, scale, bits)
        case "log√2":
            return LogSqrt2Quantizer(wide, bits), lambda value: literal.log_sqrt2(value, scale, bits)
        case "adaptive log" | "adaptive log with zero":
            zero = kind.endswith("zero")
            made = AdaptiveLogQuantizer(wide, number(0.625, dtype), 0.0, bits, zero)
            return made, lambda value: literal.adaptive_log(value, scale, 0.625, 0.0, bits, zero)
        case "shifted log" | "shifted log with zero":
            zero, shift = kind.endswith("zero"), 0.25 * scale
            made = AdaptiveLogQuantizer(wide, number(0.375, dtype), shift, bits, zero)
            return made, lambda value: literal.adaptive_log(value, scale, 0.375, shift, bits, zero)
        case "twin softmax" | "steep twin softmax":
            exponent = 3 if kind == "twin softmax" else 12
            made = TwinSoftmaxQuantizer(wide * 2.0**-exponent, number(float(exponent), dtype), bits)
            return made, lambda value: literal.twin_softmax(value, scale * 2.0**-exponent, exponent, bits)
        case "twin gelu":
            made = TwinGeluQuantizer(wide / 8, number(3.0, dtype), bits)
            return made, lambda value: literal.twin_gelu(value, scale / 8, 3, bits)
        case "power-of-two factor":
            made = PowerOfTwoFactorQuantizer(wide / 4, number(1.0, dtype), torch.tensor([2.0], dtype=dtype), bits)
            return made, lambda value: literal.power_of_two_factor(value, scale / 4, 1.0, 2, bits)
        case "reparameterized":
            tensor = UniformQuantizer(wide, number(1.0, dtype), bits)
            channels = UniformQuantizer(2 * wide[None], torch.tensor([0.75], dtype=dtype), bits)
            made = ReparameterizedQuantizer(channels, tensor)
            return made, lambda value: literal.reparameterized(value, 2.0, scale * 0.25, scale, 1.0, bits)


NON_NEGATIVE = ("log2", "log√2", "adaptive log", "adaptive log with zero", "twin softmax", "steep twin softmax")
SIGNED = ("uniform", "shifted log", "shifted log with zero", "twin gelu", "power-of-two factor", "reparameterized")
KINDS = (*NON_NEGATIVE, *SIGNED)
# A reparameterized input is moved, so its quantized values are not near the input itself.
UNMOVED = tuple(kind for kind in KINDS if kind != "reparameterized")


def samples(kind, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    if kind in NON_NEGATIVE:
        values = torch.rand(600, dtype=torch.float64, generator=generator) ** 6
        values[:5] = torch.tensor([0.0, -0.0, 1.0, 1e-30, 2.0])
    else:
        values = torch.randn(600, dtype=torch.float64, generator=generator) ** 3
        values[:5] = torch.tensor([0.0, -0.0, 1.0, 1e-30, -2.0])
    return values.to(dtype)[:, None]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantizer_is_its_formula(kind, bits):
    quantizer, formula = quantizer_of(kind, bits)
    values = samples(kind)
    found = quantizer(values)
    assert found.shape == values.shape
    np.testing.assert_allclose(found[:, 0], [formula(value) for value in values[:, 0].tolist()], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision_differs_from_the_formula_at_ties_only(kind):
    quantizer, formula = quantizer_of(kind, 4, dtype=torch.float32)
    values = samples(kind, torch.float32)
    found = quantizer(values)
    assert found.dtype == torch.float32
    expected = torch.tensor([formula(value) for value in values[:, 0].tolist()])
    assert int((~torch.isclose(found[:, 0], expected, rtol=1e-5, atol=1e-7)).sum()) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_is_left_alone(kind):
    values = samples(kind)
    before = values.clone()
    quantizer, _ = quantizer_of(kind, 3)
    quantizer(values)
    assert torch.equal(values, before)
    assert torch.equal(quantizer(values.expand(-1, 1).T), quantizer(values).T)


def channel_quantizers(bits):
    """Quantizers with parameters per channel of `[N, 3]`, and the literal quantizer of each channel."""
    scales, steps = torch.tensor([0.1, 0.2, 0.7]).double(), torch.tensor([0.25, 0.5, 1.5]).double()
    zero_points, exponents = torch.tensor([0.0, 2.0, 3.0]).double(), torch.tensor([0.0, 1.0, 3.0]).double()
    tensor = UniformQuantizer(number(0.4), number(1.0), bits)
    pairs = {
        "uniform": (UniformQuantizer(scales, zero_points, bits), literal.uniform, (scales, zero_points)),
        "log2": (Log2Quantizer(scales, bits), literal.log2, (scales,)),
        "log√2": (LogSqrt2Quantizer(scales, bits), literal.log_sqrt2, (scales,)),
        "twin softmax": (TwinSoftmaxQuantizer(scales, exponents, bits), literal.twin_softmax, (scales, exponents)),
        "twin gelu": (TwinGeluQuantizer(scales, exponents, bits), literal.twin_gelu, (scales, exponents)),
        "power-of-two factor": (
            PowerOfTwoFactorQuantizer(number(0.1), number(2.0), exponents, bits),
            literal.power_of_two_factor,
            ([0.1] * 3, [2.0] * 3, exponents),
        ),
        "adaptive log": (
            AdaptiveLogQuantizer(scales, steps, 0.17, bits, True),
            lambda value, scale, step, bits: literal.adaptive_log(value, scale, step, 0.17, bits, True),
            (scales, steps),
        ),
        "reparameterized": (
            ReparameterizedQuantizer(UniformQuantizer(0.4 * scales, 1.0 - steps / 0.4, bits), tensor),
            lambda value, ratio, shift, bits: literal.reparameterized(value, ratio, shift, 0.4, 1.0, bits),
            (scales, steps),
        ),
    }
    return pairs


@pytest.mark.parametrize("kind", channel_quantizers(4))
def test_parameters_per_channel_serve_their_channel(kind):
    quantizer, formula, parameters = channel_quantizers(4)[kind]
    values = torch.rand(2, 40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    if kind not in NON_NEGATIVE:
        values = values * 4 - 2
    found = quantizer(values)
    for channel in range(3):
        own = [float(parameter[channel]) for parameter in parameters]
        expected = [formula(value, *own, 4) for value in values[..., channel].flatten().tolist()]
        np.testing.assert_allclose(found[..., channel].flatten(), expected, rtol=1e-9, atol=1e-12)


def test_the_end_of_the_fine_range_belongs_to_the_coarse_one():
    quantizer = TwinSoftmaxQuantizer(number(0.125), number(1.0), 3)
    below, end, above = quantizer(number([0.499, 0.5, 0.51])).tolist()
    assert (below, end, above) == (0.375, 0.5, 0.5)


def test_a_reparameterized_quantizer_knows_how_the_input_is_moved():
    channels = UniformQuantizer(number([0.25, 2.0]), number([1.0, 7.0]), 4)
    quantizer = ReparameterizedQuantizer(channels, UniformQuantizer(number(0.5), number(3.0), 4))
    assert quantizer.ratio.tolist() == [0.5, 4.0]
    assert quantizer.shift.tolist() == [1.0, -2.0]


def test_the_adaptive_logarithm_contains_the_fixed_ones():
    values = samples("log2")
    base_two = AdaptiveLogQuantizer(number(0.8), number(1.0), 0.0, 3)
    assert torch.equal(base_two(values), Log2Quantizer(number(0.8), 3)(values))
    root = AdaptiveLogQuantizer(number(0.8), number(0.5), 0.0, 3, zero_code=True)(values)
    published = LogSqrt2Quantizer(number(0.8), 3)(values)
    # The zero takes the place of the smallest power, so that 2^bits codes are enough.
    kept = published > 0.8 * 2**-3.5 * 1.001
    torch.testing.assert_close(root[kept], published[kept])
    assert not root[~kept].any()


finite = st.floats(-50, 50) | st.floats(-1e-3, 1e-3) | st.sampled_from([0.0, -0.0, 1e30, -1e30, 1e-38, -1e-38])
lists = st.lists(finite, min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), bits=st.integers(2, 8), scale=st.floats(1e-3, 20), values=lists)
def test_quantized_values_are_finite_and_keep_the_order(kind, bits, scale, values):
    quantizer, _ = quantizer_of(kind, bits, scale)
    ordered = number(sorted(abs(value) if kind in NON_NEGATIVE else value for value in values))[:, None]
    quantized = quantizer(ordered)
    assert torch.isfinite(quantized).all()
    assert (quantized.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("bits", [2, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_there_are_as_many_values_as_bits_can_tell_apart(kind, bits):
    """All of 2^bits are used; log√2 as published has the zero on top."""
    quantizer, _ = quantizer_of(kind, bits)
    powers = torch.logspace(-14, 2, 4001, dtype=torch.float64)
    fine = torch.cat([torch.linspace(-20, 20, 40001, dtype=torch.float64), powers, powers - 0.25 * 0.37])
    fine = fine.clamp(min=0) if kind in NON_NEGATIVE else fine
    # The first codes of the coarse range lie inside the fine one and stay unused.
    shared = {"twin softmax": {2: 3, 3: 7, 5: 30}, "steep twin softmax": {2: 3, 3: 7, 5: 31}}
    expected = {"log√2": 2**bits + 1}.get(kind, shared.get(kind, {}).get(bits, 2**bits))
    distinct = quantizer(fine[:, None]).unique()
    apart = 1 + int((distinct.diff() > 1e-12 * distinct.abs().max()).sum())
    assert apart == expected


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(UNMOVED), bits=st.integers(2, 8), scale=st.floats(1e-3, 20), values=lists)
def test_quantized_values_stay_where_they_are(kind, bits, scale, values):
    quantizer, _ = quantizer_of(kind, bits, scale)
    values = number(values)[:, None]
    once = quantizer(values.abs() if kind in NON_NEGATIVE else values)
    # A shift of one sign and back costs the digits of the smallest powers.
    torch.testing.assert_close(quantizer(once), once, rtol=1e-9, atol=1e-13 * scale)


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(KINDS), bits=st.integers(2, 8), exponent=st.integers(-40, 40), values=lists)
def test_scaling_the_input_and_the_quantizer_scales_the_output(kind, bits, exponent, values):
    factor = 2.0**exponent
    values = number(values)[:, None]
    values = values.abs() if kind in NON_NEGATIVE else values
    one, _ = quantizer_of(kind, bits, 0.37)
    other, _ = quantizer_of(kind, bits, 0.37 * factor)
    torch.testing.assert_close(other(values * factor), one(values) * factor, rtol=1e-9, atol=1e-13 * factor)


@settings(max_examples=150, deadline=None)
@given(share=st.floats(0, 1), scale=st.floats(1e-3, 20), bits=st.integers(2, 8))
def test_inside_the_range_the_error_is_at_most_half_a_step(share, scale, bits):
    last = 2**bits - 1
    half = 2 ** (bits - 1)

    def error(kind, low, high):
        value = number([[low + share * (high - low)]])
        return float((quantizer_of(kind, bits, scale)[0](value) - value).abs())

    tolerance = 1e-9 * scale * last
    assert error("uniform", -2 * scale, (last - 2) * scale) <= scale / 2 + tolerance
    assert error("power-of-two factor", -scale, (last - 1) * scale) <= scale / 2 + tolerance
    assert error("twin gelu", -half * scale / 8, 0) <= scale / 16 + tolerance
    assert error("twin gelu", 0, (half - 1) * scale) <= scale / 2 + tolerance
    # The last half step of the fine range belongs to the coarse one's first code, a whole step away.
    assert error("twin softmax", 0, (half - 1) * scale / 8) <= scale / 16 + tolerance
    if bits > 4:
        assert error("twin softmax", half * scale / 8, (half - 1) * scale) <= scale / 2 + tolerance


@settings(max_examples=150, deadline=None)
@given(share=st.floats(0, 1), scale=st.floats(1e-3, 20), bits=st.integers(2, 6))
def test_inside_the_range_a_logarithm_errs_by_at_most_half_a_step_of_the_exponent(share, scale, bits):
    steps = {"log2": 1.0, "log√2": 0.5, "adaptive log": 0.625}
    for kind, step in steps.items():
        exponent = share * (2**bits - 1) * step
        quantized = float(quantizer_of(kind, bits, scale)[0](number([[scale * 2**-exponent]])))
        assert abs(math.log2(quantized / scale) + exponent) <= step / 2 + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_scales_and_values_never_give_nan(kind, scale, dtype):
    extremes = number([0.0, -0.0, 1e-45, 1e-38, 1e-20, 1.0, 1e30, 3e38], dtype)
    values = extremes if kind in NON_NEGATIVE else torch.cat([extremes, -extremes])
    for bits in (2, 8):
        quantizer, _ = quantizer_of(kind, bits, scale, dtype)
        assert torch.isfinite(quantizer(values[:, None])).all()


@pytest.mark.parametrize("kind", ["log2", "adaptive log", "adaptive log with zero", "twin softmax"])
def test_rounding_noise_below_zero_counts_as_zero(kind):
    quantizer, _ = quantizer_of(kind, 4)
    assert torch.equal(quantizer(number([[-1e-9], [-5.0]])), quantizer(number([[0.0], [0.0]])))


def test_a_channel_whose_scale_underflows_is_quantized_to_something_finite():
    channels = UniformQuantizer(torch.tensor([1e-3, 1e-45]), torch.full((2,), 3.0), 4)
    quantizer = ReparameterizedQuantizer(channels, UniformQuantizer(torch.tensor(1e-3), torch.tensor(3.0), 4))
    assert torch.isfinite(quantizer(torch.tensor([[1.0, 0.0], [-0.0, 1e-45], [1e30, 1.0]]))).all()
