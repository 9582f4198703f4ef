"""The sweep: every layer quantized alone at every bit-width, the rest of the network left at a baseline."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.network.batching import each_copy, repeat_values
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, Bits, input_bits, tied_bits
from mixqvit.network.devices import halving, images_at_once
from mixqvit.network.graph import Values
from mixqvit.network.layers import Layer
from mixqvit.quantization.calibration import Calibration, layer_operations
from mixqvit.quantization.operations import QuantizedOperation
from mixqvit.tasks.metrics import Effect

__all__ = ["OPERANDS", "SensitivityCell", "cell_bits", "sensitivity_steps"]

OPERANDS = ("both", "weights", "activations")
"""Which operands of a layer a sweep quantizes."""

IMAGES_AT_ONCE = 64
"""Images in one run, where memory allows. More images are several runs, paused before the same layer; only what later
layers still need of each is held then."""

SHARED_MACS = 7 * 10**8
"""Bit-widths of a layer share a run while it computes no more multiply-accumulates than this. Small runs gain up to
half by it (overhead of each operation); larger ones lose, because the copies cost more than they save (measured in
tests/benchmarks/RESULTS.md)."""


@dataclass(frozen=True, eq=False)
class SensitivityCell:
    """One measured cell of a sweep.

    Attributes:
        layer: Name of the layer that was quantized alone.
        operands: Which of its operands were, one of `OPERANDS`.
        bits: The swept bit-width.
        effect: What it did to every image.
    """

    layer: str
    operands: str
    bits: int
    effect: Effect


def cell_bits(layer: Layer, operands: str, bits: int, baseline: int = FULL_PRECISION) -> Bits | None:
    """Return the layer's (weight bits, activation bits) in a sweep, None where the sweep leaves the layer alone.

    With the weights alone quantized over full precision, a post-LayerNorm input is not reparameterized and neither is
    W.

    Args:
        layer: The layer.
        operands: Which operands are swept, one of `OPERANDS`.
        bits: Their bit-width.
        baseline: Bit-width of the other operand.
    """
    if operands == "both":
        return tied_bits(layer, (bits,))[0]
    if operands == "weights":
        return None if layer.is_matmul else (bits, input_bits(layer, baseline))
    return (bits, bits) if layer.is_matmul else (baseline, bits)


def sensitivity_steps(
    calibration: Calibration,
    pixels: Tensor,
    labels: Tensor | None = None,
    operands: str = "both",
    bit_widths: Sequence[int] = BIT_WIDTHS,
    baseline: int = FULL_PRECISION,
    wanted: Callable[[str], Collection[int]] | None = None,
) -> Iterator[SensitivityCell]:
    """Measure the sensitivity of every layer at every bit-width.

    The network runs once up to each layer; every cell of the layer then runs only from there on. Where memory runs out
    the sweep goes on with half as many images at once.

    Args:
        calibration: Fitted quantizers.
        pixels: Calibration images `[N, C, H, W]`.
        labels: Their classes `[N]`, or None.
        operands: Which operands to quantize, one of `OPERANDS`.
        bit_widths: Bit-widths to sweep.
        baseline: Bit-width of all other layers. Harm is measured against full precision all the same.
        wanted: Called with a layer's name when the run has come to it; returns the bit-widths to measure there, others
            are left out. All by default.

    Yields:
        Each cell as soon as it is measured, in network order.

    Raises:
        CalibrationError: The calibration does not serve these bits.
        ImageError: The images do not fit the model.
        MixQViTError: Memory does not suffice for a single image at once.
    """
    finished: set[tuple[str, int]] = set()

    def missing(layer: str) -> list[int]:
        asked = bit_widths if wanted is None else wanted(layer)
        return [bits for bits in bit_widths if bits in asked and (layer, bits) not in finished]

    def steps(at_once: int) -> Iterator[SensitivityCell]:
        return _cells(calibration, pixels.split(at_once), labels, operands, bit_widths[0], baseline, missing)

    graph = calibration.graph
    for cell in halving(steps, images_at_once(graph, min(IMAGES_AT_ONCE, len(pixels))), graph.device, "sweep"):
        finished.add((cell.layer, cell.bits))
        yield cell


@torch.no_grad()  # while it runs only: between two cells the caller's own mode holds
def _cells(
    calibration: Calibration,
    batches: Sequence[Tensor],
    labels: Tensor | None,
    operands: str,
    any_width: int,
    baseline: int,
    missing: Callable[[str], Sequence[int]],
) -> Iterator[SensitivityCell]:
    """Sweep all images, those of a batch at once; `missing` says which bit-widths of a layer to measure."""
    graph = calibration.graph
    layers = {layer.node: layer for layer in graph.layers if cell_bits(layer, operands, any_width) is not None}
    rest = _baseline_operations(calibration, baseline)
    reference = torch.cat([graph(batch) for batch in batches])
    walks = [graph.walk(batch, list(layers), rest) for batch in batches]
    for paused in zip(*walks, strict=True):
        layer = layers[paused[0][0]]
        bits_of = {bits: cell_bits(layer, operands, bits, baseline) for bits in missing(layer.name)}
        for bits, logits in _logits(calibration, layer, bits_of, batches, [values for _, values in paused], rest):
            yield SensitivityCell(layer.name, operands, bits, graph.task.effect(reference, logits, labels))


def _baseline_operations(calibration: Calibration, baseline: int) -> dict[str, QuantizedOperation]:
    if baseline == FULL_PRECISION:
        return {}
    operations: dict[str, QuantizedOperation] = {}
    for layer in calibration.graph.layers:
        operations |= layer_operations(calibration, layer, cell_bits(layer, "both", baseline))
    return operations


def _logits(
    calibration: Calibration,
    layer: Layer,
    bits_of: Mapping[int, Bits],
    batches: Sequence[Tensor],
    paused: Sequence[Values],
    rest: Mapping[str, QuantizedOperation],
) -> Iterator[tuple[int, Tensor]]:
    """Yield (bit-width, logits of all images `[N, classes]`), a few bit-widths sharing a run."""
    graph, widths = calibration.graph, list(bits_of)
    shared = max(1, SHARED_MACS // (graph.macs * len(batches[0])))
    for start in range(0, len(widths), shared):
        together = widths[start : start + shared]
        operations = [layer_operations(calibration, layer, bits_of[bits]) for bits in together]
        later = {node: each_copy([own[node] for own in operations]) for node in layer.more_nodes}
        parts = []
        for batch, values in zip(batches, paused, strict=True):
            operands = graph.operands(layer, values)
            outputs = torch.cat([own[layer.node](*operands) for own in operations])
            repeated = repeat_values(graph, values, len(batch), len(together))
            replaced = {**rest, layer.node: lambda *_, outputs=outputs: outputs, **later}
            logits = graph.resume(repeated, layer.node, replaced)
            parts.append(logits.chunk(len(together)))
        for bits, found in zip(together, zip(*parts, strict=True), strict=True):
            yield bits, torch.cat(found)
