import pytest
import torch

from mixqvit.errors import UnsupportedOperationError
from mixqvit.network.tracing import trace
from mixqvit.relevance.attribution import attention_gradients, attention_nodes, transformer_attribution
from mixqvit.relevance.propagation import propagate


@pytest.mark.parametrize("name", ["vit", "deit3", "deit_distilled"])
def test_rollout_of_gradient_times_relevance(build, name) -> None:
    _, graph, pixels = build(name)
    targets = torch.tensor([1, 0, 3])
    found = transformer_attribution(graph, pixels, targets, batch_size=2)
    attentions = attention_nodes(graph)
    relevance = propagate(graph, pixels, targets, keep=attentions).outputs
    gradients = attention_gradients(graph, pixels, targets)
    for image in range(3):
        tokens = relevance[attentions[0]].shape[-1]
        rollout = torch.eye(tokens, dtype=torch.float64)
        for attention in attentions:
            heads = [
                (gradients[attention][image, head] * relevance[attention][image, head]).clamp(min=0)
                for head in range(2)
            ]
            rollout = (torch.eye(tokens, dtype=torch.float64) + sum(heads) / 2) @ rollout
        torch.testing.assert_close(found[image], rollout[0, tokens - 16 :], rtol=1e-8, atol=1e-12)


def test_attention_gradients_are_the_slope_of_the_explained_logit(build) -> None:
    _, graph, pixels = build("vit")
    name = attention_nodes(graph)[0]
    gradient = attention_gradients(graph, pixels[:1], torch.tensor([2]))[name]
    _, kept = graph.run(pixels[:1], keep=[name])
    step = torch.zeros_like(kept[name])
    step[0, 1, 3, 5] = 1e-6
    up, down = (graph.run(pixels[:1], {name: lambda _, s=sign: kept[name] + s * step})[0] for sign in (1, -1))
    slope = float((up - down)[0, 2]) / 2e-6
    assert float(gradient[0, 1, 3, 5]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["swin", "vit_pooled"])
def test_models_without_a_deciding_class_token_are_refused(build, name) -> None:
    _, graph, pixels = build(name)
    with pytest.raises(UnsupportedOperationError, match="class token"):
        transformer_attribution(graph, pixels)


@pytest.mark.parametrize(("name", "pooling"), [("vit", "avg"), ("vit_pooled", "token")])
def test_a_class_token_must_exist_and_decide(build, name, pooling) -> None:
    module, _, pixels = build(name)
    module.global_pool = pooling
    with pytest.raises(UnsupportedOperationError, match="class token"):
        transformer_attribution(trace(module, pixels), pixels)
