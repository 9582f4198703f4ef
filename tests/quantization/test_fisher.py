"""The Fisher diagonals against Jacobians, and the samples and weights made of them."""

import pytest
import torch

from mixqvit.network.tracing import trace
from mixqvit.quantization import fisher
from mixqvit.quantization.fisher import fisher_diagonals
from mixqvit.quantization.operands import balanced, operands_of, sampled_rows
from tests.tiny_models import small_transformer, tiny_images, tiny_model


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("vit_gray", ("blocks.0.attn.matmul1", "blocks.1.mlp.fc2")),
        ("eva02", ("blocks.0.attn.q_proj", "blocks.1.attn.v_proj")),  # one input for three layers
        ("swin_v2", ("layers.0.blocks.0.mlp.fc1",)),  # an input that the residual sum reads too
    ],
)
def test_the_diagonal_is_that_of_the_fisher_information(monkeypatch, architecture, names):
    """Exactly: Fᵢᵢ = Σ_y p_y (∂ log p_y / ∂zᵢ)², from a Jacobian; many probes come close to it."""
    monkeypatch.setattr(fisher, "PROBES", 400)
    module, images = small_transformer(architecture)
    graph = trace(module, images)
    found = fisher_diagonals(graph, images)
    for name in names:
        layer = graph.by_name[name]
        total = [0.0] * (1 + layer.is_matmul)
        for image in images.split(1):
            ((_, values),) = graph.walk(image, [layer.node])
            operands = graph.operands(layer, values)

            def log_probabilities(*operands, layer=layer, values=values):
                operation = torch.matmul if layer.is_matmul else graph.operation(layer).forward
                output = operation(*operands)
                return graph.resume(values, layer.node, {layer.node: lambda *_: output}).log_softmax(dim=1)[0]

            probabilities = log_probabilities(*operands).exp()
            jacobians = torch.autograd.functional.jacobian(log_probabilities, operands)
            for index, jacobian in enumerate(jacobians):
                weights = probabilities.reshape(-1, *[1] * (jacobian.dim() - 1))
                total[index] = total[index] + (weights * jacobian.square()).sum(dim=0) / len(images)
        for estimate, exact in zip(found[name].operands, total, strict=True):
            assert float((estimate - exact).norm() / exact.norm()) < 0.1


def test_windows_of_an_image_are_averaged_over_images_only():
    graph = trace(tiny_model("swin"), tiny_images(1))
    images = tiny_images(4)
    found = fisher_diagonals(graph, images)
    layer = next(layer for layer in graph.layers if layer.kind == "qkv")
    ((_, values),) = graph.walk(images, [layer.node])
    (operand,) = operands_of(graph, layer, graph.operands(layer, values), len(images), found[layer.name])
    assert operand.fisher.shape == (operand.values.shape[0] // 4, *operand.values.shape[1:])
    assert len(operand.row_weights) == len(operand.rows)
    torch.testing.assert_close(operand.row_weights.mean(), torch.ones((), dtype=torch.float64))
    assert len(found[layer.name].tokens) * 4 == len(operand.rows)


def test_gradients_stay_off_for_the_caller_and_the_model():
    graph = trace(tiny_model("vit"), tiny_images(1))
    with torch.no_grad():
        fisher_diagonals(graph, tiny_images(2))
        assert not torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in graph.module.parameters())


def test_a_weighted_sample_has_the_weighted_mean():
    rows = torch.arange(100.0).double()[:, None]
    weights = torch.linspace(0, 2, 100).double()
    sample = sampled_rows(rows, 5000, weights)
    expected = float((rows[:, 0] * weights).sum() / weights.sum())
    assert abs(float(sample.mean()) - expected) < 0.1
    assert torch.equal(sampled_rows(rows, 200), rows)
    assert len(sampled_rows(rows, 10)) == 10


def test_balanced_weights_are_half_uniform():
    found = balanced(torch.tensor([0.0, 0.0, 0.0, 4.0]))
    assert found.tolist() == [0.5, 0.5, 0.5, 2.5]
    assert balanced(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
