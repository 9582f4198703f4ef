"""The rules of Chefer, Gur & Wolf 2021 ("Transformer Interpretability Beyond Attention Visualization").

arXiv 2012.09838, as METHOD.md states them, with α = 1.
"""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, fx

from mixqvit.network.graph import Graph
from mixqvit.relevance.rules.shared import SHARED, Identity, Sum, constant_exit, is_operand, reaches_softmax
from mixqvit.relevance.step import ZERO_OUTPUT, Rule, Sent, Step, redistribute

__all__ = ["CHEFER"]


class Linear(Rule):
    """Linear with α = 1: shared in proportion to the positive products x⁺w⁺ and x⁻w⁻; the bias is ignored.

    Section 3.1 of the paper.
    """

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Share over the input's channels; outputs without any positive product keep their relevance."""
        value = step.values[step.operands[0].name]
        return _positive_products(step, value.clamp(min=0), value.clamp(max=0), F.linear, relevance)


class Convolution(Rule):
    """Convolution: the zᴮ (box) rule on pixels (Montavon et al. 2017), α = 1 as for Linear elsewhere.

    The box is the image's own minimum l and maximum h. The contributions x·w − l·w⁺ − h·w⁻ of METHOD.md are written
    as (x − l)·w⁺ + (x − h)·w⁻, which is the same and never negative through rounding.
    """

    def refusal(self, graph: Graph, node: fx.Node, image_nodes: frozenset[str]) -> str | None:
        """Refuse padding by anything but zeros."""
        mode = graph.module.get_submodule(node.target).padding_mode
        return None if mode == "zeros" else f"with {mode} padding"

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Share over the pixels or channels under each output."""
        (operand,) = step.operands
        value, operation = step.values[operand.name], step.operation
        if operand.op == "placeholder":
            low, high = value.amin((1, 2, 3), keepdim=True), value.amax((1, 2, 3), keepdim=True)
            positive, negative = value - low, value - high
        else:
            positive, negative = value.clamp(min=0), value.clamp(max=0)

        def convolve(inputs: Tensor, weight: Tensor) -> Tensor:
            geometry = (operation.stride, operation.padding, operation.dilation, operation.groups)
            return F.conv2d(inputs, weight, None, *geometry)

        return _positive_products(step, positive, negative, convolve, relevance)


class Add(Sum):
    """Residual add, its sums taken per image; a constant added to attention logits gets nothing.

    Section 3.2 of the paper, the normalization of sums. Each branch gets its share of the elementwise split, and is
    then rescaled by its |sum| share so that the total is kept. A position embedding, or a class token before anything
    was added to it, is a branch whose share leaves.
    """

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Split between the two branches, or keep everything on the activation."""
        branches = step.node.args
        constants = [branch for branch in branches if not is_operand(branch, step.image_nodes)]
        if constants and (not isinstance(constants[0], fx.Node) or reaches_softmax(step.node, step.graph)):
            return Sent([(step.operands[0].name, relevance)])
        values = [step.values[branch.name].expand_as(relevance) for branch in branches]
        ratio, _ = step.divide(relevance, values[0] + values[1])
        shares = [value * ratio for value in values]
        sums = [step.per_image(share) for share in shares]
        total, magnitude = step.per_image(relevance), sums[0].abs() + sums[1].abs()
        sent, exits = [], {}
        if (magnitude == 0).any():
            exits[ZERO_OUTPUT] = total.masked_fill(magnitude != 0, 0)
        for branch, share, share_sum in zip(branches, shares, sums, strict=True):
            portion = step.divide(share_sum.abs(), magnitude)[0] * total
            factor, _ = step.divide(portion, share_sum)
            if branch in constants:
                exits[constant_exit(branch, step)] = factor * share_sum
            else:
                rescaled = share.reshape(step.images, -1) * factor[:, None]
                sent.append((branch.name, rescaled.reshape(relevance.shape)))
        return Sent(sent, exits)


def _positive_products(
    step: Step,
    positive: Tensor,
    negative: Tensor,
    product: Callable[[Tensor, Tensor], Tensor],
    relevance: Tensor,
) -> Sent:
    """Share in proportion to positive·w⁺ and negative·w⁻ under one denominator."""
    weight = step.operation.weight
    raising, lowering = weight.clamp(min=0), weight.clamp(max=0)
    shares, exits = redistribute(
        step, lambda p, n: product(p, raising) + product(n, lowering), [positive, negative], relevance
    )
    return Sent([(step.operands[0].name, shares[0] + shares[1])], exits)


CHEFER: Mapping[str, Rule] = {
    **SHARED,
    **dict.fromkeys(("LayerNorm", "Softmax", "softmax"), Identity()),
    "Conv2d": Convolution(),
    "Linear": Linear(),
    "add": Add(),
}
"""The rules by operation name (`mixqvit.network.graph.operation_name`)."""
