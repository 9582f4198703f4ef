"""Every quantizer as bytes and back."""

import json
from dataclasses import replace

import pytest
import torch

from mixqvit.allocation.costs import OPERAND_BYTES
from mixqvit.errors import PackingError
from mixqvit.packing.parameters import decode_quantizer, encode_quantizer
from mixqvit.quantization.quantizers.adaptive_log import AdaptiveLogQuantizer
from mixqvit.quantization.quantizers.log2 import Log2Quantizer
from mixqvit.quantization.quantizers.log_sqrt2 import fit_log_sqrt2
from mixqvit.quantization.quantizers.power_of_two_factor import fit_power_of_two_factor
from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from mixqvit.quantization.quantizers.twin_uniform import TwinSoftmaxQuantizer, fit_twin_gelu, fit_twin_softmax
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.ranges import fit_per_channel, fit_per_tensor
from mixqvit.quantization.reparameterization import reparameterized_quantizer
from mixqvit.quantization.saving import quantizer_to_tensors

VALUES = torch.rand(50, 4, generator=torch.Generator().manual_seed(2)) ** 3
PER_HEAD = UniformQuantizer(torch.rand(2, 1, 1), torch.tensor([[[1.0]], [[2.0]]]), 4)
# Each with the bytes it takes for its channels.
QUANTIZERS = [
    (fit_per_tensor(VALUES, 4), 0),
    (fit_per_channel(VALUES, 4), 4 * 8),
    (PER_HEAD, 2 * 8),
    (Log2Quantizer(VALUES.max(), 4), 0),
    (fit_log_sqrt2(VALUES, 4), 0),
    (AdaptiveLogQuantizer(VALUES.max(), torch.tensor(0.625), 0.0, 4), 0),
    (AdaptiveLogQuantizer(VALUES.max(), torch.tensor(0.4), 0.17, 4, zero_code=True), 0),
    (fit_twin_softmax(VALUES, 4), 0),
    (fit_twin_gelu(VALUES - 0.2, 4), 0),
    (fit_power_of_two_factor(VALUES, 4), 4),
    (reparameterized_quantizer(fit_per_channel(VALUES, 4), clip=0.1 + 0.2), 4 * 8),
    (reparameterized_quantizer(fit_per_channel(VALUES, 4), round_zero_point=False), 4 * 8),
]


@pytest.mark.parametrize(
    ("quantizer", "channel_bytes"), QUANTIZERS, ids=[type(quantizer).__name__ for quantizer, _ in QUANTIZERS]
)
def test_a_quantizer_comes_back_as_it_was(quantizer, channel_bytes):
    encoded = encode_quantizer(quantizer, 4)
    assert len(encoded.numbers) == OPERAND_BYTES
    assert len(encoded.channels) == channel_bytes
    found, taken = decode_quantizer(encoded.kind, encoded.numbers, encoded.channels + b"what follows", 4)
    assert taken == channel_bytes
    tensors, description = quantizer_to_tensors(quantizer)
    found_tensors, found_description = quantizer_to_tensors(found)
    assert found_description == description
    assert list(found_tensors) == list(tensors)
    assert all(torch.equal(found_tensors[name], tensor) for name, tensor in tensors.items())


def test_the_kind_says_nothing_that_was_fitted_nor_the_width():
    first = reparameterized_quantizer(fit_per_channel(VALUES, 4), clip=0.02)
    second = reparameterized_quantizer(fit_per_channel(VALUES + 1, 3), clip=0.05)
    assert encode_quantizer(first, 4).kind == encode_quantizer(second, 3).kind
    assert encode_quantizer(first, 4).kind != encode_quantizer(fit_per_tensor(VALUES, 4), 4).kind


def test_what_does_not_fit_the_format_is_refused():
    exponents = fit_power_of_two_factor(VALUES, 4)
    with pytest.raises(PackingError, match="exponents of a PowerOfTwoFactorQuantizer must be whole numbers"):
        encode_quantizer(replace(exponents, exponents=exponents.exponents + 0.5), 4)
    with pytest.raises(PackingError, match="float32"):
        encode_quantizer(fit_per_tensor(VALUES.double(), 4), 4)
    vector = TwinSoftmaxQuantizer(torch.rand(3), torch.tensor(3.0), 4)
    with pytest.raises(PackingError, match="one scale for the whole tensor"):
        encode_quantizer(vector, 4)
    nested = ReparameterizedQuantizer(fit_per_tensor(VALUES, 4), fit_per_tensor(VALUES, 4))  # four scalars and a clip
    with pytest.raises(PackingError, match="takes 24 bytes"):
        encode_quantizer(nested, 4)


def test_an_unknown_quantizer_is_refused():
    encoded = encode_quantizer(fit_per_tensor(VALUES, 4), 4)
    kind = json.loads(encoded.kind)
    kind["quantizer"]["class"] = "Ternary"
    with pytest.raises(PackingError, match="does not know"):
        decode_quantizer(json.dumps(kind), encoded.numbers, b"", 4)
