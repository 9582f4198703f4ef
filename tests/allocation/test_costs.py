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
from mixqvit.network.bits import resolve_bits, uniform
from mixqvit.network.layers import Layer
from mixqvit.quantization.roles import ChannelParameters, operand_channels

MOVED = ChannelParameters(8, moves_input=True)
MIXED = {"post_layer_norm": MOVED, "attention_output": MOVED, "value": ChannelParameters(8)}
LINEAR = Layer("linear", "fc1", 0, 30, 5, 700, (1, 6), (1, 5), "linear", None)
PRODUCT = Layer("product", "matmul1", 0, 0, 0, 400, (1, 6), (1, 5), "product", None)
NORMED = Layer("normed", "fc1", 0, 30, 5, 700, (1, 6), (1, 5), "normed", "norm")
REST = Storage(MIXED, 44, 1000)
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
    assert scale_bytes(LINEAR, (32, 32), REST) == 0
    assert scale_bytes(LINEAR, (32, 4), REST) == 16
    assert scale_bytes(PRODUCT, (32, 4), REST) == 16
    assert bitops(LINEAR, (32, 32)) == 700 * 1024
    found = cost([EMBEDDING, LINEAR], {"embedding": (32, 32), "linear": (4, 32)}, REST)
    assert (found.weight_bytes, found.full_precision_bytes) == (15, 44 + 64)


def storing(**parameters: ChannelParameters) -> Storage:
    return Storage(parameters, 0, 0)


@pytest.mark.parametrize("channel", [1, 8])
def test_only_an_operand_whose_role_has_parameters_per_channel_stores_them(channel):
    storage = storing(post_layer_norm=ChannelParameters(channel))
    assert activation_parameter_bytes(NORMED, 0, storage) == 16 + 6 * channel
    assert activation_parameter_bytes(NORMED, 0, storing()) == 16
    assert activation_parameter_bytes(LINEAR, 0, storage) == 16
    assert scale_bytes(NORMED, (32, 4), storage) == 16 + 6 * channel
    assert scale_bytes(NORMED, (4, 32), storage) == 5 * 5


def test_channels_of_an_attention_product_are_counted_over_all_heads():
    scores = Layer("scores", "matmul1", 0, 0, 0, 1, (1, 3, 7, 5), (1, 3, 7, 7), "scores", None)
    product = Layer("product", "matmul2", 0, 0, 0, 1, (1, 3, 7, 7), (1, 3, 7, 4), "product", None)
    assert [operand_channels(scores, place) for place in (0, 1)] == [3 * 5, 3 * 5]
    assert operand_channels(product, 1) == 3 * 4
    assert operand_channels(PRODUCT, 1) == 0
    assert activation_parameter_bytes(product, 1, REST) == 16 + 8 * 12
    assert activation_parameter_bytes(product, 0, REST) == 16


def test_a_bias_that_reparameterization_creates_is_counted():
    reduction = Layer("reduction", "reduction", None, 32, 4, 100, (1, 8), (1, 4), "reduction", "norm", has_bias=False)
    assert scale_bytes(reduction, (4, 4), REST) == 5 * 4 + (16 + 8 * 8) + 4 * 4
    assert scale_bytes(reduction, (4, 4), storing()) == 5 * 4 + 16
    assert scale_bytes(reduction, (4, 32), REST) == 5 * 4


def test_the_size_is_a_constant_and_a_sum_over_layers():
    layers = [EMBEDDING, LINEAR, NORMED, PRODUCT]
    bits = {"embedding": (4, 8), "linear": (32, 5), "normed": (2, 3), "product": (4, 32)}
    total = sum(layer_bytes(layer, bits[layer.name], REST) for layer in layers)
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
