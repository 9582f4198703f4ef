"""Layer-wise relevance propagation: one forward pass, then the rules of every operation from the logits back."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mixqvit.errors import ImageError, MixQViTError, UnsupportedOperationError
from mixqvit.network.devices import images_at_once, in_parts
from mixqvit.network.graph import Graph, depends_on_images, operation_name
from mixqvit.relevance.residuals import Residual, residuals
from mixqvit.relevance.result import MEASURES, Relevance, merge
from mixqvit.relevance.rules import RULE_SETS, RuleSet
from mixqvit.relevance.rules.shared import Item, Layout, Product
from mixqvit.relevance.step import Parts, Rule, Step

__all__ = [
    "BATCH_SIZE",
    "in_precision",
    "propagate",
    "propagate_steps",
    "refuse_repeated_layers",
    "token_grid",
]

BATCH_SIZE = 8
"""Images propagated at once, where memory allows: one of DeiT-Tiny at 224 needs about 80 MB in double precision."""


def propagate(
    graph: Graph,
    pixels: Tensor,
    targets: Tensor | int | None = None,
    *,
    rules: str = "chefer",
    measure: str = "share",
    stabilizer: float = 1e-9,
    keep: Collection[str] | None = None,
    batch_size: int = BATCH_SIZE,
    precision: torch.dtype = torch.float64,
) -> Relevance:
    """Return the relevance of every layer, block and pixel for the explained class of each image.

    Neither the graph nor anybody's gradients are touched, so one graph can serve several threads. Images do not
    influence each other.

    Args:
        graph: The traced model.
        pixels: Images `[N, C, H, W]`.
        targets: The explained class of every image `[N]`, one class for all, or None for the predicted classes.
        rules: Name of the rule set, one of `RULE_SETS`: `chefer` or `attnlrp` (METHOD.md).
        measure: What a layer's relevance counts as, one of `MEASURES`.
        stabilizer: Added to every denominator; 1e-9 as published, 0 to conserve relevance exactly.
        keep: Names of the layers, or of any nodes of the graph, whose relevance is returned, the pixels
            (`graph.nodes[0].name`) among them; None for all layers.
        batch_size: Images propagated at once, where memory allows; changes nothing but the time.
        precision: What to compute in, on a private copy of the parameters if they have another one. Relevance is
            divided by outputs close to zero, so rounding is amplified: on DeiT-Tiny single precision changes the
            pixel relevance of some images entirely and the importance of single layers by tens of percent.

    Returns:
        The relevance of all images.

    Raises:
        UnsupportedOperationError: The model contains an operation that has no rule; raised before any work.
        ImageError: The images do not have the shape the model was traced with.
        MixQViTError: An argument is outside what it can be, or memory does not suffice for a single image.
    """
    steps = propagate_steps(
        graph,
        pixels,
        targets,
        rules=rules,
        measure=measure,
        stabilizer=stabilizer,
        keep=keep,
        batch_size=batch_size,
        precision=precision,
    )
    return merge(list(steps))


def propagate_steps(
    graph: Graph,
    pixels: Tensor,
    targets: Tensor | int | None = None,
    *,
    rules: str = "chefer",
    measure: str = "share",
    stabilizer: float = 1e-9,
    keep: Collection[str] | None = None,
    batch_size: int = BATCH_SIZE,
    precision: torch.dtype = torch.float64,
) -> Iterator[Relevance]:
    """Do the work of `propagate` one batch at a time.

    Arguments are checked when this is called, the work happens while it is iterated. With `keep=()` a batch leaves
    only a few numbers per layer and its maps behind.

    Returns:
        An iterator over the finished batches, for `merge`.

    Raises:
        UnsupportedOperationError: The model contains an operation that has no rule.
        ImageError: The images do not have the shape the model was traced with.
        MixQViTError: An argument is outside what it can be.
    """
    if rules not in RULE_SETS:
        raise MixQViTError(f"There is no rule set {rules!r}; choose one of {', '.join(RULE_SETS)}.")
    if measure not in MEASURES:
        raise MixQViTError(f"There is no measure {measure!r}; choose one of {', '.join(MEASURES)}.")
    if not 0 <= stabilizer < float("inf"):
        raise MixQViTError(f"The stabilizer must be zero or a small positive number, not {stabilizer}.")
    if batch_size < 1:
        raise MixQViTError(f"The batch size must be at least 1, not {batch_size}.")
    if len(pixels) == 0:
        raise MixQViTError("There is no image to explain; give at least one.")
    next(graph.walk(pixels[:1], [graph.nodes[0].name]))  # stops before the first operation: only checks the shape
    if not torch.isfinite(pixels).all():
        raise ImageError("An image has pixels that are not finite numbers; load it again.")
    plan = _plan(graph, RULE_SETS[rules], keep)
    classes = graph.task.question(targets, len(pixels))
    converted = in_precision(graph, precision)
    return _batches(converted, pixels, classes, plan, measure, stabilizer, batch_size)


def in_precision(graph: Graph, precision: torch.dtype) -> Graph:
    """Return the graph with parameters of this floating-point type: itself, or a copy if they have another one."""
    return graph.on(graph.device, precision)


@dataclass(frozen=True)
class _Plan:
    """What is known before the first image: the rule of every node, and which values and relevances to keep."""

    image_nodes: frozenset[str]
    rule_set: RuleSet
    rules: Mapping[str, Rule]
    read: frozenset[str]
    last_uses: Mapping[str, Sequence[str]]
    outputs: Mapping[str, str]  # node names by the name they are kept under
    blocks: Mapping[str, int]  # the index of the block that ends at a node
    residuals: Mapping[str, Residual]  # by the node that adds the branch


def refuse_repeated_layers(graph: Graph) -> None:
    """Make sure that every layer has one output, whose relevance is its own.

    Raises:
        UnsupportedOperationError: A layer is called several times.
    """
    repeated = next((layer for layer in graph.layers if layer.more_nodes), None)
    if repeated is not None:
        raise UnsupportedOperationError(
            f"The layer {repeated.name} is called {len(repeated.nodes)} times, and relevance is defined for one output "
            "of each layer. Allocate by sensitivity."
        )


def _plan(graph: Graph, rule_set: RuleSet, keep: Collection[str] | None) -> _Plan:
    refuse_repeated_layers(graph)
    image_nodes = depends_on_images(graph)
    nodes = [node for node in graph.nodes if node.name in image_nodes and node.op != "placeholder"]
    chosen, refused = {}, {}
    for node in nodes:
        name = operation_name(node, graph.module)
        rule = rule_set.rules.get(name)
        reason = "" if rule is None else rule.refusal(graph, node, image_nodes)
        if reason is None:
            chosen[node.name] = rule
        else:
            refused.setdefault(f"{name} {reason}".strip(), node)
    if refused:
        where = "; ".join(f"{what} (at {node.name})" for what, node in refused.items())
        raise UnsupportedOperationError(
            f"There is no relevance rule of {rule_set.name} for the operation {where}. The README lists the models "
            "that have all their rules."
        )
    read = {operand.name for node in nodes for operand in chosen[node.name].reads(node)}
    read |= {node.name for node in nodes if _is_read_twice(node, image_nodes)}
    last_use = {argument.name: node.name for node in graph.nodes for argument in node.all_input_nodes}
    last_uses: dict[str, list[str]] = {}
    for name, user in last_use.items():
        if name in image_nodes and name not in read:
            last_uses.setdefault(user, []).append(name)
    layer_nodes = {layer.name: layer.node for layer in graph.layers}
    # Layout may put the images along another dimension; the attention scale is skipped by the matmul rule.
    hidden = Layout | Item | Product
    known = {*layer_nodes, *(name for name, rule in chosen.items() if not isinstance(rule, hidden))}
    known.add(graph.nodes[0].name)
    unknown = [name for name in keep or () if name not in known]
    if unknown:
        raise MixQViTError(f"The relevance of {unknown[0]!r} cannot be kept; the model has no such layer.")
    outputs = {name: layer_nodes.get(name, name) for name in (layer_nodes if keep is None else keep)}
    return _Plan(
        image_nodes,
        rule_set,
        chosen,
        frozenset(read),
        last_uses,
        outputs,
        _block_outputs(graph, nodes),
        residuals(graph, image_nodes),
    )


def _is_read_twice(node: fx.Node, image_nodes: frozenset[str]) -> bool:
    readings = []
    for user in node.users:
        if user.name in image_nodes:  # a product of a value with itself reads it twice
            fx.map_arg((user.args, user.kwargs), readings.append)
    return readings.count(node) > 1


def _block_outputs(graph: Graph, nodes: Sequence[fx.Node]) -> dict[str, int]:
    """Name the last node of every block's own module."""
    paths = {
        layer.node: (layer.name.rpartition(".")[0].rpartition(".")[0], layer.block)
        for layer in graph.layers
        if layer.is_matmul and layer.block is not None
    }
    blocks = dict(paths.values())
    last = {}
    for node in nodes:
        for path in node.meta.get("nn_module_stack") or {}:
            if path in blocks:
                last[blocks[path]] = node.name
    return {name: block for block, name in sorted(last.items())}


def _batches(
    graph: Graph,
    pixels: Tensor,
    targets: Tensor | None,
    plan: _Plan,
    measure: str,
    stabilizer: float,
    batch_size: int,
) -> Iterator[Relevance]:
    def run(part: slice) -> Relevance:
        chosen = None if targets is None else targets[part]
        # Inside a function, so that the caller's gradient mode is back before the batch is handed over.
        return _propagate_batch(graph, pixels[part], chosen, plan, measure, stabilizer)

    most = images_at_once(graph, min(batch_size, len(pixels)), graph.layer_bytes)
    yield from in_parts(run, len(pixels), most, graph.device, "relevance propagation")


def _propagate_batch(
    graph: Graph, pixels: Tensor, targets: Tensor | None, plan: _Plan, measure: str, stabilizer: float
) -> Relevance:
    with torch.inference_mode(False), torch.no_grad():
        parameter = next(graph.module.parameters())
        values, shapes, logits = _forward(graph, pixels.detach().clone().to(parameter), plan)
        chosen = graph.task.explained(logits, targets)
        start = graph.task.start(logits, chosen)
        return _backward(graph, values, shapes, start, chosen, plan, measure, stabilizer)


def _forward(graph: Graph, pixels: Tensor, plan: _Plan) -> tuple[dict[str, Any], dict[str, torch.Size], Tensor]:
    """Return what the rules read, the shapes of all image-dependent tensors, and the logits."""
    values: dict[str, Any] = {graph.nodes[0].name: pixels}
    shapes: dict[str, torch.Size] = {}
    for node in graph.nodes:
        if node.op != "placeholder":
            values[node.name] = graph.compute(node, values)
        value = values[node.name]
        if node.name in plan.image_nodes and isinstance(value, Tensor):
            shapes[node.name] = value.shape
        for name in plan.last_uses.get(node.name, ()):
            del values[name]
    return values, shapes, values[graph.nodes[-1].name]


def _backward(
    graph: Graph,
    values: dict[str, Any],
    shapes: Mapping[str, torch.Size],
    start: Tensor,
    targets: Tensor,
    plan: _Plan,
    measure: str,
    stabilizer: float,
) -> Relevance:
    """Walk the nodes backwards; what several users send to one node adds up. Frees `values` on the way."""
    pixels, images = graph.nodes[0].name, len(start)
    arrived: dict[str, list[Tensor | Parts]] = {graph.nodes[-1].name: [start]}
    at_layers: dict[str, Mapping[str, Tensor]] = {}
    kept: dict[str, Tensor] = {}
    tokens: dict[int, Tensor] = {}
    patches: Tensor | None = None
    branches: dict[tuple[int, str], Tensor] = {}
    patch_embed = next((layer.node for layer in graph.layers if layer.kind == "patch_embed"), None)
    exits: dict[str, Tensor] = {}
    layer_nodes = {layer.node for layer in graph.layers}
    kept_nodes = set(plan.outputs.values())
    for node in reversed(graph.nodes[1:]):
        if node.name not in arrived:
            continue
        step = Step(graph, node, plan.image_nodes, values, shapes, images, stabilizer, plan.rule_set.signed)
        relevance, left = _gather(step, arrived.pop(node.name), plan.rule_set)
        if node.name in layer_nodes:
            flat = relevance.reshape(images, -1)
            at_layers[node.name] = {name: reduce(flat) for name, reduce in MEASURES.items()}
        if node.name in kept_nodes:
            windowed = relevance.shape[0] != images
            kept[node.name] = relevance.unflatten(0, (images, -1)) if windowed else relevance
        if node.name in plan.blocks:
            tokens[plan.blocks[node.name]] = token_grid(relevance.sum(-1), graph)
        if node.name == patch_embed:
            patches = relevance.sum(1)
        sent = plan.rules[node.name].send(step, relevance)
        if node.name in plan.residuals:
            residual = plan.residuals[node.name]
            taken = step.per_image(dict(sent.relevance)[residual.branch_node])
            branches[residual.block, residual.branch] = step.divide(taken, step.per_image(relevance))[0]
        for name, part in sent.relevance:
            if isinstance(part, Tensor):
                part = part.sum_to_size(shapes[name])  # an operand that was broadcast gets what all its copies get
            arrived.setdefault(name, []).append(part)
        for reason, amount in (*left.items(), *sent.exits.items()):
            exits[reason] = exits[reason] + amount if reason in exits else amount
        values.pop(node.name, None)
    at_pixels = sum(arrived[pixels])
    if pixels in kept_nodes:
        kept[pixels] = at_pixels
    return Relevance(
        outputs={name: kept[node] for name, node in plan.outputs.items()},
        tokens={block: tokens[block] for block in sorted(tokens)},
        patches=patches,
        pixels=at_pixels.sum(1),
        branches=dict(reversed(branches.items())),
        targets=targets,
        totals={name: {layer.name: at_layers[layer.node][name] for layer in graph.layers} for name in MEASURES},
        start=start.sum(1),
        exits=exits,
        measure=measure,
    )


def _gather(
    step: Step, relevances: Sequence[Tensor | Parts], rule_set: RuleSet
) -> tuple[Tensor | Parts, Mapping[str, Tensor]]:
    """Join what the users of a node sent to it."""
    if isinstance(relevances[0], dict):
        indices = {index for parts in relevances for index in parts}
        return {index: sum(parts[index] for parts in relevances if index in parts) for index in indices}, {}
    if len(relevances) == 1:
        return relevances[0], {}
    return rule_set.join(step, step.values[step.node.name], relevances)


def token_grid(tokens: Tensor, graph: Graph) -> Tensor:
    """Put one number per token on the grid of patches.

    Args:
        tokens: `[N, tokens]`, or `[N, H, W]` where the model keeps its tokens on a grid (Swin).
        graph: The traced model.

    Returns:
        `[N, h, w]` of the patches, without class, distillation and register tokens; `[N, tokens]` as it is where
        there is no such grid.
    """
    grid = next((layer.output_shape[2:] for layer in graph.layers if layer.kind == "patch_embed"), None)
    if grid is None or tokens.ndim != 2:
        return tokens
    height, width = grid
    if tokens.shape[1] >= height * width:
        return tokens[:, -height * width :].unflatten(1, (height, width))
    while 1 < tokens.shape[1] < height * width:
        height, width = height // 2, width // 2  # a hierarchical model halves its grid from stage to stage
    return tokens.unflatten(1, (height, width)) if tokens.shape[1] == height * width else tokens
