"""Merging query and key: the same function, other layers, and a clear refusal where it cannot be."""

import pytest
import torch

import mixqvit
from mixqvit.errors import UnsupportedOperationError
from mixqvit.network.query_key import is_merged, merge_query_key, original_layer
from tests.tiny_models import ARCHITECTURES, TRANSFORMERS, tiny_images, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merging_leaves_the_function_unchanged(architecture):
    graph = mixqvit.trace(tiny_model(architecture), tiny_images())
    merged = merge_query_key(graph)
    torch.testing.assert_close(merged(tiny_images()), graph(tiny_images()), rtol=1e-9, atol=1e-9)
    assert is_merged(merged) and not is_merged(graph)
    assert merge_query_key(graph).fingerprint == merged.fingerprint != graph.fingerprint


def test_the_merged_weight_is_the_product_of_query_and_key_head_by_head():
    graph = mixqvit.trace(tiny_model("vit"), tiny_images())
    merged = merge_query_key(graph)
    heads, channels = 2, 16
    weight = graph.weight(graph.by_name["blocks.1.attn.qkv"])
    found = merged.weight(merged.by_name["blocks.1.attn.query_key"])
    assert found.shape == (heads * channels, channels)
    for head in range(heads):
        rows = slice(head * 8, (head + 1) * 8)
        query, key = weight[:channels][rows], weight[channels : 2 * channels][rows]
        for column in range(channels):  # x · M · xᵀ with M = W_q W_kᵀ; a Linear keeps Mᵀ
            torch.testing.assert_close(found[head * channels + column], key[:, column] @ query)


def test_size_and_work_count_the_larger_weight():
    graph = mixqvit.trace(tiny_model("vit"), tiny_images())
    merged = merge_query_key(graph)
    before, after = graph.by_name, merged.by_name
    assert after["blocks.0.attn.query_key"].parameters == 2 * 16 * 16  # heads · C · C
    assert after["blocks.0.attn.value"].parameters == 16 * 16
    assert after["blocks.0.attn.matmul1"].macs == 2 * before["blocks.0.attn.matmul1"].macs  # C instead of C / heads
    assert [layer.kind for layer in merged.layers if layer.block == 0] == (
        ["qkv", "qkv", "matmul1", "matmul2", "proj", "fc1", "fc2"]
    )


def test_layers_are_found_again_in_the_graph_they_come_from():
    graph = mixqvit.trace(tiny_model("swin"), tiny_images())
    for layer in merge_query_key(graph).layers:
        name = original_layer(layer.name, graph.by_name)
        assert name in graph.by_name
        assert (name == layer.name) == (layer.kind != "qkv")


@pytest.mark.parametrize("name", ["swin_v2", "eva"])
def test_attentions_that_change_query_and_key_before_they_are_multiplied_are_refused(name):
    found = [key for key in TRANSFORMERS if key.startswith(name)]
    model = TRANSFORMERS[found[0]]()
    pixels = torch.randn(1, 3, 16, 16)
    with pytest.raises(UnsupportedOperationError, match="Train with recipe lsq"):
        merge_query_key(mixqvit.trace(model.eval(), pixels))
