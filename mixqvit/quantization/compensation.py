"""Closed-form compensation of quantization errors at given bits, without training.

The calibration images run through the network twice side by side, in full precision and quantized; every layer is
corrected for what the layers before it did, then rounded, and the quantized run goes on with it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from mixqvit.network.bits import FULL_PRECISION, BitsPerLayer
from mixqvit.network.graph import Graph, Values, operation_name
from mixqvit.network.layers import Layer
from mixqvit.quantization.operands import balanced
from mixqvit.quantization.operations import PreparedWeight, QuantizedLayer, QuantizedOperation
from mixqvit.quantization.paused_runs import (
    PausedRun,
    PausedRuns,
    latest_paused_run,
    layers_before,
    pause_key,
    pause_nodes,
    walk_from_paused,
)
from mixqvit.quantization.quantizers.uniform import UniformQuantizer
from mixqvit.quantization.recipes import Compensation

__all__ = ["compensate", "compensated_rounding", "ridge_correction"]

RIDGE = 8.0
"""Ridge of the regression, in units of the mean diagonal of the inputs' covariance."""

DAMPING = 0.1
"""Added to the Gram matrix of the rounding, in units of its mean diagonal."""

_COLUMNS = 32
_EXACT, _COMPENSATED = "exact", "compensated"  # names of paused runs over the calibration images


def compensate(
    graph: Graph,
    pixels: Tensor,
    operations: Mapping[str, QuantizedOperation],
    bits: BitsPerLayer,
    token_weights: Mapping[str, Tensor | None],
    fit_weight: Callable[[Tensor, int], UniformQuantizer],
    chosen: Compensation,
    paused_runs: PausedRuns | None = None,
) -> dict[str, QuantizedOperation]:
    """Return the operations with compensated weights and biases.

    Layers that are called several times keep theirs: an earlier call changes what a later one reads.

    Args:
        graph: The traced model.
        pixels: Calibration images `[N, C, H, W]`.
        operations: Quantized operations by graph node, uncompensated.
        bits: (weight bits, activation bits) per layer.
        token_weights: How much each token of an image counts, by layer; None for layers that are left alone.
        fit_weight: From a weight and a bit-width to its quantizer.
        chosen: Which corrections to make.
        paused_runs: Paused runs of earlier calls with the same arguments but other bits: what comes before the first
            layer that changed is taken from there.
    """
    done = dict(operations)
    residuals = _residuals(graph)
    for layer, exact, quantized in _side_by_side(graph, pixels, operations, bits, done, paused_runs):
        operation = operations[layer.node]
        (inputs,), (own_inputs,) = graph.operands(layer, exact), graph.operands(layer, quantized)
        target = graph.operation(layer).forward(inputs)
        if layer.node in residuals:
            # What the layer adds to may be wrong already; it can make up for that too.
            residual = residuals[layer.node]
            target = target + exact[residual] - quantized[residual]
        if operation.convolution is not None:
            if chosen.bias:
                done[layer.node] = _with_corrected_bias(operation, target - operation(own_inputs))
            continue
        quantizer = operation.input_quantizer
        rows = (own_inputs if quantizer is None else quantizer(own_inputs)).flatten(0, -2)
        weights = token_weights[layer.name]
        # The head sees one token an image: too few to learn anything from but the rounding.
        is_head = layer.kind == "head"
        weights = None if weights is None or is_head else balanced(weights).repeat(len(pixels))
        weight, bias = graph.weight(layer), graph.bias(layer)
        if quantizer is not None:
            weight, bias = quantizer.fold(weight, bias)
        done[layer.node] = QuantizedLayer(
            _compensated(rows, target.flatten(0, -2), weights, weight, bias, bits[layer.name][0], fit_weight, chosen),
            quantizer,
        )
    return done


def _with_corrected_bias(operation: QuantizedLayer, error: Tensor) -> QuantizedLayer:
    """Return a convolution whose bias makes up for the mean of an output error `[B, out, H, W]`."""
    prepared = operation.prepared
    if prepared.bias is None:
        return operation
    return replace(operation, prepared=replace(prepared, bias=prepared.bias + error.mean(dim=(0, 2, 3))))


def _side_by_side(
    graph: Graph,
    pixels: Tensor,
    operations: Mapping[str, QuantizedOperation],
    bits: BitsPerLayer,
    done: dict[str, QuantizedOperation],
    paused_runs: PausedRuns | None,
) -> Iterator[tuple[Layer, Values, Values]]:
    """Pause before every quantized layer with a weight, with the values of the exact and of the quantized run.

    Starts from the latest paused run there is, with what it had compensated put into `done`, and keeps new ones.
    """
    layers = {
        layer.node: layer
        for layer in graph.layers
        if layer.node in operations and not layer.is_matmul and not layer.more_nodes
    }
    start = exact_start = None
    nodes: tuple[str, ...] = ()
    if paused_runs is not None:
        nodes = pause_nodes(graph)
        start = latest_paused_run(paused_runs, _COMPENSATED, graph, bits)
        exact_start = start and paused_runs.get(pause_key(_EXACT, graph, start.node, None))
        start = exact_start and start
        done.update({} if start is None else start.operations)
    stops = {*layers, *nodes}
    runs = zip(
        walk_from_paused(graph, pixels, stops, {}, exact_start),
        walk_from_paused(graph, pixels, stops, done, start),
        strict=True,
    )
    for (node, exact), (_, quantized) in runs:
        if node in nodes:
            paused_runs.put(pause_key(_EXACT, graph, node, None), PausedRun(node, exact, {}))
            before = {other.node: done[other.node] for other in layers_before(graph, node) if other.node in layers}
            paused_runs.put(pause_key(_COMPENSATED, graph, node, bits), PausedRun(node, quantized, before))
        if node in layers:
            yield layers[node], exact, quantized


def _residuals(graph: Graph) -> dict[str, str]:
    """Return, for the nodes of layers whose output is added to an earlier value, the name of that value."""
    found = {}
    order = {node.name: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        users = list(node.users)
        if len(users) == 1 and operation_name(users[0], graph.module) == "add":
            others = [other for other in users[0].all_input_nodes if other is not node]
            if len(others) == 1 and order[others[0].name] < order[node.name]:
                found[node.name] = others[0].name
    return found


def _compensated(
    rows: Tensor,
    target: Tensor,
    row_weights: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    width: int,
    fit_weight: Callable[[Tensor, int], UniformQuantizer],
    chosen: Compensation,
) -> PreparedWeight:
    """Return the corrected weight `[out, in]` and bias `[out]` of one Linear, given its quantized inputs `[N, in]`."""
    if row_weights is not None and chosen.regression:
        error = target - functional.linear(rows, weight, bias)
        weight = weight + ridge_correction(rows, error, row_weights, bias is not None)
    fitted = None
    if width != FULL_PRECISION:
        fitted = fit_weight(weight, width)
        weighted = rows if row_weights is None else rows * row_weights[:, None]
        weight = compensated_rounding(weight, weighted.T @ rows, fitted) if chosen.rounding else fitted(weight)
    if row_weights is not None and chosen.bias and bias is not None:
        error = target - functional.linear(rows, weight, bias)
        bias = bias + (error * row_weights[:, None]).mean(dim=0)
    return PreparedWeight(weight, bias, fitted)


def ridge_correction(rows: Tensor, error: Tensor, row_weights: Tensor, centred: bool) -> Tensor:
    """Return the ΔW `[out, in]` that predicts `error` `[N, out]` from `rows` `[N, in]`.

    It minimises Σ w ‖e - ΔW x‖² / N + λ ‖ΔW‖²: ΔW = C (G + λ I)⁻¹ with G = Σ w x xᵀ / N and C = Σ w e xᵀ / N (ridge
    regression against activation errors, ERQ, arXiv 2407.06794). λ is `RIDGE` times the mean diagonal of G.

    Args:
        rows: Quantized inputs.
        error: What the output lacks.
        row_weights: w `[N]`, mean 1.
        centred: Take the weighted means off first, where a bias takes care of them.
    """
    if centred:
        rows = rows - (rows * row_weights[:, None]).mean(dim=0)
        error = error - (error * row_weights[:, None]).mean(dim=0)
    weighted = rows * row_weights[:, None] / len(rows)
    gram, cross = weighted.T @ rows, error.T @ weighted
    return torch.linalg.solve(_damped(gram, RIDGE), cross.double().T).T.to(rows)


def compensated_rounding(weight: Tensor, gram: Tensor, quantizer: UniformQuantizer) -> Tensor:
    """Round a weight column by column; the columns to come make up for the error of each (GPTQ, arXiv 2210.17323).

    Args:
        weight: `[out, in]`.
        gram: Σ x xᵀ of the layer's quantized inputs, `[in, in]`; its scale does not matter.
        quantizer: Scale and zero point per output channel, `[out, 1]`.

    Returns:
        The rounded weight: integers within the quantizer's range times its scale.
    """
    damped = _damped(gram, DAMPING)
    # Columns of large inputs first: they have the most columns left to make up for them.
    order = damped.diagonal().argsort(descending=True)
    damped = damped[order][:, order]
    # Row i of this factor of the inverse says how an error in column i is shared among the later ones.
    shares = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    remaining = weight[:, order].double()
    scale, zero_point = quantizer.scale.double()[:, 0], quantizer.zero_point.double()[:, 0]
    lowest, highest = -zero_point, 2**quantizer.bits - 1 - zero_point
    codes = torch.empty_like(remaining)
    columns = remaining.shape[1]
    for start in range(0, columns, _COLUMNS):
        end = min(start + _COLUMNS, columns)
        errors = torch.empty_like(remaining[:, start:end])
        for column in range(start, end):
            wanted = remaining[:, column]
            code = (wanted / scale).round_().clamp_(min=lowest).clamp_(max=highest)
            codes[:, column] = code
            error = (wanted - code * scale) / shares[column, column]
            errors[:, column - start] = error
            remaining[:, column + 1 : end] -= torch.outer(error, shares[column, column + 1 : end])
        remaining[:, end:] -= errors @ shares[start:end, end:]
    rounded = torch.empty_like(weight)
    rounded[:, order] = codes.to(weight) * quantizer.scale
    return rounded


def _damped(gram: Tensor, share: float) -> Tensor:
    """Return the matrix in float64 with a share of its mean diagonal added; never singular."""
    mean = gram.diagonal().mean().double()
    diagonal = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    return gram.double() + diagonal * torch.where(mean > 0, share * mean, torch.ones_like(mean))
