"""Attribution maps from relevance and gradients of the attention (Chefer, Gur & Wolf 2021, eq. 13 and 14)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from mixqvit.errors import UnsupportedOperationError
from mixqvit.network.graph import Graph, depends_on_images, operation_name
from mixqvit.relevance.propagation import BATCH_SIZE, in_precision, propagate_steps
from mixqvit.relevance.result import Relevance

__all__ = [
    "ClassTokenAttentions",
    "attention_evidence",
    "attention_gradients",
    "attention_nodes",
    "class_token_attentions",
    "rollout",
    "transformer_attribution",
]


def transformer_attribution(
    graph: Graph,
    pixels: Tensor,
    targets: Tensor | int | None = None,
    *,
    stabilizer: float = 1e-9,
    batch_size: int = BATCH_SIZE,
    precision: torch.dtype = torch.float64,
) -> Tensor:
    """Return how much every patch supports the explained class, by rollout of gradient × relevance.

    Per block the mean over heads of max(0, ∂y_c/∂A ⊙ R_A), plus the identity, multiplied from the first block up
    without row normalization; the class token's row over the patches (METHOD.md).

    Args:
        graph: A traced model that reads its decision off a class token.
        pixels: Images `[N, C, H, W]`.
        targets: The explained class of every image `[N]`, one class for all, or None for the predicted classes.
        stabilizer: Added to every denominator of the relevance rules.
        batch_size: Images explained at once, where memory allows; changes nothing but the time.
        precision: What to compute in, see `propagate`.

    Returns:
        The attribution of the patches in reading order `[N, patches]`.

    Raises:
        UnsupportedOperationError: The model has no class token whose attention could be followed (Swin), or contains
            an operation that has no relevance rule.
        ImageError: The images do not have the shape the model was traced with.
        MixQViTError: An argument is outside what it can be, or memory does not suffice for a single image.
    """
    graph = in_precision(graph, precision)
    attentions = class_token_attentions(graph)
    steps = propagate_steps(
        graph,
        pixels,
        targets,
        stabilizer=stabilizer,
        keep=tuple(attentions.nodes.values()),
        batch_size=batch_size,
        precision=precision,
    )
    maps, done = [], 0
    for relevance in steps:
        batch = pixels[done : done + len(relevance.targets)]
        maps.append(rollout(attention_evidence(graph, batch, relevance, attentions), attentions))
        done += len(batch)
    return torch.cat(maps)


@dataclass(frozen=True)
class ClassTokenAttentions:
    """The attentions through which a class token gathers what it decides on.

    Attributes:
        nodes: Name of the node that holds A `[N, heads, tokens, tokens]`, by block.
        patches: Number of patches; they are the last tokens.
    """

    nodes: Mapping[int, str]
    patches: int


def class_token_attentions(graph: Graph) -> ClassTokenAttentions:
    """Return the attentions of a model that reads its decision off a class token.

    Raises:
        UnsupportedOperationError: The model has none, or its blocks do not all attend to the same tokens.
    """
    names = attention_nodes(graph)
    image_nodes = depends_on_images(graph)
    embedding = next((layer for layer in graph.layers if layer.kind == "patch_embed"), None)
    products = [layer for layer in graph.layers if layer.kind == "matmul2"]
    patches = embedding.output_shape[2] * embedding.output_shape[3] if embedding else 0
    same_tokens = len({layer.input_shape for layer in products}) == 1 and products[0].input_shape[0] == 1
    begins_with_token = any(
        node.name in image_nodes
        and operation_name(node, graph.module) == "cat"
        and node.all_input_nodes[0].name not in image_nodes
        for node in graph.nodes
    )
    if not (patches and same_tokens and begins_with_token and _reads_token(graph, image_nodes)):
        raise UnsupportedOperationError(
            "Transformer attribution follows the attention of a class token that decides, through blocks that all "
            "attend to the same tokens; this model is none. Use the token or pixel relevance of `propagate` instead."
        )
    return ClassTokenAttentions(dict(zip((layer.block for layer in products), names, strict=True)), patches)


def attention_evidence(
    graph: Graph, pixels: Tensor, relevance: Relevance, attentions: ClassTokenAttentions
) -> dict[int, Tensor]:
    """Return max(0, ∂y_c/∂A ⊙ R_A) by block, `[N, heads, tokens, tokens]`, from relevance kept at the attentions."""
    precision = next(graph.module.parameters()).dtype
    gradients = attention_gradients(graph, pixels.to(precision), relevance.targets)
    return {block: (gradients[name] * relevance.outputs[name]).clamp(min=0) for block, name in attentions.nodes.items()}


def rollout(evidence: Mapping[int, Tensor], attentions: ClassTokenAttentions) -> Tensor:
    """Multiply the evidence, averaged over heads plus the identity, from the first block up; `[N, patches]`."""
    product = None
    for found in evidence.values():
        block = found.mean(1)
        block = block + torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
        product = block if product is None else block @ product
    return product[:, 0, -attentions.patches :]


def attention_nodes(graph: Graph) -> tuple[str, ...]:
    """Return the names of the nodes that hold the attention A `[N, heads, tokens, tokens]`, one per block.

    Raises:
        UnsupportedOperationError: The model has an attention product whose first factor is not a softmax.
    """
    nodes = {node.name: node for node in graph.nodes}
    names = []
    for layer in graph.layers:
        if layer.kind == "matmul2":
            attention = nodes[layer.node].args[0]
            if operation_name(attention, graph.module).lower() != "softmax":
                raise UnsupportedOperationError(f"The attention of {layer.name} is not the output of a softmax.")
            names.append(attention.name)
    return tuple(names)


def attention_gradients(graph: Graph, pixels: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return ∂y_c/∂A of every attention `[N, heads, tokens, tokens]` for the classes `targets` `[N]`."""
    names = attention_nodes(graph)
    with torch.inference_mode(False), torch.enable_grad():
        logits, attentions = graph.run(pixels.detach().clone().requires_grad_(), keep=names)
        explained = graph.task.score(logits, targets).sum()
        gradients = torch.autograd.grad(explained, [attentions[name] for name in names])
    return dict(zip(names, gradients, strict=True))


def _reads_token(graph: Graph, image_nodes: frozenset[str]) -> bool:
    """Whether the logits are computed from token 0."""

    def picks_first(node: fx.Node) -> bool:
        index = node.args[1] if operation_name(node, graph.module) == "getitem" else None
        return isinstance(index, tuple) and index[:2] == (slice(None), 0)

    return any(node.name in image_nodes and picks_first(node) for node in graph.nodes)
