import pytest

from mixqvit.bits import resolve_bits, uniform
from mixqvit.costs import bitops, code_bytes, cost, scale_bytes, uniform_bitops
from mixqvit.layers import Layer

LINEAR = Layer("linear", "fc1", 0, 30, 5, 700, (1, 6), (1, 5), "linear", None)
PRODUCT = Layer("product", "matmul1", 0, 0, 0, 400, (1, 6), (1, 5), "product", None)
EMBEDDING = Layer("embedding", "patch_embed", None, 16, 4, 100, (1, 2, 2), (1, 4), "embedding", None)


def test_costs_by_hand():
    bits = {"embedding": (4, 8), "linear": (3, 5), "product": (4, 6)}
    found = cost([EMBEDDING, LINEAR, PRODUCT], bits, 11)
    assert found.weight_bytes == 8 + 12  # 16 · 4 / 8, and 30 · 3 / 8 rounded up
    assert found.scale_bytes == 5 * (4 + 1) + 5 * (5 + 1) + 5 * 2
    assert found.full_precision_bytes == 44
    assert found.size_bytes == found.weight_bytes + found.scale_bytes + 44
    assert found.bitops == 100 * 4 * 8 + 700 * 3 * 5 + 400 * 4 * 6
    assert found.average_bits == pytest.approx((16 * 4 + 30 * 3) / 46)


def test_full_precision_costs_float32_and_no_scales():
    assert code_bytes(LINEAR, 32) == 120
    assert scale_bytes(LINEAR, (32, 32)) == 0
    assert scale_bytes(PRODUCT, (32, 4)) == 5
    assert bitops(LINEAR, (32, 32)) == 700 * 1024


def test_a_bias_that_reparameterization_creates_is_counted():
    reduction = Layer("reduction", "reduction", None, 32, 4, 100, (1, 8), (1, 4), "reduction", "norm", has_bias=False)
    assert scale_bytes(reduction, (4, 4)) == 5 * (4 + 1) + 4 * 4
    assert scale_bytes(reduction, (4, 32)) == 5 * 4


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_uniform_bitops_are_the_cost_of_uniform_bits(bits):
    layers = [EMBEDDING, LINEAR, PRODUCT]
    assert uniform_bitops(layers, bits) == cost(layers, uniform(layers, bits), 0).bitops


def test_requests_resolve_to_a_pair_for_every_layer_in_order():
    layers = [EMBEDDING, LINEAR, PRODUCT]
    assert resolve_bits(layers, 4) == {"embedding": (4, 8), "linear": (4, 4), "product": (4, 4)}
    assert resolve_bits(layers, {"product": 3, "linear": (2, 8)}) == {
        "embedding": (32, 32),
        "linear": (2, 8),
        "product": (3, 3),
    }
    assert list(resolve_bits(layers, {"product": 3})) == ["embedding", "linear", "product"]
