"""What the workers of an engine do for a study: cells of a sweep, pairwise terms, evaluations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.criteria.pairwise import Pair, PairTerms, pair_steps
from mixqvit.engines.in_order import InOrder
from mixqvit.network.bits import FULL_PRECISION, BitsPerLayer
from mixqvit.network.devices import images_at_once, in_parts
from mixqvit.network.graph import Graph
from mixqvit.quantization.calibration import Calibration
from mixqvit.quantization.model import quantize
from mixqvit.tasks.evaluation import BATCH_SIZE, kl_divergence, top1

__all__ = ["EvaluationPart", "MeasuredPart", "evaluator", "pair_worker"]


def pair_worker(
    calibration: Callable[[], Calibration], pixels: Tensor, pairs: Sequence[Pair], bit_widths: Sequence[int]
) -> InOrder[PairTerms]:
    """Return what measures the pairs of a task (first layer, second layers); arguments as in `pair_steps`."""
    found = calibration()

    def start(wanted: Callable[[str], Sequence[str]]) -> Iterator[PairTerms]:
        return pair_steps(found, pixels, pairs, bit_widths, wanted=wanted)

    return InOrder(start, _order(found.graph))


@dataclass(frozen=True, eq=False)
class EvaluationPart:
    """Some images to measure one setting on.

    Attributes:
        key: What the results are saved under.
        bits: (weight bits, activation bits) per layer.
        start: Number of the first image.
        pixels: The images `[n, C, H, W]`.
        reference: Their full-precision logits `[n, classes]`.
        among: Classes that the top-1 class is looked for among; None for all.
    """

    key: str
    bits: BitsPerLayer
    start: int
    pixels: Tensor
    reference: Tensor
    among: Sequence[int] | None


@dataclass(frozen=True)
class MeasuredPart:
    """What was measured.

    Attributes:
        key: That of the part.
        start: Number of the first image.
        predicted: Top-1 class of every image.
        image_kl: KL of every image, in nats.
    """

    key: str
    start: int
    predicted: list[int]
    image_kl: list[float]


def evaluator(calibration: Callable[[], Calibration]) -> Callable[[EvaluationPart], Iterator[MeasuredPart]]:
    """Return what measures a part of an evaluation; parts of the same bits in a row quantize the model once."""
    found = calibration()
    graph, device = found.graph, found.graph.device
    bits: BitsPerLayer | None = None
    predict: Callable[[Tensor], Tensor] = graph

    def measured(part: EvaluationPart) -> Iterator[MeasuredPart]:
        nonlocal bits, predict
        if part.bits != bits:
            full = all(pair == (FULL_PRECISION, FULL_PRECISION) for pair in part.bits.values())
            predict = graph if full else quantize(found, part.bits)
            bits = part.bits

        def run(images: slice) -> Tensor:
            with torch.no_grad():
                return predict(part.pixels[images]).cpu()

        most = images_at_once(graph, BATCH_SIZE)
        logits = torch.cat(list(in_parts(run, len(part.pixels), most, device, "evaluation")))
        kl = kl_divergence(part.reference, logits).tolist()
        yield MeasuredPart(part.key, part.start, top1(logits, part.among), kl)

    return measured


def _order(graph: Graph) -> dict[str, int]:
    return {layer.name: place for place, layer in enumerate(graph.layers)}
