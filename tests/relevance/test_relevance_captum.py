import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from mixqvit.errors import ImageError, MixQViTError
from mixqvit.network.graph import Graph
from mixqvit.network.tracing import trace
from mixqvit.relevance.captum_methods import LAYER_METHODS, STEPS, layer_attribution_steps
from mixqvit.relevance.propagation import propagate
from mixqvit.relevance.result import MEASURES, LayerTotals

ARCHITECTURES = ("vit", "deit_distilled", "swin", "swin_padded")


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas hold for any number of steps."""
    monkeypatch.setitem(STEPS, "conductance", 5)
    monkeypatch.setitem(STEPS, "integrated gradients", 3)


def _attribute(graph: Graph, pixels: Tensor, method: str, **settings) -> dict[str, dict[str, Tensor]]:
    return _joined(layer_attribution_steps(graph, pixels, method=method, **settings))


def _joined(steps: Iterable[LayerTotals]) -> dict[str, dict[str, Tensor]]:
    parts = list(steps)
    return {
        measure: {name: torch.cat([part.totals[measure][name] for part in parts]) for name in layers}
        for measure, layers in parts[0].totals.items()
    }


def _assert_totals(found: dict[str, dict[str, Tensor]], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare with attributions by layer, `[N, ...]` or `[N * windows, ...]`."""
    assert list(found) == list(MEASURES)
    for measure, reduce in MEASURES.items():
        assert list(found[measure]) == list(expected)
        for name, attribution in expected.items():
            images = len(found[measure][name])
            totals, elements = reduce(attribution.reshape(images, -1)), attribution.reshape(images, -1).abs().sum(1)
            assert (found[measure][name] - totals).abs().max() <= tolerance * elements.max(), (measure, name)


def _run(graph: Graph, pixels: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs of all layers and the gradients of the summed class scores there, by layer name."""
    nodes = [layer.node for layer in graph.layers]
    with torch.enable_grad():
        logits, outputs = graph.run(pixels.clone().requires_grad_(), keep=nodes)
        score = logits.gather(1, targets[:, None]).sum()
        gradients = torch.autograd.grad(score, [outputs[node] for node in nodes])
    names = [layer.name for layer in graph.layers]
    return dict(zip(names, (outputs[node].detach() for node in nodes), strict=True)), dict(
        zip(names, gradients, strict=True)
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_x_activation_is_their_product(build, name: str) -> None:
    _, graph, pixels = build(name)
    outputs, gradients = _run(graph, pixels, graph(pixels).argmax(1))
    expected = {layer: outputs[layer] * gradients[layer] for layer in outputs}
    _assert_totals(_attribute(graph, pixels, "gradient x activation"), expected, 1e-12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_conductance_adds_gradients_times_changes_from_the_mean_image(build, name: str) -> None:
    _, graph, pixels = build(name)
    targets = torch.tensor([4, 0, 2])
    points = torch.linspace(0, 1, STEPS["conductance"] + 1)
    path = [_run(graph, float(point) * pixels, targets) for point in points]
    expected = {
        layer: sum(
            gradients[layer] * (after[layer] - before[layer]) for (before, gradients), (after, _) in pairwise(path)
        )
        for layer in path[0][0]
    }
    _assert_totals(_attribute(graph, pixels, "conductance", targets=targets), expected, 1e-12)


@pytest.mark.parametrize("name", ["deit_distilled", "swin_padded"])
def test_integrated_gradients_average_gradients_between_the_layers_outputs(build, name: str) -> None:
    _, graph, pixels = build(name)
    graph = replace(graph, layers=graph.layers[::3])
    targets = torch.tensor([4, 0, 2])
    points, weights = np.polynomial.legendre.leggauss(STEPS["integrated gradients"])
    outputs, _ = _run(graph, pixels, targets)
    baselines, _ = _run(graph, torch.zeros_like(pixels), targets)
    expected = {}
    for layer in graph.layers:
        start, change = baselines[layer.name], outputs[layer.name] - baselines[layer.name]
        mean = torch.zeros_like(change)
        for point, weight in zip((1 + points) / 2, weights / 2, strict=True):
            between = (start + point * change).requires_grad_()
            logits, _ = graph.run(pixels, {layer.node: lambda *_, value=between: value})
            mean += weight * torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), between)[0]
        expected[layer.name] = change * mean
    # Captum rounds the weights of the points to single precision.
    _assert_totals(_attribute(graph, pixels, "integrated gradients", targets=targets), expected, 1e-7)


@pytest.mark.parametrize("method", ["conductance", "integrated gradients"])
def test_attribution_of_a_cut_is_the_change_of_the_score(build, monkeypatch, method: str) -> None:
    _, graph, pixels = build("vit")
    monkeypatch.setitem(STEPS, method, {"conductance": 500, "integrated gradients": 40}[method])
    targets = graph(pixels).argmax(1)
    change = (graph(pixels) - graph(torch.zeros_like(pixels))).gather(1, targets[:, None])[:, 0].abs()
    graph = replace(graph, layers=(graph.layers[0], graph.layers[-1]))
    found = _attribute(graph, pixels, method, batch_size=1000)["share"]
    for layer, tolerance in {"head": 1e-7, "patch_embed.proj": 1e-2}.items():  # everything passes these two
        assert ((found[layer] - change) / change).abs().max() <= tolerance, layer


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_x_relevance_keeps_the_positive_part_of_the_product(build, name: str) -> None:
    _, graph, pixels = build(name)
    relevance = propagate(graph, pixels)
    _, gradients = _run(graph, pixels, relevance.targets)
    expected = {
        layer: (relevance.outputs[layer].reshape(gradients[layer].shape) * gradients[layer]).clamp(min=0)
        for layer in gradients
    }
    _assert_totals(_attribute(graph, pixels, "gradient x relevance", batch_size=4), expected, 1e-12)


@pytest.mark.parametrize("method", LAYER_METHODS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_images_do_not_influence_each_other_in_any_batch(build, name: str, method: str) -> None:
    _, graph, pixels = build(name)
    if method == "integrated gradients":
        graph = replace(graph, layers=graph.layers[::3])  # it takes every layer by itself
    together = _attribute(graph, pixels, method, batch_size=3 * (1 + STEPS.get(method, 1)))["absolute"]
    alone = _attribute(graph, pixels, method, batch_size=1)["absolute"]
    assert list(together) == [layer.name for layer in graph.layers]
    for layer, totals in together.items():
        assert (totals > 0).all()
        assert ((totals - alone[layer]) / totals).abs().max() <= 1e-10, layer


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_single_precision_is_enough(build, method: str) -> None:
    module, graph, pixels = build("vit")
    single = _attribute(trace(module.float(), pixels.float()), pixels.float(), method)
    double = _attribute(graph, pixels, method)
    assert single["absolute"]["head"].dtype == (torch.float64 if "relevance" in method else torch.float32)
    for measure, layers in double.items():
        found, expected = torch.stack(list(single[measure].values())), torch.stack(list(layers.values()))
        assert (found - expected).norm() <= 1e-4 * expected.norm(), measure


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_the_callers_objects_are_left_alone(build, method: str) -> None:
    _, graph, pixels = build("vit")
    before = graph.fingerprint
    images = pixels.clone().requires_grad_()
    images.grad = torch.ones_like(images)
    with torch.inference_mode():
        steps = layer_attribution_steps(graph, images, method=method, batch_size=1)
        next(steps)
        assert torch.is_inference_mode_enabled()
        graph.__dict__.pop("fingerprint")
        for module in graph.module.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks
        list(steps)
    assert graph.fingerprint == before
    assert torch.equal(images, pixels) and torch.equal(images.grad, torch.ones_like(images))
    assert all(not tensor.requires_grad and tensor.grad is None for tensor in graph.module.parameters())


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_images_made_in_inference_mode_are_taken(build, method: str) -> None:
    _, graph, pixels = build("vit")
    targets = torch.tensor([4, 0, 2])
    with torch.inference_mode():
        images, classes = pixels.clone(), targets.clone()
        found = _attribute(graph, images, method, targets=classes)["absolute"]
    for layer, totals in _attribute(graph, pixels, method, targets=targets)["absolute"].items():
        assert torch.equal(found[layer], totals), layer


@pytest.mark.slow
def test_threads_share_a_graph_while_another_one_traces(build) -> None:
    module, graph, pixels = build("vit")
    expected = {method: _attribute(graph, pixels, method)["share"] for method in LAYER_METHODS}
    found: dict[str, Sequence[dict[str, Tensor]]] = {}
    stop = threading.Event()

    def attribute(method: str) -> None:
        found[method] = [_attribute(graph, pixels, method)["share"] for _ in range(2)]

    def trace_on() -> None:
        while not stop.is_set():
            trace(module, pixels)

    tracing = threading.Thread(target=trace_on)
    threads = [threading.Thread(target=attribute, args=[method]) for method in LAYER_METHODS]
    for thread in (tracing, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    tracing.join()
    for method, layers in expected.items():
        assert len(found.get(method, ())) == 2, method
        for repeated in found[method]:
            for name, totals in layers.items():
                torch.testing.assert_close(repeated[name], totals, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_arguments_are_checked_before_any_work(build, method: str) -> None:
    _, graph, pixels = build("vit")
    with pytest.raises(MixQViTError, match="no measure 'sum'"):
        layer_attribution_steps(graph, pixels, method=method, measure="sum")
    with pytest.raises(MixQViTError, match="numbered 0 to 4"):
        layer_attribution_steps(graph, pixels, 5, method=method)
    with pytest.raises(MixQViTError, match="batch size"):
        layer_attribution_steps(graph, pixels, method=method, batch_size=0)
    with pytest.raises(MixQViTError, match="no image"):
        layer_attribution_steps(graph, pixels[:0], method=method)
    with pytest.raises(ImageError):
        layer_attribution_steps(graph, pixels[..., 1:], method=method)


def test_unknown_method_is_refused(build) -> None:
    _, graph, pixels = build("vit")
    with pytest.raises(MixQViTError, match=r"no layer method 'saliency'; choose .*conductance"):
        layer_attribution_steps(graph, pixels, method="saliency")
