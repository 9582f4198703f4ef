import threading

import pytest
import timm
import torch
from torch import nn

from mixqvit.errors import ImageError, ModelError
from mixqvit.network.tracing import trace
from tests.tiny_models import ARCHITECTURES, small_transformer, tiny_images, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_graph_computes_what_the_model_computes_at_any_batch_size(architecture):
    model = tiny_model(architecture)
    graph = trace(model, tiny_images(1))
    for count in (1, 3):
        images = tiny_images(count)
        with torch.no_grad():
            torch.testing.assert_close(graph(images), model(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_running_from_any_layer_with_saved_values_gives_the_same_logits(architecture):
    graph = trace(tiny_model(architecture), tiny_images(1))
    images = tiny_images(2)
    expected = graph(images)
    stops = []
    for node, values in graph.walk(images, [layer.node for layer in graph.layers]):
        before = set(values)
        assert torch.equal(graph.resume(values, node, {}), expected)
        assert set(values) == before
        stops.append(node)
    assert stops == [layer.node for layer in graph.layers]


def test_values_that_no_later_node_needs_are_not_kept():
    graph = trace(tiny_model("vit"), tiny_images(1))
    last = graph.layers[-1].node
    ((_, values),) = graph.walk(tiny_images(2), [last])
    tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 1  # the input of the head


def test_a_replaced_operation_gets_the_operands_and_gives_the_value():
    graph = trace(tiny_model("vit"), tiny_images(1))
    images = tiny_images(2)
    head = graph.by_name["head"]
    seen = []

    def zeros(values):
        seen.append(values.shape)
        return torch.zeros(len(values), 5, dtype=values.dtype)

    logits, _ = graph.run(images, {head.node: zeros})
    assert seen == [(2, 16)]
    assert torch.equal(logits, torch.zeros_like(logits))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("vit", ["patch_embed", *["qkv", "matmul1", "matmul2", "proj", "fc1", "fc2"] * 2, "head"]),
        ("deit", ["patch_embed", *["qkv", "matmul1", "matmul2", "proj", "fc1", "fc2"] * 2, "head", "head"]),
        (
            "swin",
            [
                "patch_embed",
                *["qkv", "matmul1", "matmul2", "proj", "fc1", "fc2"] * 2,
                "reduction",
                *["qkv", "matmul1", "matmul2", "proj", "fc1", "fc2"],
                "head",
            ],
        ),
    ],
)
def test_kinds_and_blocks_are_read_off_the_structure(architecture, expected):
    graph = trace(tiny_model(architecture), tiny_images(1))
    assert [layer.kind for layer in graph.layers] == expected
    blocks = [layer.block for layer in graph.layers if layer.kind in ("qkv", "fc2")]
    assert blocks == [index // 2 for index in range(len(blocks))]
    outside = [layer for layer in graph.layers if layer.kind in ("patch_embed", "reduction", "head")]
    assert all(layer.block is None for layer in outside)


def test_layers_carry_timm_names_and_only_post_layer_norm_inputs_name_a_norm():
    graph = trace(tiny_model("deit"), tiny_images(1))
    names = [layer.name for layer in graph.layers]
    assert names[:4] == ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.attn.matmul1", "blocks.0.attn.matmul2"]
    assert names[-2:] == ["head", "head_dist"]
    assert graph.by_name["blocks.0.attn.qkv"].norm == "blocks_0_norm1"
    assert graph.by_name["blocks.1.mlp.fc1"].norm == "blocks_1_norm2"
    assert graph.by_name["blocks.0.attn.proj"].norm is None
    assert graph.by_name["blocks.0.mlp.fc2"].norm is None


def test_swin_norms_are_found_through_padding_shifting_and_windows():
    graph = trace(tiny_model("swin"), tiny_images(1))
    assert all(layer.norm for layer in graph.layers if layer.kind in ("qkv", "fc1", "reduction"))


def test_deit_tiny_has_the_published_size():
    graph = trace(timm.create_model("deit_tiny_patch16_224"), torch.zeros(1, 3, 224, 224))
    assert graph.parameters == 5_717_416
    assert abs(graph.macs - 1.254e9) < 0.0005e9
    assert abs(graph.macs - 1.26e9) < 0.01 * 1.26e9


def test_macs_are_those_of_the_shapes():
    graph = trace(tiny_model("vit"), tiny_images(1))
    tokens, channels = 17, 16
    assert graph.by_name["blocks.0.attn.qkv"].macs == tokens * channels * 3 * channels
    assert graph.by_name["blocks.0.attn.matmul1"].macs == tokens * tokens * channels
    assert graph.by_name["blocks.0.attn.matmul2"].macs == tokens * tokens * channels
    assert graph.by_name["patch_embed.proj"].macs == 16 * 16 * channels
    assert graph.parameters == sum(p.numel() for p in tiny_model("vit").parameters())


def test_the_model_is_left_alone():
    model = tiny_model("vit").train()
    model.head.weight.requires_grad_(True)
    graph = trace(model, tiny_images(1))
    assert model.training
    assert model.head.weight.requires_grad
    before = graph(tiny_images(1))
    with torch.no_grad():
        model.head.weight.zero_()
    assert torch.equal(graph(tiny_images(1)), before)


def test_threads_share_a_graph():
    graph = trace(tiny_model("swin"), tiny_images(1))
    images = [tiny_images(count) for count in (1, 2, 3, 4)]
    expected = [graph(batch) for batch in images]
    found = [None] * len(images)

    def work(index):
        for _ in range(5):
            found[index] = graph(images[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_tracing_in_one_thread_disturbs_neither_running_nor_tracing_in_another():
    """torch.fx changes nn.Module for the whole process while it traces."""
    graph = trace(tiny_model("vit"), tiny_images(1))
    images = tiny_images(2)
    expected = graph(images)
    failures = []

    def run_graph():
        for _ in range(150):
            try:
                assert torch.equal(graph(images), expected)
            except Exception as error:
                failures.append(error)

    def trace_again(architecture):
        try:
            for _ in range(3):
                trace(tiny_model(architecture), tiny_images(1))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run_graph) for _ in range(2)]
    threads += [threading.Thread(target=trace_again, args=(architecture,)) for architecture in ("swin", "deit")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_fingerprint_follows_weights_and_structure():
    same = [trace(tiny_model("vit"), tiny_images(1)).fingerprint for _ in range(2)]
    changed = tiny_model("vit")
    with torch.no_grad():
        changed.head.bias[0] += 1e-6
    assert same[0] == same[1]
    assert trace(changed, tiny_images(1)).fingerprint != same[0]
    assert trace(tiny_model("deit"), tiny_images(1)).fingerprint != same[0]
    other_epsilon = tiny_model("vit")
    other_epsilon.norm.eps = 1e-3
    assert trace(other_epsilon, tiny_images(1)).fingerprint != same[0]


def test_images_of_another_shape_are_refused_with_both_shapes():
    graph = trace(tiny_model("vit"), tiny_images(1))
    with pytest.raises(ImageError, match=r"\[1, 16, 16\].*\[3, 16, 16\]"):
        graph(torch.zeros(1, 3, 16, 16))


class Branching(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


class OfTheImages(nn.Module):
    """Multiplies the images with themselves: there is no weight to quantize."""

    def forward(self, images):
        return nn.functional.linear(images.flatten(1), images.flatten(1)[:1])


@pytest.mark.parametrize(
    ("module", "message"),
    [(Branching(), "cannot be traced"), (OfTheImages(), "operation linear"), (nn.ReLU(), "logits")],
)
def test_a_model_that_does_not_trace_is_refused_in_words(module, message):
    with pytest.raises(ModelError, match=message):
        trace(module, torch.randn(1, 1, 16, 16))


class JoinedProjection(nn.Module):
    """Keeps its first weight itself and its second in a child, like nn.MultiheadAttention."""

    def __init__(self):
        super().__init__()
        self.joined = nn.Module()
        self.joined.weight = nn.Parameter(torch.randn(8, 256))
        self.joined.proj = nn.Linear(8, 5)

    def forward(self, images):
        hidden = nn.functional.linear(images.flatten(1), self.joined.weight)
        return self.joined.proj(nn.functional.gelu(hidden))


def test_a_weight_beside_other_layers_becomes_a_layer_of_its_own():
    images = torch.randn(2, 1, 16, 16)
    module = JoinedProjection()
    graph = trace(module, images)
    assert [layer.name for layer in graph.layers] == ["joined.linear", "joined.proj"]
    torch.testing.assert_close(graph(images), module(images))


def test_tracing_takes_no_random_numbers_and_counts_the_models_own_parameters():
    module, images = small_transformer("beit")  # F.linear with a bias that is put together
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    graph = trace(module, images)
    assert torch.equal(torch.rand(4), expected)
    assert graph.parameters == sum(parameter.numel() for parameter in module.parameters())


def test_layers_inside_what_cannot_be_traced_are_refused():
    """Timm declares some attentions untraceable; their layers would silently stay out of the table."""
    module = timm.create_model("convit_tiny", img_size=32, embed_dim=8, depth=1, num_heads=2, num_classes=5).eval()
    with pytest.raises(ModelError, match=r"blocks.0.attn \(GPSA\) cannot be traced"):
        trace(module, torch.randn(1, 3, 32, 32))


def test_images_that_do_not_fit_and_outputs_that_are_no_logits_are_refused():
    with pytest.raises(ModelError, match="does not run on the example images"):
        trace(tiny_model("vit"), torch.zeros(1, 3, 16, 16).double())

    class Pair(nn.Module):
        def forward(self, images):
            return images.flatten(1), images

    with pytest.raises(ModelError, match="must return logits"):
        trace(Pair(), torch.randn(1, 1, 4, 4))


class Masked(nn.Module):
    """Looks whether it got a mask before it uses it, as Hiera does."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 4, 4), nn.Linear(8, 5)

    def forward(self, images, mask=None):
        values = self.stem(images)
        if mask is not None:
            values = values * mask.view(1, 1, 4, 4)
        return self.head(values.mean((2, 3)))


def test_an_optional_argument_that_decides_a_branch_is_left_out():
    images = torch.randn(2, 1, 16, 16)
    module = Masked()
    graph = trace(module, images)
    assert [layer.name for layer in graph.layers] == ["stem", "head"]
    torch.testing.assert_close(graph(images), module(images))


class Failing(nn.Module):
    """Does something else while it is traced, which fails when it runs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 4, 4)

    def forward(self, images):
        values = self.stem(images)
        return values.view(3, -1) if isinstance(values, torch.fx.Proxy) else values.flatten(1)[:, :5]


def test_a_graph_that_does_not_run_names_the_operation():
    with pytest.raises(ModelError, match="the operation view in its forward fails"):
        trace(Failing(), torch.randn(2, 1, 16, 16))


def test_a_model_without_layers_is_refused():
    class Mean(nn.Module):
        def forward(self, images):
            return images.flatten(1)

    with pytest.raises(ModelError, match="no Linear"):
        trace(Mean(), torch.randn(1, 1, 4, 4))
