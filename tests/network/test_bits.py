"""Which bits there are, how they are written, and which a layer may have."""

import pytest

from mixqvit.errors import BitWidthError
from mixqvit.network.bits import (
    BIT_WIDTHS,
    FULL_PRECISION,
    NUMBER_FORMATS,
    bits_with_character,
    bound_bits,
    check_bits,
    input_bits,
    is_tied,
    possible_bits,
    read_bits,
    resolve_pair,
    tied_bits,
    written_bits,
)
from tests.allocation.problems import layer

IMAGES, LINEAR, PRODUCT = layer(0, "patch_embed"), layer(1, "fc1"), layer(2, "matmul1")


def test_formats_are_the_bit_widths_in_order_and_full_precision():
    assert BIT_WIDTHS == (2, 3, 4, 5, 6, 7, 8)
    assert FULL_PRECISION == 32
    assert list(NUMBER_FORMATS) == [*BIT_WIDTHS, FULL_PRECISION]


def test_what_is_written_is_read_back():
    for bits in (*NUMBER_FORMATS, (4, 6), (2, 32)):
        assert read_bits(written_bits(bits)) == read_bits(written_bits(bits, "."), ".") == bits
    for number, one in NUMBER_FORMATS.items():
        assert bits_with_character(one.character) == number
    for text in ("", "9", "04", "4/", "4/4/4", "f", "4.6", " 4"):
        assert read_bits(text) is None
    assert bits_with_character("F") is None


def test_the_input_of_the_patch_embedding_keeps_8_bits():
    assert tied_bits(IMAGES, (2, 8, 32)) == ((2, 8), (8, 8), (32, 32))
    assert tied_bits(LINEAR, (2, 32)) == ((2, 2), (32, 32))
    assert (input_bits(IMAGES, 3.5), input_bits(LINEAR, 3.5)) == (8, 3.5)
    assert is_tied(IMAGES, (4, 8)) and not is_tied(IMAGES, (4, 4)) and is_tied(LINEAR, (4, 4))
    assert (bound_bits(IMAGES, (4, 8)), bound_bits(LINEAR, (4, 8))) == ((4,), (4, 8))
    assert (resolve_pair(IMAGES, 4), resolve_pair(IMAGES, (4, 6)), resolve_pair(LINEAR, 4)) == ((4, 8), (4, 6), (4, 4))


def test_operands_of_attention_products_are_always_tied():
    assert possible_bits(PRODUCT, tied=False, bit_widths=(2, 3)) == ((2, 2), (3, 3))
    assert possible_bits(LINEAR, tied=False, bit_widths=(2, 3)) == ((2, 2), (2, 3), (3, 2), (3, 3))
    assert possible_bits(LINEAR, tied=True, bit_widths=(2, 3)) == ((2, 2), (3, 3))
    assert possible_bits(IMAGES, tied=False, bit_widths=(2, 3)) == ((2, 8), (3, 8))


@pytest.mark.parametrize("bits", [1, 9, 16, True, "4", 4.0, None])
def test_what_is_no_bit_width_is_refused(bits):
    with pytest.raises(BitWidthError, match="not possible for layer head: use 2 to 8, or 32 for full precision"):
        check_bits(bits, "layer head")
    with pytest.raises(BitWidthError, match=r"use 2 to 8\."):
        check_bits(32, "layer head", quantized=True)
