import numpy as np
import pytest
import torch

from mixqvit.errors import MixQViTError
from mixqvit.graph import trace
from mixqvit.outliers import amplify_outliers, channel_ranges, post_layer_norm_layers
from mixqvit.quantization import calibrate
from tests.models import ARCHITECTURES, tiny_images, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_amplified_outliers_leave_the_full_precision_function_unchanged(architecture):
    model = tiny_model(architecture, torch.float32)
    images = tiny_images(3, torch.float32)
    amplified = amplify_outliers(model, images, 16.0, 2)
    with torch.no_grad():
        assert torch.equal(amplified(images), model(images))  # a power of two is exact
        torch.testing.assert_close(
            amplify_outliers(model, images, 10.0, 2)(images), model(images), rtol=1e-4, atol=1e-4
        )
    changed = [
        name for name, tensor in amplified.state_dict().items() if not torch.equal(tensor, model.state_dict()[name])
    ]
    norms = {layer.norm for layer in post_layer_norm_layers(trace(model, images).layers)}
    assert len([name for name in changed if "norm" in name and name.endswith("weight")]) == len(norms)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_amplified_outliers_are_outliers_and_hurt_one_scale_per_tensor(architecture):
    images = tiny_images(8)
    found = []
    for factor in (1.0, 16.0):
        graph = trace(amplify_outliers(tiny_model(architecture), images, factor, 2), images)
        layer = post_layer_norm_layers(graph.layers)[0]
        found.append(channel_ranges(calibrate(graph, images), layer, images, 6))
    mild, strong = found
    assert strong.max_to_median > 8 * mild.max_to_median
    one_scale = "one scale for all channels"
    assert strong.errors[one_scale] > 10 * mild.errors[one_scale]
    assert strong.errors["clipped and reparameterized"] < strong.errors[one_scale] / 10


def test_channel_ranges_are_those_of_the_layers_input():
    images = tiny_images(5)
    graph = trace(tiny_model("vit"), images)
    layer = graph.by_name["blocks.1.attn.qkv"]
    found = channel_ranges(calibrate(graph, images), layer, images, 4)
    _, kept = graph.run(images, keep={layer.norm})
    rows = kept[layer.norm].flatten(0, 1).numpy()
    np.testing.assert_allclose(found.lower, rows.min(axis=0))
    np.testing.assert_allclose(found.upper, rows.max(axis=0))
    np.testing.assert_allclose(found.spread, rows.max(axis=0) - rows.min(axis=0))
    np.testing.assert_allclose(found.weight_after, found.weight_before * found.ratio)
    assert found.max_to_median >= 1
    # After the move one grid covers every channel about as well as its own did.
    assert found.moved_grid[0] < 0 < found.moved_grid[1]
    assert np.median(found.moved_upper - found.moved_lower) > 0.5 * (found.moved_grid[1] - found.moved_grid[0])


def test_bad_requests_are_refused_in_words():
    images = tiny_images(2)
    model = tiny_model("vit")
    for factor in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(MixQViTError, match="outlier factor"):
            amplify_outliers(model, images, factor, 2)
    with pytest.raises(MixQViTError, match="16 channels; 17"):
        amplify_outliers(model, images, 2.0, 17)
    graph = trace(model, images)
    with pytest.raises(MixQViTError, match="does not come from a LayerNorm"):
        channel_ranges(calibrate(graph, images), graph.by_name["head"], images, 4)
