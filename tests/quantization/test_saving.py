"""Every quantizer through a safetensors file and back."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mixqvit.errors import StoreError
from mixqvit.quantization.calibration import LayerCalibration
from mixqvit.quantization.quantizers.adaptive_log import AdaptiveLogQuantizer
from mixqvit.quantization.quantizers.log2 import Log2Quantizer
from mixqvit.quantization.quantizers.log_sqrt2 import fit_log_sqrt2
from mixqvit.quantization.quantizers.power_of_two_factor import fit_power_of_two_factor
from mixqvit.quantization.quantizers.reparameterized import ReparameterizedQuantizer
from mixqvit.quantization.quantizers.twin_uniform import fit_twin_gelu, fit_twin_softmax
from mixqvit.quantization.ranges import (
    fit_per_channel,
    fit_per_tensor,
    uniform_quantizer,
)
from mixqvit.quantization.reparameterization import reparameterized_quantizer
from mixqvit.quantization.saving import from_tensors, quantizer_from_tensors, quantizer_to_tensors, to_tensors

VALUES = torch.rand(50, 4, generator=torch.Generator().manual_seed(2)) ** 3
QUANTIZERS = [
    fit_per_tensor(VALUES, 4),
    uniform_quantizer(*torch.aminmax(VALUES, dim=0), 4),
    Log2Quantizer(VALUES.max(), 4),
    fit_log_sqrt2(VALUES, 4),
    AdaptiveLogQuantizer(VALUES.max(), torch.tensor(0.625), 0.0, 4),
    AdaptiveLogQuantizer(VALUES.max(), torch.tensor(0.4), 0.17, 4, zero_code=True),
    fit_twin_softmax(VALUES, 4),
    fit_twin_gelu(VALUES - 0.2, 4),
    fit_power_of_two_factor(VALUES, 4),
    reparameterized_quantizer(fit_per_channel(VALUES, 4), clip=0.1 + 0.2),
]


def read_back(tmp_path, tensors, descriptions):
    save_file(tensors, tmp_path / "layer.safetensors", descriptions)
    with safe_open(tmp_path / "layer.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda quantizer: type(quantizer).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quantizer_comes_back_as_it_was(tmp_path, quantizer, dtype):
    values = VALUES.to(dtype) - 0.1 * (type(quantizer).__name__ == "TwinGeluQuantizer")
    piece = LayerCalibration("blocks.0.attn.matmul2", ({4: quantizer}, {2: QUANTIZERS[0], 4: QUANTIZERS[1]}))
    restored = from_tensors(piece.layer, *read_back(tmp_path, *to_tensors(piece)))
    assert restored.layer == piece.layer
    assert [list(operand) for operand in restored.operands] == [[4], [2, 4]]
    found = restored.operands[0][4]
    assert type(found) is type(quantizer)
    assert torch.equal(found(values), quantizer(values))
    if isinstance(quantizer, ReparameterizedQuantizer):
        assert found.clip == quantizer.clip
        assert torch.equal(found.per_channel(values), quantizer.per_channel(values))
    _, description = quantizer_to_tensors(quantizer)
    assert quantizer_to_tensors(found)[1] == description


def test_quantizers_that_share_memory_can_be_saved(tmp_path):
    scales = torch.rand(2)
    shared = [type(QUANTIZERS[2])(scale, 4) for scale in scales]
    piece = LayerCalibration("head", ({3: shared[0], 4: shared[1]}, {4: shared[0]}))
    restored = from_tensors("head", *read_back(tmp_path, *to_tensors(piece)))
    assert torch.equal(restored.operands[0][4].scale, scales[1])
    assert torch.equal(restored.operands[1][4].scale, scales[0])


def test_operands_without_quantizers_are_kept():
    piece = LayerCalibration("blocks.0.attn.matmul1", ({}, {4: QUANTIZERS[0]}))
    assert [len(operand) for operand in from_tensors(piece.layer, *to_tensors(piece)).operands] == [0, 1]


def test_what_is_unknown_or_missing_is_refused():
    tensors, description = quantizer_to_tensors(QUANTIZERS[0])
    with pytest.raises(StoreError, match="UniformQuantizer lacks its zero_point"):
        quantizer_from_tensors({"scale": tensors["scale"]}, description)
    with pytest.raises(StoreError, match="'Ternary', which this version does not know"):
        quantizer_from_tensors(tensors, description.replace("UniformQuantizer", "Ternary"))
