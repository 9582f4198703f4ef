import pytest
import torch

from mixqvit.network.batching import repeat_values
from mixqvit.network.tracing import trace
from tests.tiny_models import TRANSFORMERS, small_transformer


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_run_goes_on_from_repeated_values_as_from_each_copy(name):
    module, pixels = small_transformer(name)
    graph = trace(module, pixels)
    stops = [layer.node for layer in graph.layers]
    with torch.no_grad():
        expected = graph(pixels)
        for node, values in graph.walk(pixels, stops):
            logits = graph.resume(repeat_values(graph, values, len(pixels), 4), node, {})
            assert torch.allclose(logits, expected.repeat(4, 1), rtol=1e-11, atol=1e-12)


def test_the_values_of_a_walk_are_where_another_walk_goes_on():
    module, pixels = small_transformer("swin")
    graph = trace(module, pixels)
    stops = [layer.node for layer in graph.layers]
    with torch.no_grad():
        walked = [(node, dict(values)) for node, values in graph.walk(pixels, stops)]
        later = [(node, dict(values)) for node, values in graph.walk(pixels, stops[3:], paused=walked[3])]
    assert [node for node, _ in later] == stops[3:]
    for (_, values), (_, again) in zip(walked[3:], later, strict=True):
        assert values.keys() == again.keys()
        assert all(torch.equal(values[key], again[key]) for key in values if isinstance(values[key], torch.Tensor))


def test_shapes_are_those_of_a_run():
    module, pixels = small_transformer("swin_padded")
    graph = trace(module, pixels)
    nodes = [node.name for node in graph.nodes]
    _, values = graph.run(pixels, keep=nodes)
    shapes = graph.shapes(len(pixels))
    for name, value in values.items():
        assert shapes[name] == (tuple(value.shape) if isinstance(value, torch.Tensor) else shapes[name])
    assert graph.shapes(1)[nodes[-1]] == (1, graph.classes)
