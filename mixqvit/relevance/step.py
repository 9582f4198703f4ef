"""What every propagation rule is made of: one step back through one operation, and the division in it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from mixqvit.network.graph import Graph

__all__ = [
    "ATTENTION_BIAS",
    "BIAS",
    "CLASS_TOKEN",
    "PADDING",
    "POSITION_EMBEDDING",
    "SOFTMAX",
    "ZERO_OUTPUT",
    "Parts",
    "Rule",
    "Sent",
    "Step",
    "copied",
    "fan_out",
    "image_operands",
    "redistribute",
]

CLASS_TOKEN = "class token"
"""Exit: what reaches the learned tokens (class, distillation) put beside the patches."""
POSITION_EMBEDDING = "position embedding"
"""Exit: the position embedding's share of its residual add."""
PADDING = "padding"
"""Exit: what reaches the zeros that Swin pads its maps with."""
ZERO_OUTPUT = "zero output"
"""Exit: outputs with nothing to share in proportion to; for a Linear those without any positive product."""
BIAS = "bias"
"""Exit: the share of biases under the ε-rule (AttnLRP)."""
ATTENTION_BIAS = "attention bias"
"""Exit: the share of relative position biases and masks under the ε-rule (AttnLRP)."""
SOFTMAX = "softmax"
"""Exit: what the Taylor rule of softmax (AttnLRP) leaves to its constant term; of either sign."""

Parts = dict[int, Tensor]
"""Relevance of a node whose value is a tuple of tensors, by position."""


@dataclass(frozen=True)
class Step:
    """One operation on the way back.

    Attributes:
        graph: The traced model.
        node: The operation.
        image_nodes: Names of the nodes whose value depends on the pixels.
        values: Values by node name: all constants, and the operands of rules that read values.
        shapes: Shapes of the image-dependent tensors by node name.
        images: Number of images N; tensors hold them in order along their first dimension.
        stabilizer: Added to every denominator.
        signed: Whether the stabilizer takes the sign of the denominator (AttnLRP) or is added as it is (the published
            code of Chefer et al.).
    """

    graph: Graph
    node: fx.Node
    image_nodes: frozenset[str]
    values: Mapping[str, Any]
    shapes: Mapping[str, torch.Size]
    images: int
    stabilizer: float
    signed: bool = False

    @property
    def operands(self) -> list[fx.Node]:
        """The operands that depend on the images."""
        return image_operands(self.node, self.image_nodes)

    @property
    def operation(self) -> torch.nn.Module:
        """The module that the node calls."""
        return self.graph.module.get_submodule(self.node.target)

    def per_image(self, tensor: Tensor) -> Tensor:
        """Return the sum over everything that belongs to each image, `[N]`."""
        return tensor.reshape(self.images, -1).sum(1)

    def divide(self, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
        """Return numerator / (denominator + stabilizer), 0 where the denominator is 0, and the mask of those places."""
        stabilizer = self.stabilizer * denominator.sign() if self.signed else self.stabilizer
        stabilized = denominator + stabilizer
        zero = (denominator == 0) | (stabilized == 0)
        return (numerator / stabilized).masked_fill_(zero, 0), zero


@dataclass(frozen=True)
class Sent:
    """Where the relevance of one output went.

    Attributes:
        relevance: Pairs of an operand's name and its relevance.
        exits: Relevance per image `[N]` that left the network here, by reason.
    """

    relevance: Sequence[tuple[str, Tensor | Parts]]
    exits: Mapping[str, Tensor] = field(default_factory=dict)


def redistribute(
    step: Step, function: Callable[..., Tensor], inputs: Sequence[Tensor], relevance: Tensor
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Apply R_in = x ⊙ (∂z/∂x)ᵀ (R / z) to z = function(*inputs).

    Returns:
        The relevance of every input, and what left at outputs that are zero.
    """
    with torch.enable_grad():
        variables = [value.detach().requires_grad_() for value in inputs]
        outputs = function(*variables)
    ratio, zero = step.divide(relevance, outputs.detach())
    gradients = torch.autograd.grad(outputs, variables, ratio)
    shares = [value * gradient for value, gradient in zip(inputs, gradients, strict=True)]
    return shares, _left_at(zero, step, relevance)


def fan_out(step: Step, value: Tensor, relevances: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the relevance of a value that several operations read, x ⊙ Σ R_i / x, and what left at zeros.

    That is the plain sum, except for the stabilizer: the published code copies a value for its readers by an
    operation of its own, with the same division as everywhere.
    """
    total = sum(relevances[1:], start=relevances[0])
    ratio, zero = step.divide(total, value)
    return value * ratio, _left_at(zero, step, total)


def copied(step: Step, value: Tensor, relevances: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the relevance of a value that several operations read, the plain sum Σ R_i: nothing leaves."""
    return sum(relevances[1:], start=relevances[0]), {}


class Rule(ABC):
    """Sends the relevance of one kind of operation back to its operands."""

    def refusal(self, graph: Graph, node: fx.Node, image_nodes: frozenset[str]) -> str | None:
        """Say what about this node the rule does not cover; None where it applies."""
        return None if len(image_operands(node, image_nodes)) == 1 else "of several activations"

    def reads(self, node: fx.Node) -> Sequence[fx.Node]:
        """Return the nodes whose values `send` needs; of the others the shapes are enough."""
        return node.all_input_nodes

    @abstractmethod
    def send(self, step: Step, relevance: Tensor | Parts) -> Sent:
        """Return where the relevance of the output of `step.node` goes."""


def image_operands(node: fx.Node, image_nodes: frozenset[str]) -> list[fx.Node]:
    """Return the operands of a node that depend on the images."""
    return [argument for argument in node.all_input_nodes if argument.name in image_nodes]


def _left_at(zero: Tensor, step: Step, relevance: Tensor) -> dict[str, Tensor]:
    return {ZERO_OUTPUT: step.per_image(relevance.masked_fill(~zero, 0))} if zero.any() else {}
