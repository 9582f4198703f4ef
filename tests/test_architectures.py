"""Every architecture that the README names goes through calibration, quantization and packing."""

import pytest
import torch

import mixqvit
from tests.tiny_models import TRANSFORMERS, small_transformer


@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_every_architecture_is_quantized_and_packed(name, tmp_path) -> None:
    torch.set_num_threads(1)
    module, pixels = small_transformer(name, torch.float32)
    graph = mixqvit.trace(module, pixels)
    assert {"patch_embed", "qkv", "matmul1", "matmul2", "proj", "fc1", "fc2", "head"} <= {
        layer.kind for layer in graph.layers
    }
    calibration = mixqvit.calibrate(graph, pixels, bit_widths=(8,))
    quantized = mixqvit.quantize(calibration, 8)
    with torch.no_grad():
        exact, found = module(pixels), quantized(pixels)
    assert 0 < (found - exact).norm() <= 0.05 * exact.norm()
    mixqvit.pack(quantized, tmp_path / "model.safetensors")
    again = mixqvit.load_packed(tmp_path / "model.safetensors", model=module)
    assert torch.equal(again(pixels), found)
