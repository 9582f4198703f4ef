"""What layers compute of their operands is checked against the model."""

import pytest
from torch.nn import functional

from mixqvit.errors import ModelError
from mixqvit.network.operations import check_operations
from mixqvit.network.tracing import trace
from tests.tiny_models import tiny_images, tiny_model


@pytest.fixture
def graph():
    return trace(tiny_model("vit"), tiny_images(2))


def test_a_layer_that_computes_something_else_than_its_quantized_form_is_named(graph):
    images = tiny_images(2)
    layer = graph.by_name["blocks.1.mlp.fc1"]
    module = graph.operation(layer)
    module.forward = lambda values: functional.linear(values, module.weight, module.bias) * 2
    with pytest.raises(ModelError, match=r"blocks.1.mlp.fc1 \(Linear\) does not compute what can be quantized"):
        check_operations(graph, images, graph(images))


def test_a_graph_that_differs_from_the_model_elsewhere_is_refused(graph):
    images = tiny_images(2)
    check_operations(graph, images, graph(images))
    with pytest.raises(ModelError, match=r"On 2 image\(s\) the graph"):
        check_operations(graph, images, graph(images) + 1)
