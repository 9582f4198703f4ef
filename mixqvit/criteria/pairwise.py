"""What two layers cost together beyond what each costs alone, which CLADO adds up (arXiv 2307.05657).

Measured, not approximated: KL(full precision ‖ both quantized) less the same of each layer alone. The network runs
once to the first layer; from there all its bit-widths are one batch, which walks on to every second layer and is
finished from there at each of that one's bit-widths.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from math import ceil
from typing import Any

import torch
from torch import Tensor

from mixqvit.criteria.choices import Pair, PairHarms
from mixqvit.engines.in_order import InOrder
from mixqvit.network.batching import each_copy, repeat_values
from mixqvit.network.bits import BIT_WIDTHS, Bits, tied_bits
from mixqvit.network.devices import halving, images_at_once
from mixqvit.network.graph import Graph, Operation, Values
from mixqvit.network.layers import Layer
from mixqvit.quantization.calibration import Calibration, layer_operations
from mixqvit.quantization.fidelity_stage import checked_calibration, worker_calibration
from mixqvit.stages.context import Context
from mixqvit.stages.items import Named
from mixqvit.stages.stage import Stage, registered

__all__ = ["PairPlan", "PairTerms", "Pairs", "all_pairs", "block_pairs", "pair_cost", "pair_steps"]

ALL_PAIRS_MACS = 200 * 10**6
"""Models of no more multiply-accumulates per image get all pairs of layers at all bit-widths."""

FEW_WIDTHS = (2, 3, 4, 6, 8)
"""Bit-widths of the pairs of larger models, within a block each."""

PAIR_IMAGES = 8
"""Calibration images that pairs are measured on."""

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

    def total_divergence(reference: Tensor, outputs: Tensor) -> float:
        return float(graph.task.divergence(reference, outputs).sum())

    alone: dict[str, dict[Bits, float]] = {}
    for paused in zip(*(graph.walk(batch, list(involved)) for batch in batches), strict=True):
        layer = involved[paused[0][0]]
        for bits in choices[layer.name]:
            operations = layer_operations(calibration, layer, bits)
            logits = (graph.resume(values, node, operations) for node, values in paused)
            total = sum(map(total_divergence, references, logits))
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
                        both[width, other] += total_divergence(references[place], copy) / len(pixels)
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


@dataclass(frozen=True)
class PairPlan:
    """Which pairs of a model are measured.

    Attributes:
        pairs: In network order.
        bit_widths: Of each layer.
        images: How many.
    """

    pairs: tuple[Pair, ...]
    bit_widths: tuple[int, ...]
    images: int

    @classmethod
    def of(cls, study: Context) -> "PairPlan":
        """Return all pairs of a small model, of a larger one those within a block at some bit-widths."""
        images = min(PAIR_IMAGES, len(study.calibration_images))
        if study.graph.macs <= ALL_PAIRS_MACS:
            return cls(all_pairs(study.layers), BIT_WIDTHS, images)
        return cls(block_pairs(study.layers), FEW_WIDTHS, images)


@registered
@dataclass(frozen=True)
class Pairs(Stage[PairTerms, PairHarms]):
    """The pairwise terms of a model's layers."""

    name = "pairs"
    version = 1

    def needs(self, study: Context) -> tuple[Stage, ...]:
        """Return the calibration and its check."""
        return checked_calibration(study)

    def depends_on(self, study: Context) -> Sequence[Any]:
        """Return at which bit-widths, and on how many images."""
        plan = PairPlan.of(study)
        return [plan.images, list(plan.bit_widths)]

    def items(self, study: Context) -> Named:
        """Return the pairs."""
        return Named(tuple(map(_pair_name, PairPlan.of(study).pairs)))

    def seconds_left(self, study: Context) -> float:
        """Return about how long the missing pairs take, from the operations that run."""
        plan = PairPlan.of(study)
        missing = [_pair(name) for name in self.items(study).missing(list(study.saved(self)))]
        cost = pair_cost(study.graph, missing, len(plan.bit_widths), plan.images)
        return study.seconds_per_image() * cost if missing else 0.0

    def work(self, study: Context) -> Callable[[], InOrder]:
        """Return what measures the pairs of a first layer."""
        plan = PairPlan.of(study)
        pixels = study.sent(study.calibration_images.subset(plan.images).pixels)
        return partial(pair_worker, worker_calibration(study), pixels, plan.pairs, plan.bit_widths)

    def tasks(self, study: Context, missing: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Return the first layers with their second ones."""
        partners: dict[str, list[str]] = {}
        for first, second in map(_pair, missing):
            partners.setdefault(first, []).append(second)
        return [(layer.name, partners[layer.name]) for layer in study.layers if layer.name in partners]

    def written(self, piece: PairTerms) -> list[list[float]]:
        """Return the terms as lists: the bits of the first and of the second layer, and the term."""
        return [[*first, *second, value] for (first, second), value in piece.values.items()]

    def read(self, name: str, written: Sequence[Sequence[float]]) -> PairTerms:
        """Return the terms of a pair."""
        return PairTerms(*_pair(name), {((a, b), (c, d)): value for a, b, c, d, value in written})

    def join(self, study: Context, pieces: Mapping[str, PairTerms]) -> PairHarms:
        """Return the terms by pair, in the order they were measured."""
        return {(terms.first, terms.second): dict(terms.values) for terms in pieces.values()}


def pair_worker(
    calibration: Callable[[], Calibration], pixels: Tensor, pairs: Sequence[Pair], bit_widths: Sequence[int]
) -> InOrder:
    """Return what measures the pairs of a task (first layer, second layers); arguments as in `pair_steps`."""
    found = calibration()

    def start(wanted: Callable[[str], Collection[str]]) -> Iterator[tuple[str, PairTerms]]:
        for terms in pair_steps(found, pixels, pairs, bit_widths, wanted=wanted):
            yield _pair_name((terms.first, terms.second)), terms

    return InOrder(start, {layer.name: place for place, layer in enumerate(found.graph.layers)})


def _pair_name(pair: Pair) -> str:
    return " with ".join(pair)


def _pair(name: str) -> Pair:
    first, _, second = name.partition(" with ")
    return first, second
