"""A real pretrained DeiT-Tiny on real photographs, from files in the format that users have."""

import pytest
import torch

import mixqvit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real(shared):
    model = mixqvit.load_model("deit_tiny_patch16_224", shared / "real" / "deit_tiny_patch16_224.safetensors")
    folder = str(shared / "real" / "imagenet_sample")
    return model, folder


def test_deit_tiny_runs_from_tracing_to_evaluation_at_four_bits(real, tmp_path):
    model, folder = real
    settings = mixqvit.Settings(evaluation_images=302)
    study = mixqvit.Study(model, folder, settings, mixqvit.Store(tmp_path))
    assert len(study.calibration_images) == 32
    assert len(study.evaluation_images) == 302
    assert study.graph.parameters == 5_717_416
    full = study.evaluate(32)
    assert full.top1 == pytest.approx(0.825, abs=0.01)
    quantized = study.evaluate(4)
    # The published RepQ-ViT code reaches 68.2 % here; chance is 0.1 %.
    assert quantized.top1 > 0.5
    assert quantized.agreement > 0.5
    assert torch.isfinite(torch.tensor(quantized.kl))


def test_real_layer_norms_have_outlier_channels(real, tmp_path):
    model, folder = real
    study = mixqvit.Study(model, folder, store=mixqvit.Store(tmp_path))
    ranges = [study.channel_ranges(layer.name, 4) for layer in study.post_layer_norm_layers[::6]]
    assert max(found.max_to_median for found in ranges) > 5
    worst = max(ranges, key=lambda found: found.max_to_median)
    assert worst.errors["clipped and reparameterized"] < worst.errors["one scale for all channels"]
