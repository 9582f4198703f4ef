"""A real pretrained DeiT-Tiny on real photographs, from files in the format that users have."""

import pytest
import torch

import mixqvit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(shared, tmp_path_factory):
    model = mixqvit.load_model("deit_tiny_patch16_224", shared / "real" / "deit_tiny_patch16_224.safetensors")
    folder = str(shared / "real" / "imagenet_sample")
    return mixqvit.Study(model, folder, store=mixqvit.Store(tmp_path_factory.mktemp("real")))


def test_deit_tiny_runs_from_tracing_to_evaluation_at_four_bits(study):
    assert len(study.calibration_images) == 32
    assert len(study.evaluation_images) == 302
    assert study.graph.parameters == 5_717_416
    full = study.evaluate(32)
    assert full.top1 == pytest.approx(0.825, abs=0.01)
    quantized = study.evaluate(4)
    # The published RepQ-ViT code reaches 68.2 % here; chance is 0.1 %.
    assert quantized.top1 > 0.72
    assert quantized.agreement > 0.78
    assert torch.isfinite(torch.tensor(quantized.kl))


def test_real_channels_differ_and_reparameterization_helps(study):
    found = study.channels.ranges("blocks.2.attn.qkv", 4)
    assert found.max_to_median > 2.5
    assert found.variants["reparameterized"].output_error < found.variants["per tensor"].output_error
