"""Attribution maps from relevance and gradients of the attention (Chefer, Gur & Wolf 2021, eq. 13 and 14)."""

import torch
from torch import Tensor, fx

from mixqvit.errors import UnsupportedOperationError
from mixqvit.graph import Graph, depends_on_images, operation_name
from mixqvit.relevance.propagation import BATCH_SIZE, in_precision, propagate_steps

__all__ = ["attention_gradients", "attention_nodes", "transformer_attribution"]


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
        batch_size: Images explained at once; bounds the memory, changes nothing else.
        precision: What to compute in, see `propagate`.

    Returns:
        The attribution of the patches in reading order `[N, patches]`.

    Raises:
        UnsupportedOperationError: The model has no class token whose attention could be followed (Swin), or contains
            an operation that has no relevance rule.
        ImageError: The images do not have the shape the model was traced with.
        MixQViTError: An argument is outside what it can be.
    """
    graph = in_precision(graph, precision)
    attentions = attention_nodes(graph)
    patches = _patches(graph, attentions)
    steps = propagate_steps(
        graph,
        pixels,
        targets,
        stabilizer=stabilizer,
        keep=attentions,
        batch_size=batch_size,
        precision=precision,
    )
    maps = []
    for start, relevance in zip(range(0, len(pixels), batch_size), steps, strict=True):
        batch = pixels[start : start + batch_size].to(precision)
        gradients = attention_gradients(graph, batch, relevance.targets)
        rollout = None
        for name in attentions:
            block = (gradients[name] * relevance.outputs[name]).clamp(min=0).mean(1)
            block = block + torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
            rollout = block if rollout is None else block @ rollout
        maps.append(rollout[:, 0, -patches:])
    return torch.cat(maps)


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
        explained = logits.gather(1, targets.clone()[:, None]).sum()
        gradients = torch.autograd.grad(explained, [attentions[name] for name in names])
    return dict(zip(names, gradients, strict=True))


def _patches(graph: Graph, attentions: tuple[str, ...]) -> int:
    """Return the number of patches, after making sure that token 0 is a learned one and decides."""
    image_nodes = depends_on_images(graph)
    embedding = next((layer for layer in graph.layers if layer.kind == "patch_embed"), None)
    products = [layer for layer in graph.layers if layer.kind == "matmul2"]
    patches = embedding.output_shape[2] * embedding.output_shape[3] if embedding else 0
    same_tokens = len({layer.input_shape for layer in products}) == 1 and products[0].input_shape[0] == 1
    begins_with_token = any(
        operation_name(node, graph.module) == "cat" and node.args[0][0].name not in image_nodes for node in graph.nodes
    )
    if not (patches and same_tokens and begins_with_token and _reads_token(graph, image_nodes)):
        raise UnsupportedOperationError(
            "Transformer attribution follows the attention of a class token that decides; this model has none. "
            "Use the token or pixel relevance of `propagate` instead."
        )
    return patches


def _reads_token(graph: Graph, image_nodes: frozenset[str]) -> bool:
    """Whether the logits are computed from token 0."""

    def picks_first(node: fx.Node) -> bool:
        index = node.args[1] if operation_name(node, graph.module) == "getitem" else None
        return isinstance(index, tuple) and index[:2] == (slice(None), 0)

    return any(node.name in image_nodes and picks_first(node) for node in graph.nodes)
