import pytest

from mixqvit.allocation.costs import (
    Storage,
    activation_parameter_bytes,
    bitops,
    code_bytes,
    cost,
    full_precision_weight_bytes,
    layer_bytes,
    scale_bytes,
    uniform_bitops,
)
from mixqvit.errors import CalibrationError
from mixqvit.network.bits import resolve_bits, uniform
from mixqvit.network.layers import Layer

LINEAR = Layer("linear", "fc1", 0, 30, 5, 700, (1, 6), (1, 5), "linear", None)
PRODUCT = Layer("product", "matmul1", 0, 0, 0, 400, (1, 6), (1, 5), "product", None)
NORMED = Layer("normed", "fc1", 0, 30, 5, 700, (1, 6), (1, 5), "normed", "norm")
REST = Storage("mix-qvit", 44, 1000)
EMBEDDING = Layer("embedding", "patch_embed", None, 16, 4, 100, (1, 2, 2), (1, 4), "embedding", None)


def test_costs_by_hand():
    bits = {"embedding": (4, 8), "linear": (3, 5), "product": (4, 6)}
    found = cost([EMBEDDING, LINEAR, PRODUCT], bits, REST)
    assert found.weight_bytes == 8 + 12  # 16 · 4 / 8, and 30 · 3 / 8 rounded up
    assert found.scale_bytes == (5 * 4 + 16) + (5 * 5 + 16) + 16 * 2
    assert found.full_precision_bytes == 44
    assert found.container_bytes == 1000
    assert found.size_bytes == found.weight_bytes + found.scale_bytes + 44 + 1000
    assert found.bitops == 100 * 4 * 8 + 700 * 3 * 5 + 400 * 4 * 6
    assert found.average_bits == pytest.approx((16 * 4 + 30 * 3) / 46)


def test_full_precision_costs_float32_and_no_scales():
    assert code_bytes(LINEAR, 32) == 0
    assert full_precision_weight_bytes(LINEAR, 32) == 120
    assert full_precision_weight_bytes(LINEAR, 8) == 0
    assert scale_bytes(LINEAR, (32, 32), "mix-qvit") == 0
    assert scale_bytes(LINEAR, (32, 4), "mix-qvit") == 16
    assert scale_bytes(PRODUCT, (32, 4), "mix-qvit") == 16
    assert bitops(LINEAR, (32, 32)) == 700 * 1024
    found = cost([EMBEDDING, LINEAR], {"embedding": (32, 32), "linear": (4, 32)}, REST)
    assert (found.weight_bytes, found.full_precision_bytes) == (15, 44 + 64)


@pytest.mark.parametrize(("recipe", "channel"), [("min-max", 0), ("fq-vit", 1), ("repq-vit", 8), ("mix-qvit", 8)])
def test_a_post_layer_norm_input_has_parameters_per_channel(recipe, channel):
    assert activation_parameter_bytes(NORMED, 0, recipe) == 16 + 6 * channel
    assert activation_parameter_bytes(LINEAR, 0, recipe) == 16
    assert scale_bytes(NORMED, (32, 4), recipe) == 16 + 6 * channel
    assert scale_bytes(NORMED, (4, 32), recipe) == 5 * 5


def test_the_size_of_an_unknown_recipe_is_refused():
    with pytest.raises(CalibrationError, match="'median'"):
        scale_bytes(LINEAR, (4, 4), "median")


def test_a_bias_that_reparameterization_creates_is_counted():
    reduction = Layer("reduction", "reduction", None, 32, 4, 100, (1, 8), (1, 4), "reduction", "norm", has_bias=False)
    assert scale_bytes(reduction, (4, 4), "mix-qvit") == 5 * 4 + (16 + 8 * 8) + 4 * 4
    assert scale_bytes(reduction, (4, 4), "min-max") == 5 * 4 + 16
    assert scale_bytes(reduction, (4, 32), "mix-qvit") == 5 * 4


def test_the_size_is_a_constant_and_a_sum_over_layers():
    layers = [EMBEDDING, LINEAR, NORMED, PRODUCT]
    bits = {"embedding": (4, 8), "linear": (32, 5), "normed": (2, 3), "product": (4, 32)}
    total = sum(layer_bytes(layer, bits[layer.name], "mix-qvit") for layer in layers)
    assert cost(layers, bits, REST).size_bytes == 44 + 1000 + total


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_uniform_bitops_are_the_cost_of_uniform_bits(bits):
    layers = [EMBEDDING, LINEAR, PRODUCT]
    assert uniform_bitops(layers, bits) == cost(layers, uniform(layers, bits), REST).bitops


def test_requests_resolve_to_a_pair_for_every_layer_in_order():
    layers = [EMBEDDING, LINEAR, PRODUCT]
    assert resolve_bits(layers, 4) == {"embedding": (4, 8), "linear": (4, 4), "product": (4, 4)}
    assert resolve_bits(layers, {"product": 3, "linear": (2, 8)}) == {
        "embedding": (32, 32),
        "linear": (2, 8),
        "product": (3, 3),
    }
    assert list(resolve_bits(layers, {"product": 3})) == ["embedding", "linear", "product"]
