"""A real pretrained DeiT-Tiny on real photographs, from files in the format that users have."""

import pytest
import torch

import mixqvit
from mixqvit.relevance.propagation import propagate

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


@pytest.mark.parametrize(("rules", "tolerance"), [("chefer", 1e-6), ("attnlrp", 1e-9)])
def test_relevance_of_photographs_is_conserved_and_independent_of_the_batch(study, rules, tolerance):
    """Chefer's rules divide by values near zero and so amplify rounding, which depends on the size of the batch."""
    pixels = study.calibration_images.pixels[:3]
    found = propagate(study.graph, pixels, rules=rules, stabilizer=0.0)
    flowing = sum(amount.abs() for amount in found.exits.values()) + found.pixels.abs().sum((1, 2))
    assert (found.leak.abs() <= 1e-9 * flowing).all()
    alone = propagate(study.graph, pixels[1:2], rules=rules, stabilizer=0.0)
    assert (found.pixels[1] - alone.pixels[0]).norm() <= tolerance * alone.pixels.norm()


def test_a_photograph_is_explained_block_by_block_and_head_by_head(study):
    found = study.image_relevance(0)
    assert found.pixels.shape == (224, 224)
    assert list(found.tokens) == ["patches", *(f"block {block}" for block in range(12))]
    assert {heads.shape for heads in found.heads.values()} == {(3, 14, 14)}
    assert found.attribution.shape == (14, 14)
    assert found.pixels.sum() + sum(found.left.values()) == pytest.approx(1, abs=1e-4)
