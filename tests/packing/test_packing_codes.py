"""Integer weight codes: against a literal loop, there and back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixqvit.errors import PackingError
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.packing.codes import dequantized, pack_codes, unpack_codes, weight_codes
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.ranges import fit_weight


def literal_packing(codes, bits):
    """One bit after the other into one large integer, least significant first."""
    number = 0
    for index, code in enumerate(codes):
        number |= int(code) << (index * bits)
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


@pytest.mark.parametrize("bits", BIT_WIDTHS)
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 100])
def test_codes_are_packed_as_a_literal_loop_does(bits, count):
    codes = np.random.default_rng(count).integers(0, 2**bits, count).astype(np.uint8)
    assert pack_codes(codes, bits).tobytes() == literal_packing(codes, bits)


@given(data=st.data(), bits=st.sampled_from(BIT_WIDTHS))
def test_codes_come_back(data, bits):
    codes = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70)), np.uint8)
    packed = pack_codes(codes, bits)
    assert len(packed) == -(-len(codes) * bits // 8)
    assert np.array_equal(unpack_codes(packed, bits, len(codes)), codes)


@pytest.mark.parametrize("bits", BIT_WIDTHS)
@pytest.mark.parametrize("shape", [(5, 11), (5, 2, 3, 3)])
def test_a_weight_comes_back_bit_for_bit_even_where_zero_is_far_from_its_range(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    weight[1] = weight[1].abs() * 0.01 + 3  # its zero point is far below zero
    weight[2] = 0
    weight[3] = weight[3] * 0.01 - 3  # and this one's far above 255
    quantizer = fit_weight(weight, bits)
    quantized = quantizer(weight)
    codes = weight_codes(quantized, quantizer, "head")
    assert codes.dtype == np.uint8
    assert codes.max() < 2**bits
    assert torch.equal(dequantized(codes, quantized.shape, quantizer), quantized)


def test_a_weight_off_the_grid_is_refused_with_its_layer():
    quantizer = UniformQuantizer(torch.tensor(0.5), torch.tensor(2.0), 2)
    assert weight_codes(torch.tensor([-1.0, 0.5]), quantizer, "head").tolist() == [0, 3]
    for value in (0.6, 1.0, -1.5, float("nan")):
        with pytest.raises(PackingError, match="layer head"):
            weight_codes(torch.tensor([0.5, value]), quantizer, "head")
