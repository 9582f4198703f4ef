"""CLADO (Deng et al. 2023, arXiv 2307.05657): what two layers cost together beyond what each costs alone.

Measured, not approximated: KL(full precision ‖ both quantized) less the same of each layer alone. The network runs
once to the first layer; from there all its bit-widths are one batch, which walks on to every second layer and is
finished from there at each of that one's bit-widths.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import ceil
from typing import Any

import torch
from torch import Tensor

from mixqvit.criteria.shared import tied_bits
from mixqvit.network.batching import each_copy, repeat_values
from mixqvit.network.bits import BIT_WIDTHS, Bits
from mixqvit.network.devices import halving, images_at_once
from mixqvit.network.graph import Graph, Operation, Values
from mixqvit.network.layers import Layer
from mixqvit.quantization.calibration import Calibration, layer_operations
from mixqvit.tasks.evaluation import kl_divergence

__all__ = ["Pair", "PairTerms", "all_pairs", "block_pairs", "pair_cost", "pair_steps"]

Pair = tuple[str, str]
"""Names of two layers, in network order."""

IMAGES_AT_ONCE = 64
"""Copies of images that run in one batch, where memory allows; more do not make it faster."""


@dataclass(frozen=True)
class PairTerms:
    """The pairwise terms of two layers at all combinations of their bits.

    Attributes:
        first: Name of the layer that runs first.
        second: Name of the other one.
        values: By bits of the first and bits of the second layer: KL(both) - KL(first alone) - KL(second alone), of
            the class probabilities against full precision, mean per image, in nats. Negative where one error hides
            the other.
    """

    first: str
    second: str
    values: Mapping[tuple[Bits, Bits], float]


def all_pairs(layers: Sequence[Layer]) -> tuple[Pair, ...]:
    """Return all pairs of layers, each in network order."""
    return tuple((first.name, second.name) for first, second in combinations(layers, 2))


def block_pairs(layers: Sequence[Layer]) -> tuple[Pair, ...]:
    """Return the pairs of layers that belong to the same transformer block."""
    named = combinations(layers, 2)
    return tuple((one.name, other.name) for one, other in named if one.block is not None and one.block == other.block)


def pair_cost(graph: Graph, pairs: Sequence[Pair], widths: int, images: int) -> float:
    """Return about how much `pair_steps` computes, in full-precision passes of one image.

    From the multiply-accumulate operations that run; what quantizers add is not counted.

    Args:
        graph: The traced model.
        pairs: Pairs that are still to be measured.
        widths: Number of bit-widths.
        images: Number of images.
    """
    if not pairs:
        return 0.0
    left, remaining = {}, graph.macs
    for layer in graph.layers:
        left[layer.name] = remaining
        remaining -= layer.macs
    macs = 2 * graph.macs  # the reference and the walk over all layers
    macs += sum(widths * left[name] for name in {name for pair in pairs for name in pair})
    for first, seconds in _partners(graph, pairs).items():
        macs += widths * (left[first] - left[seconds[-1]])
        macs += sum(widths**2 * left[second] for second in seconds)
    return images * macs / graph.macs


def pair_steps(
    calibration: Calibration,
    pixels: Tensor,
    pairs: Sequence[Pair],
    bit_widths: Sequence[int] = BIT_WIDTHS,
    finished: Collection[Pair] = (),
    wanted: Callable[[str], Collection[str]] | None = None,
) -> Iterator[PairTerms]:
    """Measure the pairwise terms of pairs of layers, each layer at the same bits for its operands.

    Held in memory are, beside the values of one pass over the images, those of the first layer's bit-widths at the
    second one; at most `IMAGES_AT_ONCE` copies run at once, fewer where memory runs out.

    Args:
        calibration: Fitted quantizers.
        pixels: Calibration images `[N, C, H, W]`.
        pairs: Pairs of layer names, in network order: `all_pairs`, `block_pairs`, or others.
        bit_widths: Bit-widths of each layer.
        finished: Pairs that are known already.
        wanted: Called with a layer's name when the run has come to it as a first one; returns the second layers to
            measure with it. All by default.

    Yields:
        Each pair as soon as all its combinations are measured, sorted by its first layer, then its second.

    Raises:
        CalibrationError: The calibration does not serve these bits.
        ImageError: The images do not fit the model.
        MixQViTError: Memory does not suffice for a single image at once.
        UnsupportedOperationError: A value of the model cannot be repeated for several bit-widths.
    """
    graph, known = calibration.graph, set(finished)

    def steps(at_once: int) -> Iterator[PairTerms]:
        left = [pair for pair in pairs if pair not in known]
        return _terms(calibration, pixels, left, bit_widths, at_once, wanted)

    for found in halving(steps, images_at_once(graph, IMAGES_AT_ONCE), graph.device, "measurement of pairs"):
        known.add((found.first, found.second))
        yield found


@torch.no_grad()
def _terms(
    calibration: Calibration,
    pixels: Tensor,
    pairs: Sequence[Pair],
    bit_widths: Sequence[int],
    at_once: int,
    wanted: Callable[[str], Collection[str]] | None,
) -> Iterator[PairTerms]:
    graph = calibration.graph
    partners = _partners(graph, pairs)
    if not partners:
        return
    named = {name for first, seconds in partners.items() for name in (first, *seconds)}
    involved = {layer.node: layer for layer in graph.layers if layer.name in named}
    choices = {name: tied_bits(graph.by_name[name], bit_widths) for name in named}
    batches = pixels.split(at_once)
    references = [graph(batch) for batch in batches]
    alone: dict[str, dict[Bits, float]] = {}
    for paused in zip(*(graph.walk(batch, list(involved)) for batch in batches), strict=True):
        layer = involved[paused[0][0]]
        for bits in choices[layer.name]:
            operations = layer_operations(calibration, layer, bits)
            logits = (graph.resume(values, node, operations) for node, values in paused)
            total = sum(map(_total_kl, references, logits))
            alone.setdefault(layer.name, {})[bits] = total / len(pixels)
    firsts = [graph.by_name[name].node for name in partners]
    for started in zip(*(graph.walk(batch, firsts) for batch in batches), strict=True):
        first = involved[started[0][0]]
        seconds = partners[first.name]
        if wanted is not None:
            asked = wanted(first.name)
            seconds = [name for name in seconds if name in asked]
        if not seconds:
            continue
        stops = [graph.by_name[name].node for name in seconds]
        chunks = _chunks(choices[first.name], at_once // len(batches[0]))
        runs = [(place, widths) for place in range(len(batches)) for widths in chunks]
        of_first = {tuple(widths): _operations(calibration, first, widths) for widths in chunks}
        walks = [
            _walk_on(calibration, first, widths, batches[place], started[place][1], stops, of_first[tuple(widths)])
            for place, widths in runs
        ]
        # All chunks of the first layer's bits walk on together, so that a pair is finished before the next one.
        for paused in zip(*walks, strict=True):
            second = involved[paused[0][0]]
            operations = {bits: layer_operations(calibration, second, bits) for bits in choices[second.name]}
            both = dict.fromkeys(product(choices[first.name], choices[second.name]), 0.0)
            for (place, widths), (stop, held) in zip(runs, paused, strict=True):
                for other, own in operations.items():
                    # The first layer's own operations again where it is called later once more.
                    logits = graph.resume(held, stop, {**of_first[tuple(widths)], **own})
                    for width, copy in zip(widths, logits.split(len(batches[place])), strict=True):
                        both[width, other] += _total_kl(references[place], copy) / len(pixels)
            yield PairTerms(first.name, second.name, _beyond(both, alone[first.name], alone[second.name]))


def _beyond(
    both: Mapping[tuple[Bits, Bits], float], first: Mapping[Bits, float], second: Mapping[Bits, float]
) -> dict[tuple[Bits, Bits], float]:
    return {(own, other): both[own, other] - first[own] - second[other] for own in first for other in second}


def _partners(graph: Graph, pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """Return the second layers of each first one, both in network order."""
    order = {layer.name: index for index, layer in enumerate(graph.layers)}
    partners: dict[str, list[str]] = {}
    for first, second in sorted(set(pairs), key=lambda pair: (order[pair[0]], order[pair[1]])):
        partners.setdefault(first, []).append(second)
    return partners


def _chunks(choices: Sequence[Bits], most: int) -> list[Sequence[Bits]]:
    """Split the bits of a layer evenly into runs of at most `most`, and at least one."""
    size = ceil(len(choices) / ceil(len(choices) / max(1, most)))
    return [choices[start : start + size] for start in range(0, len(choices), size)]


def _operations(calibration: Calibration, layer: Layer, choices: Sequence[Bits]) -> Mapping[str, Operation]:
    """Return what runs a layer at several bits at once, copy after copy of the images, by node."""
    operations = [layer_operations(calibration, layer, bits) for bits in choices]
    return {node: each_copy([own[node] for own in operations]) for node in layer.nodes}


def _walk_on(
    calibration: Calibration,
    layer: Layer,
    choices: Sequence[Bits],
    pixels: Tensor,
    values: Mapping[str, Any],
    stops: Sequence[str],
    operations: Mapping[str, Operation],
) -> Iterator[tuple[str, Values]]:
    """Run on from a layer at several bits at once, copy after copy of the images, pausing before later layers."""
    repeated = repeat_values(calibration.graph, values, len(pixels), len(choices))
    return calibration.graph.walk(pixels, stops, operations, (layer.node, repeated))


def _total_kl(reference: Tensor, logits: Tensor) -> float:
    return float(kl_divergence(reference, logits).sum())
