"""How much the network's output feels an error at each operand: the diagonal of the Fisher information.

To second order KL(p ‖ p + error) = ½ · eᵀ F e with F = Jᵀ (diag p - p pᵀ) J. Its diagonal is estimated with random
signs u (Hutchinson): the mean square of the gradient of uᵀ B y with B = diag √p - p √pᵀ, so that B Bᵀ = diag p - p pᵀ.
PTQ4ViT (arXiv 2111.12293) weighs quantization errors by squared gradients of the loss in the same spirit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mixqvit.network.devices import images_at_once, in_parts
from mixqvit.network.graph import Graph
from mixqvit.network.layers import Layer

__all__ = ["Fisher", "fisher_diagonals"]

PROBES = 2
_COPIES = 3  # tensors like each layer's operands and output: values, gradients and what is between the layers
BATCH = 4
"""Images that share a draw of random signs, and run at once where memory allows: their activations are kept for the
backward pass."""


@dataclass(frozen=True)
class Fisher:
    """Mean squared gradients at one layer, averaged over images and probes, not over positions.

    Attributes:
        operands: For each activation operand, shaped like one image's part of it.
        tokens: For a Linear the mean over channels of its output's, one number per token of an image; None otherwise,
            and where it is called several times.
    """

    operands: tuple[Tensor, ...]
    tokens: Tensor | None


def fisher_diagonals(graph: Graph, pixels: Tensor) -> Mapping[str, Fisher]:
    """Return the Fisher diagonals of all layers by name, from a backward pass per probe over images `[N, C, H, W]`."""
    sums: dict[str, list[Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    most = images_at_once(graph, BATCH, _COPIES * graph.layer_bytes)
    for batch in pixels.split(BATCH):
        # Drawn for the whole batch, so that the signs do not depend on how many images run at once.
        signs = [torch.randint(0, 2, (len(batch), graph.classes), generator=generator) for _ in range(PROBES)]
        run = partial(_of_part, graph, batch, signs)
        for part in in_parts(run, len(batch), most, graph.device, "calibration (squared gradients)"):
            for name, squares in part.items():
                known = sums.setdefault(name, [torch.zeros_like(square) for square in squares])
                for total, square in zip(known, squares, strict=True):
                    total += square
    found = {}
    for layer in graph.layers:
        calls = [[total / len(pixels) for total in sums[node]] for node in layer.nodes]
        is_linear = not layer.is_matmul and not layer.more_nodes and graph.weight(layer).dim() == 2
        tokens = calls[0][-1].mean(dim=-1).flatten() if is_linear else None
        found[layer.name] = Fisher(tuple(operand for *operands, _ in calls for operand in operands), tokens)
    return found


def _of_part(graph: Graph, pixels: Tensor, signs: Sequence[Tensor], part: slice) -> dict[str, list[Tensor]]:
    return _squared_gradients(graph, pixels[part], [own[part] for own in signs])


def _squared_gradients(graph: Graph, pixels: Tensor, signs: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Return the squared gradients of every operand and of the output of each layer by node, summed over the images.

    Args:
        graph: The traced model.
        pixels: Images `[B, C, H, W]`.
        signs: 0 or 1 at random `[B, classes]`, one for each probe.
    """
    seen: dict[str, tuple[Tensor, ...]] = {}
    with torch.enable_grad():
        operations = {node: _recorded(graph, layer, node, seen) for node, layer in graph.layer_of().items()}
        logits = graph.run(pixels.clone().requires_grad_(), operations)[0]
        root = graph.task.curvature_root(logits)
        names = list(seen)
        tensors = [tensor for name in names for tensor in seen[name]]
        sums: list[Tensor | None] = [None] * len(tensors)
        for probe, own in enumerate(signs):
            gradients = torch.autograd.grad(
                logits, tensors, root(own * 2 - 1), retain_graph=probe < len(signs) - 1, allow_unused=True
            )
            for index, (tensor, gradient) in enumerate(zip(tensors, gradients, strict=True)):
                square = torch.zeros_like(tensor) if gradient is None else gradient.square()
                # Windows are part of the leading dimension: the images come first.
                square = square.reshape(len(pixels), -1, *square.shape[1:]).sum(dim=0) / len(signs)
                sums[index] = square if sums[index] is None else sums[index] + square
    remaining = iter(sums)
    return {name: [next(remaining).detach() for _ in seen[name]] for name in names}


def _recorded(graph: Graph, layer: Layer, node: str, seen: dict[str, tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    """Return one of a layer's operations that also remembers its operands and its output."""

    def operation(*operands: Tensor) -> Tensor:
        # A factor that no image changes, such as the query of attention pooling, has gradients of its own.
        # A view of its own tells what flows back through this layer from what flows back through other readers.
        operands = tuple(o.view_as(o) if o.requires_grad else o.detach().requires_grad_() for o in operands)
        output = torch.matmul(*operands) if layer.is_matmul else graph.operation(layer).forward(*operands)
        seen[node] = (*operands, output)
        return output

    return operation
