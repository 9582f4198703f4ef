"""Single steps of propagation on traced toy modules."""

from collections.abc import Callable

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, fx, nn

from mixqvit.network.graph import Graph, operation_name
from mixqvit.relevance.rules import RULE_SETS
from mixqvit.relevance.step import Sent, Step


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return seeded normal numbers in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_of(
    module: nn.Module, inputs: dict[str, Tensor], operation: str, stabilizer: float = 0.0, signed: bool = False
) -> Step:
    """Trace a module whose arguments are activations and return the step of its last such operation."""
    traced = fx.GraphModule(module.double(), fx.Tracer(autowrap_functions=(apply_rot_embed_cat,)).trace(module))
    graph = Graph(traced, (), (), 0, 0)
    images = len(next(iter(inputs.values())))
    values, image_nodes = {}, set()
    for node in graph.nodes:
        values[node.name] = inputs[node.name] if node.op == "placeholder" else graph.compute(node, values)
        if node.op == "placeholder" or any(a.name in image_nodes for a in node.all_input_nodes):
            image_nodes.add(node.name)
    shapes = {name: values[name].shape for name in image_nodes if isinstance(values[name], Tensor)}
    node = [node for node in graph.nodes if operation_name(node, traced) == operation][-1]
    return Step(graph, node, frozenset(image_nodes), values, shapes, images, stabilizer, signed)


def send(
    module: nn.Module,
    inputs: dict[str, Tensor],
    operation: str,
    relevance: Tensor,
    stabilizer: float = 0.0,
    rules: str = "chefer",
) -> tuple[dict[str, Tensor], Sent]:
    """Send relevance back through that step; returns it by operand, and all that was sent."""
    rule_set = RULE_SETS[rules]
    step = step_of(module, inputs, operation, stabilizer, rule_set.signed)
    assert rule_set.rules[operation].refusal(step.graph, step.node, step.image_nodes) is None
    with torch.no_grad():  # as propagation does
        sent = rule_set.rules[operation].send(step, relevance)
    return dict(sent.relevance), sent


class Function(nn.Module):
    """One operation on one activation, with parts of its own."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Binary(Function):
    """One operation on two activations."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, y)
