"""Flow through the branches, head maps, and attribution of single images."""

from itertools import product

import pytest
import torch

from mixqvit.relevance.attribution import attention_gradients, class_token_attentions, transformer_attribution
from mixqvit.relevance.explanation import explain
from mixqvit.relevance.propagation import propagate


def test_flow_is_the_share_of_each_residual_branch(build, model_name) -> None:
    _, graph, pixels = build(model_name)
    relevance = propagate(graph, pixels, keep=[])
    blocks = {layer.block for layer in graph.layers if layer.is_matmul} - {None}
    expected = [(block, branch) for block in sorted(blocks) for branch in ("attention", "mlp")]
    if model_name == "cait":
        expected.remove((2, "attention"))  # its skip connection is the learned class token, a constant
    assert list(relevance.branches) == expected
    for share in relevance.branches.values():
        assert share.shape == (3,)
        assert ((share >= 0) & (share <= 1)).all()


def test_flow_equals_the_relevance_at_the_branchs_last_layer(build) -> None:
    _, graph, pixels = build("vit")
    sums = {
        (block, branch): f"add_{2 * block + 1 + (branch == 'mlp')}"
        for block, branch in product(range(2), ("attention", "mlp"))
    }
    ends = {"attention": "attn.proj", "mlp": "mlp.fc2"}
    layers = {place: f"blocks.{place[0]}.{ends[place[1]]}" for place in sums}
    found = propagate(graph, pixels, keep=[*sums.values(), *layers.values()])
    for place, share in found.branches.items():
        branch, whole = (found.outputs[name].sum((1, 2)) for name in (layers[place], sums[place]))
        torch.testing.assert_close(share, branch / whole)


def test_heads_of_a_vit_are_the_products_summed_over_channels(build) -> None:
    _, graph, pixels = build("deit_distilled")
    found = explain(graph, pixels)
    for block in range(2):
        outputs = found.relevance.outputs[f"blocks.{block}.attn.matmul2"]  # [3, 2, 18, 8]
        expected = outputs.sum(-1)[:, :, 2:].reshape(3, 2, 4, 4)
        torch.testing.assert_close(found.heads[block], expected)


@pytest.mark.parametrize(("name", "size", "padded"), [("swin", 8, 8), ("swin_padded", 9, 12)])
def test_heads_of_a_swin_return_to_where_their_windows_came_from(build, name, size, padded) -> None:
    _, graph, pixels = build(name)
    found = explain(graph, pixels)
    assert found.attribution is None
    for block, shift in ((0, 0), (1, 2)):
        outputs = found.relevance.outputs[f"layers.0.blocks.{block}.attn.matmul2"].sum(-1)  # [3, windows, 2, 16]
        expected = torch.zeros(3, 2, size, size, dtype=torch.float64)
        windows = padded // 4
        for window, token in product(range(windows**2), range(16)):
            row, column = window // windows * 4 + token // 4, window % windows * 4 + token % 4
            if row < size and column < size:  # the rest is padding, added after the shift
                place = (row + shift) % size, (column + shift) % size
                expected[:, :, place[0], place[1]] = outputs[:, window, :, token]
        torch.testing.assert_close(found.heads[block], expected)


def test_every_architecture_shows_its_heads_on_the_grid_of_patches(build, model_name) -> None:
    _, graph, pixels = build(model_name)
    found = explain(graph, pixels, 1)
    for block, heads in found.heads.items():
        assert heads.shape == (
            3,
            2 if block or "pvt" not in model_name else 1,
            *found.relevance.tokens[block].shape[1:],
        )
    attended = [layer.block for layer in graph.layers if layer.kind == "matmul2" and layer.block is not None]
    assert list(found.heads) == (attended[:2] if model_name == "cait" else attended)
    assert found.relevance.patches.shape == (3, *graph.layers[0].output_shape[2:])


def test_attribution_and_its_heads_belong_together(build) -> None:
    _, graph, pixels = build("dinov2")
    found = explain(graph, pixels, 1)
    torch.testing.assert_close(found.attribution, transformer_attribution(graph, pixels, 1))
    assert {block: heads.shape for block, heads in found.attribution_heads.items()} == {0: (3, 2, 16), 1: (3, 2, 16)}
    # Literally: the last block's row of the class token, times gradient, averaged over heads, starts the rollout.
    attentions = class_token_attentions(graph)
    relevance = propagate(graph, pixels, 1, keep=list(attentions.nodes.values()))
    gradients = attention_gradients(graph, pixels, relevance.targets)
    for block, node in attentions.nodes.items():
        expected = (gradients[node] * relevance.outputs[node])[:, :, 0, -16:].clamp(min=0)
        torch.testing.assert_close(found.attribution_heads[block], expected)
