"""Propagation rules: one small class per operation, each sending the relevance of an output to its operands.

The rules are those of Chefer, Gur & Wolf 2021 ("Transformer Interpretability Beyond Attention Visualization",
arXiv 2012.09838) as METHOD.md states them. All but the identities are one general rule, deep Taylor decomposition's
R_in = x ⊙ (∂z/∂x)ᵀ (R / z), on different functions z of different inputs x (`redistribute`).
"""

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from mixqvit.graph import Graph, operation_name
from mixqvit.relevance.step import (
    CLASS_TOKEN,
    PADDING,
    POSITION_EMBEDDING,
    ZERO_OUTPUT,
    Parts,
    Rule,
    Sent,
    Step,
    divide,
    image_operands,
    redistribute,
)

__all__ = ["CHEFER", "Item", "Layout", "Scaling"]


class Identity(Rule):
    """LayerNorm, GELU and softmax pass relevance on unchanged."""

    def reads(self, node: fx.Node) -> Sequence[fx.Node]:
        """No value matters."""
        return ()

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Pass everything to the one operand."""
        return Sent([(step.operands[0].name, relevance)])


class Scaling(Identity):
    """Scaling by a constant: the attention scale, LayerScale, the mean of DeiT's two heads."""

    def refusal(self, graph: Graph, node: fx.Node, image_nodes: frozenset[str]) -> str | None:
        """Refuse products and quotients of two activations, and a constant divided by an activation."""
        if operation_name(node, graph.module) != "mul" and not _is_operand(node.args[0], image_nodes):
            return "of a constant by an activation"
        return super().refusal(graph, node, image_nodes)


class Layout(Rule):
    """Moving, repeating or cropping elements: the exact vector-Jacobian product of the operation."""

    def reads(self, node: fx.Node) -> Sequence[fx.Node]:
        """The Jacobian holds zeros and ones only, whatever the values."""
        return ()

    def send(self, step: Step, relevance: Tensor | Parts) -> Sent:
        """Undo the movement."""
        (operand,) = step.operands
        like = next(iter(relevance.values())) if isinstance(relevance, dict) else relevance
        with torch.enable_grad():
            variable = like.new_empty(step.shapes[operand.name]).requires_grad_()
            outputs = step.graph.compute(step.node, ChainMap({operand.name: variable}, step.values))
        if isinstance(relevance, dict):
            outputs, relevance = [outputs[index] for index in relevance], list(relevance.values())
        return Sent([(operand.name, torch.autograd.grad(outputs, variable, relevance)[0])])


class Padding(Layout):
    """Padding: like any layout, except that the padded zeros keep what reaches them."""

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Crop, and account for what was cropped away."""
        sent = super().send(step, relevance)
        inner = sent.relevance[0][1]
        if inner.shape == relevance.shape:
            return sent
        return Sent(sent.relevance, {PADDING: step.per_image(relevance) - step.per_image(inner)})


class Concatenation(Rule):
    """Concatenation: every part gets its own relevance; that of learned tokens leaves the network."""

    def refusal(self, graph: Graph, node: fx.Node, image_nodes: frozenset[str]) -> str | None:
        """Refuse joining along the images' own dimension."""
        return "along the first dimension" if _dimension(node) == 0 else None

    def reads(self, node: fx.Node) -> Sequence[fx.Node]:
        """The sizes are enough."""
        return ()

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Split the relevance like the values were joined."""
        parts = step.node.args[0]
        dimension = _dimension(step.node)
        shapes = [
            step.shapes[part.name] if part.name in step.image_nodes else step.values[part.name].shape for part in parts
        ]
        pieces = relevance.split([shape[dimension] for shape in shapes], dimension)
        sent, exits = [], {}
        for part, piece in zip(parts, pieces, strict=True):
            if part.name in step.image_nodes:
                sent.append((part.name, piece))
            else:
                exits[CLASS_TOKEN] = exits.get(CLASS_TOKEN, 0) + step.per_image(piece)
        return Sent(sent, exits)


class Gradient(Rule):
    """Token selection and average pooling: R_in = x ⊙ (∂z/∂x)ᵀ (R / z)."""

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Share in proportion to the selected or averaged values."""
        (operand,) = step.operands

        def function(value: Tensor) -> Tensor:
            return step.graph.compute(step.node, ChainMap({operand.name: value}, step.values))

        (share,), exits = redistribute(step, function, [step.values[operand.name]], relevance)
        return Sent([(operand.name, share)], exits)


class Item(Rule):
    """Indexing: one tensor of several, tokens picked by number (`Gradient`), or a crop (`Layout`)."""

    def refusal(self, graph: Graph, node: fx.Node, image_nodes: frozenset[str]) -> str | None:
        """Refuse an index that is itself computed from the images."""
        return None if image_operands(node, image_nodes) == [node.args[0]] else "with an activation as index"

    def reads(self, node: fx.Node) -> Sequence[fx.Node]:
        """Only picking tokens needs the values."""
        return node.all_input_nodes if _picks_tokens(node.args[1]) else ()

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Put the relevance back where the values were taken from."""
        source, index = step.node.args
        if source.name not in step.shapes:  # a tuple of tensors
            return Sent([(source.name, {index: relevance})])
        return (Gradient() if _picks_tokens(index) else Layout()).send(step, relevance)


class Linear(Rule):
    """Linear with α = 1: shared in proportion to the positive products x⁺w⁺ and x⁻w⁻; the bias is ignored."""

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


class Matmul(Rule):
    """Product of two activations Z = A·B: S = R / Z, R_A = A ⊙ (S·Bᵀ), R_B = B ⊙ (Aᵀ·S), each halved.

    Z is the product before any scaling by a number: timm scales Q before the product, the published code scales the
    product, and only its Z gives the published stabilizer its size.
    """

    def refusal(self, graph: Graph, node: fx.Node, image_nodes: frozenset[str]) -> str | None:
        """Refuse products with a constant."""
        both = all(_is_operand(argument, image_nodes) for argument in node.args)
        return None if both and not node.kwargs else "with a constant"

    def reads(self, node: fx.Node) -> Sequence[fx.Node]:
        """The factors before scaling."""
        return [_unscaled(factor) for factor in node.args]

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Give each factor half."""
        names = [factor.name for factor in self.reads(step.node)]
        shares, exits = redistribute(step, torch.matmul, [step.values[name] for name in names], relevance)
        return Sent([(name, share / 2) for name, share in zip(names, shares, strict=True)], exits)


class Add(Rule):
    """Residual add, its sums taken per image; a constant added to attention logits gets nothing.

    Each branch gets its share of the elementwise split, and is then rescaled by its |sum| share so that the total is
    kept. A position embedding is a branch whose share leaves the network.
    """

    def refusal(self, graph: Graph, node: fx.Node, image_nodes: frozenset[str]) -> str | None:
        """Refuse `alpha=`."""
        return f"with {next(iter(node.kwargs))}=" if node.kwargs else None

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Split between the two branches, or keep everything on the activation."""
        branches = step.node.args
        constants = [branch for branch in branches if not _is_operand(branch, step.image_nodes)]
        if constants and (not isinstance(constants[0], fx.Node) or _reaches_softmax(step.node, step.graph)):
            return Sent([(step.operands[0].name, relevance)])
        values = [step.values[branch.name].expand_as(relevance) for branch in branches]
        ratio, _ = divide(relevance, values[0] + values[1], step.stabilizer)
        shares = [value * ratio for value in values]
        sums = [step.per_image(share) for share in shares]
        total, magnitude = step.per_image(relevance), sums[0].abs() + sums[1].abs()
        sent, exits = [], {}
        if (magnitude == 0).any():
            exits[ZERO_OUTPUT] = total.masked_fill(magnitude != 0, 0)
        for branch, share, share_sum in zip(branches, shares, sums, strict=True):
            portion = divide(share_sum.abs(), magnitude, step.stabilizer)[0] * total
            factor, _ = divide(portion, share_sum, step.stabilizer)
            if branch in constants:
                exits[POSITION_EMBEDDING] = factor * share_sum
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


def _is_operand(argument: Any, image_nodes: frozenset[str]) -> bool:
    return isinstance(argument, fx.Node) and argument.name in image_nodes


def _picks_tokens(index: Any) -> bool:
    return isinstance(index, tuple) and any(isinstance(part, int) for part in index[1:])


def _unscaled(factor: fx.Node) -> fx.Node:
    """Look through scaling by a number, such as the attention scale."""
    name = getattr(factor.target, "__name__", "")
    scales = name in ("mul", "truediv") and isinstance(factor.args[1], int | float)
    return factor.args[0] if scales else factor


def _dimension(node: fx.Node) -> int:
    return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)


def _reaches_softmax(node: fx.Node, graph: Graph) -> bool:
    """Whether this sum is attention logits: its value goes on to a softmax through layout, scaling and adding."""
    on_the_way = (*_LAYOUT, "add", "mul", "truediv", "div")
    pending, seen = list(node.users), set()
    while pending:
        user = pending.pop()
        name = operation_name(user, graph.module)
        if name in ("softmax", "Softmax"):
            return True
        if name in on_the_way and user not in seen:
            seen.add(user)
            pending.extend(user.users)
    return False


_LAYOUT = (
    *("reshape", "view", "flatten", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "expand"),
    *("roll", "unbind", "chunk", "split", "window_partition", "window_reverse"),
)

CHEFER: Mapping[str, Rule] = {
    **dict.fromkeys(("LayerNorm", "GELU", "gelu", "Softmax", "softmax"), Identity()),
    **dict.fromkeys(("mul", "truediv", "div"), Scaling()),
    **dict.fromkeys(_LAYOUT, Layout()),
    **dict.fromkeys(("matmul", "bmm"), Matmul()),
    "Conv2d": Convolution(),
    "Linear": Linear(),
    "add": Add(),
    "cat": Concatenation(),
    "getitem": Item(),
    "mean": Gradient(),
    "pad": Padding(),
}
"""The rules of Chefer, Gur & Wolf 2021 by operation name (`mixqvit.graph.operation_name`)."""
