import threading
from dataclasses import replace

import pytest
import torch
from timm.models.cait import Cait
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mixqvit.errors import ImageError, MixQViTError, UnsupportedOperationError
from mixqvit.network.tracing import trace
from mixqvit.relevance.propagation import propagate, propagate_steps
from mixqvit.relevance.result import MEASURES, Relevance, merge
from mixqvit.relevance.rules import RULE_SETS


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


_EXITS = {
    "chefer": {"class token", "position embedding", "padding", "zero output"},
    "attnlrp": {"class token", "position embedding", "padding", "zero output", "bias", "attention bias", "softmax"},
}


@pytest.mark.parametrize("rules", list(RULE_SETS))
def test_relevance_is_conserved_counting_exits(build, model_name, rules) -> None:
    _, graph, pixels = build(model_name)
    relevance = propagate(graph, pixels, rules=rules, stabilizer=0.0)
    flowing = sum(amount.abs() for amount in relevance.exits.values()) + relevance.pixels.abs().sum((1, 2))
    assert (relevance.pixels.abs().sum((1, 2)) > 1e-3).all()
    assert (relevance.leak.abs() <= 1e-9 * flowing).all()
    assert set(relevance.exits) <= _EXITS[rules]


@pytest.mark.parametrize("name", ["vit", "deit_distilled", "swin_padded", "eva02"])
@pytest.mark.parametrize("rules", list(RULE_SETS))
def test_the_published_stabilizer_leaks_little(build, name, rules) -> None:
    _, graph, pixels = build(name)
    assert propagate(graph, pixels, rules=rules).leak.abs().max() <= 1e-3


def test_relevance_leaves_at_the_stated_exits_only(build) -> None:
    exits = {name: set(propagate(*build(name)[1:], stabilizer=0.0).exits) for name in ("vit", "swin_padded")}
    assert exits["vit"] == {"class token", "position embedding"}
    assert exits["swin_padded"] == {"padding", "zero output"}


@pytest.mark.parametrize("rules", list(RULE_SETS))
def test_images_do_not_influence_each_other(build, model_name, rules) -> None:
    _, graph, pixels = build(model_name)
    together = propagate(graph, pixels, rules=rules)
    alone = propagate(graph, pixels[1:2], rules=rules)  # the one with a neighbour on either side
    assert _relative(together.pixels[1], alone.pixels[0]) <= 1e-10
    for name, expected in alone.outputs.items():
        assert _relative(together.outputs[name][1], expected[0]) <= 1e-10, name
    for name, share in alone.shares.items():
        assert _relative(together.shares[name][1:2], share) <= 1e-10, name


def test_outputs_have_the_layers_shape_per_image(build, model_name) -> None:
    _, graph, pixels = build(model_name)
    relevance = propagate(graph, pixels)
    assert list(relevance.outputs) == list(relevance.importance) == [layer.name for layer in graph.layers]
    for layer in graph.layers:
        windows = layer.output_shape[:1] if layer.output_shape[0] > 1 else ()
        assert relevance.outputs[layer.name].shape == (3, *windows, *layer.output_shape[1:])


def test_token_maps_are_block_outputs_summed_over_channels(build) -> None:
    _, graph, pixels = build("deit_distilled")
    relevance = propagate(graph, pixels, keep=["add_2", "add_4"])  # the second residual add of either block
    for block, name in enumerate(("add_2", "add_4")):
        expected = relevance.outputs[name].sum(2)[:, 2:].reshape(3, 4, 4)
        torch.testing.assert_close(relevance.tokens[block], expected)
    swin = propagate(*build("swin")[1:])
    assert [tuple(tokens.shape) for tokens in swin.tokens.values()] == [(3, 8, 8)] * 2 + [(3, 4, 4)] * 2


@pytest.mark.parametrize("measure", list(MEASURES))
def test_importance_is_the_mean_share(build, measure) -> None:
    _, graph, pixels = build("swin")
    relevance = propagate(graph, pixels, measure=measure)
    raw = {}
    for name, output in relevance.outputs.items():
        rows = []
        for image in output:
            rows.append(
                {
                    "share": abs(float(image.sum())),
                    "absolute": float(image.abs().sum()),
                    "positive": float(image[image > 0].sum()),
                }[measure]
            )
        raw[name] = rows
    for name, importance in relevance.importance.items():
        expected = sum(raw[name][i] / sum(rows[i] for rows in raw.values()) for i in range(3)) / 3
        assert importance == pytest.approx(expected, rel=1e-9)
    assert sum(relevance.importance.values()) == pytest.approx(1)
    other = replace(propagate(graph, pixels, measure="share"), measure=measure)
    assert other.importance == relevance.importance


def test_measures_of_relevance_that_cancels() -> None:
    relevance = torch.tensor([[1.0, -3.0], [2.0, -1.0]])
    found = {name: measure(relevance).tolist() for name, measure in MEASURES.items()}
    assert found == {"share": [2.0, 1.0], "absolute": [4.0, 3.0], "positive": [1.0, 2.0]}


def test_targets_are_predicted_given_once_or_given_per_image(build) -> None:
    _, graph, pixels = build("vit")
    predicted = graph(pixels).argmax(1)
    assert torch.equal(propagate(graph, pixels).targets, predicted)
    per_image = propagate(graph, pixels, torch.tensor([0, 4, 2]))
    assert per_image.targets.tolist() == [0, 4, 2]
    assert torch.equal(per_image.outputs["head"], torch.eye(5, dtype=torch.float64)[[0, 4, 2]])
    assert torch.equal(propagate(graph, pixels, 4).pixels[1], per_image.pixels[1])


def test_steps_finish_batches_one_by_one_and_merge_to_the_whole(build) -> None:
    _, graph, pixels = build("swin_padded")
    whole = propagate(graph, pixels)
    steps = propagate_steps(graph, pixels, batch_size=2)
    first = next(steps)
    assert len(first.pixels) == 2
    joined = merge([first, *steps])
    torch.testing.assert_close(joined.pixels, whole.pixels, rtol=1e-8, atol=1e-12)
    assert joined.importance == pytest.approx(whole.importance, rel=1e-8)
    torch.testing.assert_close(joined.leak, whole.leak, rtol=0, atol=1e-10)
    with pytest.raises(MixQViTError, match="not one batch"):
        merge([])
    with pytest.raises(MixQViTError, match="cannot be joined"):
        merge([first, replace(first, measure="positive")])


@pytest.mark.parametrize("name", ["vit", "swin", "dinov3", "swin_v2"])
def test_single_precision_graphs_are_explained_in_double(build, name) -> None:
    module, _, pixels = build(name)
    module, pixels = module.float(), pixels.float()
    found = propagate(trace(module, pixels), pixels)
    expected = propagate(trace(module.double(), pixels.double()), pixels.double())
    assert found.pixels.dtype == torch.float64
    assert _relative(found.pixels, expected.pixels) <= 1e-6


def test_nothing_of_the_caller_is_touched(build) -> None:
    _, graph, pixels = build("deit_distilled")
    state = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    expected = propagate(graph, pixels)
    pixels = pixels.requires_grad_()
    pixels.sum().backward()
    gradient = pixels.grad.clone()
    with torch.no_grad():
        for _ in propagate_steps(graph, pixels, batch_size=1):
            assert not torch.is_grad_enabled()
    found = propagate(graph, pixels)
    assert torch.is_grad_enabled()
    assert torch.equal(pixels.grad, gradient)
    assert not found.pixels.requires_grad
    assert all(torch.equal(tensor, state[name]) for name, tensor in graph.module.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in graph.module.parameters())
    assert not any(part._forward_hooks or part._backward_hooks for part in graph.module.modules())
    with torch.inference_mode():
        in_inference = propagate(graph, pixels.detach() * 1.0)
    for relevance in (found, in_inference):
        assert torch.equal(relevance.pixels, expected.pixels)


def test_deep_models_take_time_in_proportion_to_their_depth() -> None:
    """The search for what a constant is made of must not walk every path through the network."""
    module = Cait(img_size=16, patch_size=8, num_classes=5, embed_dim=8, depth=24, num_heads=2, init_values=0.1)
    pixels = torch.randn(1, 3, 16, 16)
    assert "class token" in propagate(trace(module, pixels), pixels, keep=()).exits


class _Toy(nn.Module):
    """Two layers with something in between."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 6), nn.Linear(6, 5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x.flatten(1))))


@pytest.mark.parametrize("rules", list(RULE_SETS))
@pytest.mark.parametrize(
    "between",
    [lambda x: x * x, lambda x: x + x, lambda x: x * x.mean(1, keepdim=True), lambda x: x + x.mean(1, keepdim=True)],
    ids=["square", "double", "broadcast gate", "broadcast sum"],
)
def test_operands_that_are_read_twice_or_broadcast_keep_relevance_conserved(between, rules) -> None:
    pixels = torch.randn(3, 3, 2, 2, dtype=torch.float64)
    graph = trace(_Toy(between).double(), pixels)
    relevance = propagate(graph, pixels, rules=rules, stabilizer=0.0)
    flowing = sum(amount.abs() for amount in relevance.exits.values()) + relevance.pixels.abs().sum((1, 2))
    assert (relevance.leak.abs() <= 1e-9 * flowing).all()


def test_a_part_of_a_tuple_is_refused_by_name() -> None:
    pixels = torch.randn(1, 3, 2, 2)
    graph = trace(_Toy(lambda x: torch.cat(x.chunk(3, 1)[0:3], 1)), pixels)
    with pytest.raises(UnsupportedOperationError, match="getitem of several tensors"):
        propagate(graph, pixels)


def test_threads_share_a_graph(build) -> None:
    _, graph, pixels = build("vit")
    alone = [propagate(graph, pixels[index : index + 1]) for index in range(3)]
    found: dict[int, Relevance] = {}

    def work(index: int) -> None:
        for _ in range(3):
            found[index] = propagate(graph, pixels[index : index + 1])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        assert torch.equal(found[index].pixels, alone[index].pixels)


def test_an_operation_without_a_rule_is_refused_by_name_before_any_work(build, monkeypatch) -> None:
    module, _, pixels = build("vit")

    class Clipped(nn.Module):
        def __init__(self, model: VisionTransformer) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return torch.clamp(self.model(x), -30, 30)

    graph = trace(Clipped(module), pixels)
    monkeypatch.setattr(type(graph), "compute", lambda *arguments: pytest.fail("work started"))
    with pytest.raises(UnsupportedOperationError, match="clamp"):
        propagate_steps(graph, pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": 5}, "numbered 0 to 4"),
        ({"targets": -1}, "numbered 0 to 4"),
        ({"targets": torch.tensor([1, 2])}, "3 images need 3"),
        ({"targets": torch.tensor([0.5, 1, 2])}, "whole numbers"),
        ({"rules": "lrp"}, "rule set 'lrp'"),
        ({"measure": "mean"}, "measure 'mean'"),
        ({"stabilizer": -1.0}, "stabilizer"),
        ({"batch_size": 0}, "batch size"),
        ({"keep": ["blocks.7.attn.qkv"]}, "blocks.7.attn.qkv"),
        ({"keep": ["permute"]}, "permute"),
    ],
)
def test_bad_arguments_are_refused_at_once(build, arguments, message) -> None:
    _, graph, pixels = build("vit")
    with pytest.raises(MixQViTError, match=message):
        propagate_steps(graph, pixels, **arguments)


def test_bad_images_are_refused_at_once(build) -> None:
    _, graph, pixels = build("vit")
    with pytest.raises(ImageError):
        propagate_steps(graph, pixels[:, :, :8])
    with pytest.raises(MixQViTError, match="no image"):
        propagate_steps(graph, pixels[:0])
    pixels[1, 0, 3, 3] = torch.nan
    with pytest.raises(ImageError, match="not finite"):
        propagate_steps(graph, pixels)


def test_a_constant_image_has_no_relevance_at_its_pixels(build) -> None:
    _, graph, pixels = build("vit")
    relevance = propagate(graph, torch.full_like(pixels[:1], 0.5), stabilizer=0.0)
    assert torch.equal(relevance.pixels, torch.zeros_like(relevance.pixels))
    assert relevance.exits["zero output"].abs() > 1e-3
    assert relevance.leak.abs().max() <= 1e-9
