"""Rules that both rule sets use: what only moves values, passes relevance on, or divides it like deep Taylor.

All but the identities are one general rule, deep Taylor decomposition's R_in = x ⊙ (∂z/∂x)ᵀ (R / z), on different
functions z of different inputs x (`redistribute`).
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mixqvit.network.graph import Graph, operation_name
from mixqvit.relevance.step import (
    ATTENTION_BIAS,
    CLASS_TOKEN,
    PADDING,
    POSITION_EMBEDDING,
    Parts,
    Rule,
    Sent,
    Step,
    image_operands,
    redistribute,
)

__all__ = [
    "SHARED",
    "Identity",
    "Item",
    "Layout",
    "Product",
    "Sum",
    "constant_exit",
    "is_operand",
    "reaches_softmax",
]


class Identity(Rule):
    """LayerNorm, GELU and softmax pass relevance on unchanged."""

    def reads(self, node: fx.Node) -> Sequence[fx.Node]:
        """No value matters."""
        return ()

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Pass everything to the one operand."""
        return Sent([(step.operands[0].name, relevance)])


class Product(Rule):
    """Elementwise product: scaling by a constant passes relevance on, a gate gives each activation half.

    Constants are the attention scale, LayerScale, the temperatures of Swin v2, the mean of DeiT's two heads. A gate
    (SwiGLU) is a bilinear product, halved like the attention products (uniform rule, AttnLRP, arXiv 2402.05602,
    proposition 3.3; the papers of Chefer et al. have no gates).
    """

    def refusal(self, graph: Graph, node: fx.Node, image_nodes: frozenset[str]) -> str | None:
        """Refuse a constant divided by an activation, and quotients of two activations."""
        if operation_name(node, graph.module) == "mul":
            return None
        by_constant = is_operand(node.args[0], image_nodes) and not is_operand(node.args[1], image_nodes)
        return None if by_constant else "by an activation"

    def reads(self, node: fx.Node) -> Sequence[fx.Node]:
        """No value matters."""
        return ()

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Divide equally between the activations."""
        factors = [factor for factor in step.node.args if is_operand(factor, step.image_nodes)]
        return Sent([(factor.name, relevance / len(factors)) for factor in factors])


class Layout(Rule):
    """Moving, repeating or cropping elements: the exact vector-Jacobian product of the operation."""

    @staticmethod
    def covers(name: str) -> bool:
        """Whether an operation of this name moves, repeats or crops elements."""
        return name in (*_LAYOUT, "getitem")

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
    """Linear maps without a weight: token selection, average pooling, rotary embedding: R_in = x ⊙ (∂z/∂x)ᵀ (R / z).

    Queries and keys go through their rotation into the attention product: that product's rule followed by this one is
    the product's rule for the keys and queries before the rotation.
    """

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
        """Refuse an index that is itself computed from the images, and parts of a tuple."""
        if operation_name(node.args[0], graph.module) in ("unbind", "chunk", "split") and isinstance(
            node.args[1], slice
        ):
            return "of several tensors of a tuple"
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


class Matmul(Rule):
    """Product of two activations Z = A·B: S = R / Z, R_A = A ⊙ (S·Bᵀ), R_B = B ⊙ (Aᵀ·S), each halved.

    Chefer et al. and AttnLRP (its uniform rule, proposition 3.3) agree on it. A constant factor, such as the learned
    query of attention pooling, is a weight and gets nothing.

    Z is the product before any scaling by a number: timm scales Q before the product, the published code scales the
    product, and only its Z gives the published stabilizer its size.
    """

    def refusal(self, graph: Graph, node: fx.Node, image_nodes: frozenset[str]) -> str | None:
        """Refuse out=."""
        return f"with {next(iter(node.kwargs))}=" if node.kwargs else None

    def reads(self, node: fx.Node) -> Sequence[fx.Node]:
        """The factors before scaling."""
        return [_unscaled(factor) for factor in node.args]

    def send(self, step: Step, relevance: Tensor) -> Sent:
        """Give each factor half, or all to the only activation."""
        factors = self.reads(step.node)
        shares, exits = redistribute(step, torch.matmul, [step.values[factor.name] for factor in factors], relevance)
        activations = sum(is_operand(factor, step.image_nodes) for factor in factors)
        sent = [
            (factor.name, share / activations)
            for factor, share in zip(factors, shares, strict=True)
            if is_operand(factor, step.image_nodes)
        ]
        return Sent(sent, exits)


class Sum(Rule):
    """What the rules for addition have in common."""

    def refusal(self, graph: Graph, node: fx.Node, image_nodes: frozenset[str]) -> str | None:
        """Refuse `alpha=`."""
        return f"with {next(iter(node.kwargs))}=" if node.kwargs else None


def is_operand(argument: Any, image_nodes: frozenset[str]) -> bool:
    """Whether an argument of a node is an activation that depends on the images."""
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


def reaches_softmax(node: fx.Node, graph: Graph) -> bool:
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


def constant_exit(constant: fx.Node, step: Step) -> str:
    """Name the exit of relevance that reaches a constant summand."""
    pending, seen = [constant], set()
    while pending:
        source = pending.pop()
        if source.op == "get_attr" and source.target.rpartition(".")[2] in ("cls_token", "dist_token", "reg_token"):
            return CLASS_TOKEN
        seen.add(source)
        # Constants may be expanded to the number of images; that is no way back to other constants.
        sources = {node for node in source.all_input_nodes if node.name not in step.image_nodes}
        pending.extend(sources - seen)
    return ATTENTION_BIAS if reaches_softmax(step.node, step.graph) else POSITION_EMBEDDING


_LAYOUT = (
    *("reshape", "view", "flatten", "permute", "transpose", "contiguous", "squeeze", "unsqueeze", "expand"),
    *("roll", "unbind", "chunk", "split", "window_partition", "window_reverse"),
)

SHARED: Mapping[str, Rule] = {
    **dict.fromkeys(("GELU", "gelu", "QuickGELU", "SiLU", "ReLU", "normalize"), Identity()),
    **dict.fromkeys(("mul", "truediv", "div"), Product()),
    **dict.fromkeys(_LAYOUT, Layout()),
    **dict.fromkeys(("mean", "AdaptiveAvgPool2d", "apply_rot_embed_cat"), Gradient()),
    **dict.fromkeys(("matmul", "bmm"), Matmul()),
    "cat": Concatenation(),
    "getitem": Item(),
    "pad": Padding(),
}
"""The rules that both sets share, by operation name (`mixqvit.network.graph.operation_name`)."""
