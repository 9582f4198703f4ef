"""The rules of AttnLRP (Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-wise Relevance Propagation").

arXiv 2402.05602, as METHOD.md states them. Shares are signed, biases take part, and the softmax is linearized: what
goes to biases, and what the linearization leaves over, are exits that are measured.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from mixqvit.network.graph import Graph
from mixqvit.relevance.rules.shared import SHARED, Sum, constant_exit, is_operand
from mixqvit.relevance.step import BIAS, SOFTMAX, ZERO_OUTPUT, Rule, Sent, Step

__all__ = ["ATTNLRP"]


class Linear(Rule):
    """ε-rule (eq. 8 of the paper): R_i = x_i Σ_j w_ji R_j / (z_j + ε sign z_j), the bias being one more input."""

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Share over the input's channels and the bias."""
        operation = step.operation
        return _affine(step, lambda x: F.linear(x, operation.weight), operation.bias, relevance)


class Convolution(Rule):
    """ε-rule, as for Linear; on pixels too."""

    def refusal(self, graph: Graph, node: fx.Node, image_nodes: frozenset[str]) -> str | None:
        """Refuse padding by anything but zeros."""
        mode = graph.module.get_submodule(node.target).padding_mode
        return None if mode == "zeros" else f"with {mode} padding"

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Share over the pixels or channels under each output and the bias."""
        operation = step.operation
        geometry = (operation.stride, operation.padding, operation.dilation, operation.groups)
        bias = None if operation.bias is None else operation.bias[:, None, None]
        return _affine(step, lambda x: F.conv2d(x, operation.weight, None, *geometry), bias, relevance)


class LayerNorm(Rule):
    """Identity for x / √Var with the variance as a constant (proposition 3.4), ε-rule for centring and γ, β.

    With the variance a constant all of it is one affine map, and the ε-rule on that map is the three rules in a row.
    """

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Share over the input's channels and β."""
        operation, value = step.operation, step.values[step.operands[0].name]
        axes = tuple(range(-len(operation.normalized_shape), 0))
        scale = (value.var(axes, unbiased=False, keepdim=True) + operation.eps).rsqrt()

        def normalize(x: Tensor) -> Tensor:
            normalized = (x - x.mean(axes, keepdim=True)) * scale
            return normalized if operation.weight is None else normalized * operation.weight

        return _affine(step, normalize, operation.bias, relevance)


class Softmax(Rule):
    """Taylor rule (proposition 3.1): R_i = x_i (R_i − s_i Σ_j R_j); the constant term keeps the rest."""

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Attribute to the logits; logits masked by −∞ get nothing."""
        (operand,) = step.operands
        value = step.values[operand.name]
        axis = _softmax_axis(step)
        weights = value.softmax(axis)
        share = value * (relevance - weights * relevance.sum(axis, keepdim=True))
        share = share.masked_fill(value.isinf(), 0)
        return Sent([(operand.name, share)], {SOFTMAX: step.per_image(relevance) - step.per_image(share)})


class Add(Sum):
    """ε-rule: every summand, a constant one too, gets its share of the elementwise split."""

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Split between the summands; those that are no activation leave."""
        summands = step.node.args
        values = [
            step.values[summand.name] if isinstance(summand, fx.Node) else relevance.new_tensor(summand)
            for summand in summands
        ]
        ratio, zero = step.divide(relevance, values[0] + values[1])
        sent, exits = [], {}
        if zero.any():
            exits[ZERO_OUTPUT] = step.per_image(relevance.masked_fill(~zero, 0))
        for summand, value in zip(summands, values, strict=True):
            share = (value * ratio).masked_fill(value.isinf(), 0)
            if is_operand(summand, step.image_nodes):
                sent.append((summand.name, share))
            else:
                reason = constant_exit(summand, step) if isinstance(summand, fx.Node) else BIAS
                exits[reason] = step.per_image(share)
        return Sent(sent, exits)


def _affine(step: Step, function: Callable[[Tensor], Tensor], bias: Tensor | None, relevance: Tensor) -> Sent:
    """Apply the ε-rule to z = function(x) + bias with a linear function."""
    (operand,) = step.operands
    value = step.values[operand.name]
    with torch.enable_grad():
        variable = value.detach().requires_grad_()
        linear = function(variable)
    output = linear.detach() if bias is None else linear.detach() + bias
    ratio, zero = step.divide(relevance, output)
    (gradient,) = torch.autograd.grad(linear, variable, ratio)
    exits = {}
    if bias is not None:
        exits[BIAS] = step.per_image(bias * ratio)
    if zero.any():
        exits[ZERO_OUTPUT] = step.per_image(relevance.masked_fill(~zero, 0))
    return Sent([(operand.name, value * gradient)], exits)


def _softmax_axis(step: Step) -> int:
    node = step.node
    if node.op == "call_module":
        return step.operation.dim
    return node.kwargs["dim"] if "dim" in node.kwargs else node.args[1]


ATTNLRP: Mapping[str, Rule] = {
    **SHARED,
    **dict.fromkeys(("Softmax", "softmax"), Softmax()),
    "LayerNorm": LayerNorm(),
    "Conv2d": Convolution(),
    "Linear": Linear(),
    "add": Add(),
}
"""The rules by operation name (`mixqvit.network.graph.operation_name`)."""
