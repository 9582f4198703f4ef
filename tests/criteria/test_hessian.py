"""Hessian traces against Hessians written out, and the scores made of them."""

import math

import pytest
import torch
from torch.nn import functional

from mixqvit.criteria import hessian, shared
from mixqvit.criteria.hawq_v2 import hawq_harms
from mixqvit.criteria.hessian import LayerTraces, Trace, TraceBatch, hessian_trace_steps, mean_traces
from mixqvit.criteria.perturbation import Perturbation, squared_perturbations
from mixqvit.network.bits import tied_bits
from mixqvit.network.tracing import trace
from tests.tiny_models import ARCHITECTURES, small_transformer, tiny_images, tiny_model


def written_out(graph, layer, image, label):
    """Return the Hessian of each operand and last of the layer's weight, if any, for one image `[1, C, H, W]`."""
    ((_, values),) = graph.walk(image, [layer.node])
    tensors = graph.operands(layer, values)
    if not layer.is_matmul:
        tensors = (*tensors, graph.weight(layer))

    def loss(*tensors):
        bias = () if layer.is_matmul else (graph.bias(layer),)
        output = torch.matmul(*tensors) if layer.is_matmul else functional.linear(*tensors, *bias)
        return functional.cross_entropy(graph.resume(values, layer.node, {layer.node: lambda *_: output}), label)

    blocks = torch.autograd.functional.hessian(loss, tensors, vectorize=True)
    return [blocks[index][index].reshape(tensor.numel(), -1) for index, tensor in enumerate(tensors)]


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("deit", ("blocks.1.attn.matmul1", "blocks.1.attn.proj", "head_dist")),
        ("swin", ("layers.1.blocks.0.attn.matmul2", "layers.1.blocks.0.attn.proj")),
        ("eva02", ("blocks.1.attn.q_proj", "blocks.1.attn.k_proj")),  # they read the same tensor
    ],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_products_are_those_of_hessians_written_out(architecture, names, monkeypatch):
    """With the same signs, Hutchinson's vᵀHv is known exactly; two probes, batches of two images and of one."""
    if architecture in ARCHITECTURES:
        module, pixels = tiny_model(architecture), tiny_images(3)
    else:
        module, pixels = small_transformer(architecture)
    graph, labels = trace(module, pixels), torch.tensor([4, 0, 2])
    signs = []

    def recorded(*arguments):
        signs.append(shared.random_signs(*arguments))
        return signs[-1]

    monkeypatch.setattr(hessian, "random_signs", recorded)
    for batch in hessian_trace_steps(graph, pixels, labels, probes=2):
        images = slice(batch.start, batch.start + batch.images)
        remaining = iter(signs)
        for layer in graph.layers:
            own = [(next(remaining), next(remaining)) for _ in range(2)]
            if layer.name not in names:
                continue
            found = [*batch.operands[layer.name]] + ([] if layer.is_matmul else [batch.weights[layer.name]])
            expected = torch.zeros(len(found), 2, dtype=torch.float64)
            pairs = zip(pixels[images].split(1), labels[images].split(1), strict=True)
            for position, (image, label) in enumerate(pairs):
                for index, square in enumerate(written_out(graph, layer, image, label)):
                    is_weight = index == 1 and not layer.is_matmul
                    for probe, vector in enumerate(own[index]):
                        part = vector if is_weight else vector.reshape(batch.images, -1)[position]
                        product = float(part.flatten() @ square @ part.flatten())
                        expected[index, probe] += product / len(square) / batch.images
            torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-8, atol=1e-14)
        drawn = torch.cat([tensor.flatten() for tensor in signs])
        assert drawn.abs().unique().tolist() == [1.0]
        assert abs(float(drawn.mean())) < 0.05
        signs.clear()


def test_batches_can_be_done_in_any_order_and_one_at_a_time():
    graph = trace(tiny_model("vit"), tiny_images(1))
    pixels = tiny_images(5)
    state = torch.get_rng_state()
    with torch.no_grad():
        whole = list(hessian_trace_steps(graph, pixels, seed=3))
        assert not torch.is_grad_enabled()
    assert [(batch.start, batch.images) for batch in whole] == [(0, 3), (3, 2)]
    assert list(hessian_trace_steps(graph, pixels, seed=3, finished=[0])) == whole[1:]
    assert list(hessian_trace_steps(graph, pixels, seed=3, finished=[0, 3])) == []
    assert mean_traces(reversed(whole)) == mean_traces(whole)
    assert list(hessian_trace_steps(graph, pixels, seed=4)) != whole
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in graph.module.parameters())


def test_memory_bounds_the_images_at_once(monkeypatch):
    monkeypatch.setattr(shared, "MEMORY_BYTES", 1)
    graph = trace(tiny_model("vit"), tiny_images(1))
    assert [batch.images for batch in hessian_trace_steps(graph, tiny_images(3))] == [1, 1, 1]


def test_labels_default_to_the_predicted_class():
    graph = trace(tiny_model("vit"), tiny_images(1))
    pixels = tiny_images(2)
    predicted = graph(pixels).argmax(dim=1)
    default = list(hessian_trace_steps(graph, pixels))
    assert default == list(hessian_trace_steps(graph, pixels, predicted))
    assert default != list(hessian_trace_steps(graph, pixels, (predicted + 1) % 5))


def test_means_weigh_batches_by_images_and_know_their_spread():
    batches = [
        TraceBatch(0, 3, {"a": (1.0, 3.0)}, {"a": ((4.0, 4.0),)}),
        TraceBatch(3, 1, {"a": (6.0, 6.0)}, {"a": ((8.0, 8.0),)}),
    ]
    found = mean_traces(batches)["a"]
    assert found.weight.mean == pytest.approx(3.0)
    assert found.operands[0].mean == pytest.approx(5.0)
    assert found.operands[0].standard_error == pytest.approx(math.sqrt(2 * ((0.75 * 1) ** 2 + (0.25 * 3) ** 2)))
    alone = mean_traces([TraceBatch(0, 1, {}, {"a": ((1.0, 3.0), (2.0, 2.0))})])["a"]
    assert alone.weight is None
    assert alone.operands == (Trace(2.0, 1.0), Trace(2.0, 0.0))
    assert mean_traces([TraceBatch(0, 1, {}, {"a": ((1.0,),)})])["a"].operands == (Trace(1.0, math.inf),)


def test_scores_are_sums_of_trace_times_perturbation():
    traces = {
        "embed": LayerTraces(Trace(2.0, 0.1), (Trace(10.0, 0.1),)),
        "fc": LayerTraces(Trace(2.0, 0.1), (Trace(-10.0, 0.1),)),
        "product": LayerTraces(None, (Trace(3.0, 0.1), Trace(5.0, 0.1))),
    }
    perturbations = [
        Perturbation("embed", {2: 4.0, 4: 1.0}, ({8: 0.5},)),
        Perturbation("fc", {2: 4.0, 4: 1.0}, ({2: 0.5, 4: 0.25},)),
        Perturbation("product", None, ({2: 4.0, 4: 1.0}, {2: 2.0, 4: 1.0})),
    ]
    assert hawq_harms(traces, perturbations) == {
        "embed": {(2, 8): 13.0, (4, 8): 7.0},
        "fc": {(2, 2): 8.0, (2, 4): 8.0, (4, 2): 2.0, (4, 4): 2.0},  # a negative trace counts as zero
        "product": {(2, 2): 22.0, (4, 4): 8.0},
    }


def test_scores_cover_every_tied_choice(calibration):
    graph, images = calibration.graph, tiny_images(2)
    traces = mean_traces(hessian_trace_steps(graph, images))
    harms = hawq_harms(traces, squared_perturbations(calibration, images, (2, 4)))
    assert list(harms) == [layer.name for layer in graph.layers]
    for layer in graph.layers:
        assert set(tied_bits(layer, (2, 4))) <= set(harms[layer.name])
        assert all(math.isfinite(harm) and harm >= 0 for harm in harms[layer.name].values())
