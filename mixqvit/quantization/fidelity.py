"""Whether quantization is of what the model computes: the net under everything that is measured.

With all operands in full precision, what runs instead of the layers gives the model's own logits: tracing makes sure
(`mixqvit.network.operations`). And at 8 bits, which every network bears whose layers are what they are taken for, the
logits must follow those in full precision from image to image: they are centred over images first, because logits of
different images have much in common whatever becomes of the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixqvit.errors import CalibrationError
from mixqvit.network.devices import images_at_once, in_parts
from mixqvit.network.graph import Graph
from mixqvit.quantization.calibration import Calibration, layer_operations
from mixqvit.quantization.operations import (
    QuantizedOperation,
)

__all__ = ["Fidelity", "check_fidelity", "correlation_over_images", "fidelity"]

BITS = 8
IMAGES = 8
"""Images that the correlation at 8 bits is taken over, at most."""

LOWEST_CORRELATION = 0.5
"""Below it 8 bits destroy three quarters and more of the differences between images (1 - r² of their variance)."""


@dataclass(frozen=True)
class Fidelity:
    """How the logits at 8 bits follow those in full precision.

    Attributes:
        correlation: Over images and classes, centred over images; None where there is nothing to compare: one image,
            or logits that are the same for all images.
        images: Number of images.
        layer: The layer that alone leaves the lowest correlation; looked for only where all together leave less than
            `LOWEST_CORRELATION`, otherwise empty.
        layer_correlation: That correlation; None likewise.
    """

    correlation: float | None
    images: int
    layer: str = ""
    layer_correlation: float | None = None

    @property
    def note(self) -> str | None:
        """What to know where the check could not be made, or rests on next to nothing."""
        if self.images == 1:
            return (
                "There is one calibration image: whether 8 bits follow full precision from image to image cannot be "
                "checked, so a layer that is computed wrongly would not be noticed here."
            )
        if self.correlation is None:
            return (
                f"The logits are the same for all {self.images} calibration images that were compared, so nothing that "
                "is measured on them tells one allocation from another."
            )
        return None


def correlation_over_images(reference: Tensor, logits: Tensor) -> float | None:
    """Return the correlation of logits `[N, classes]`, centred over images.

    None where the reference does not differ between images; 0 where the other logits do not, or are not finite.
    """
    first, second = (values.double() - values.double().mean(dim=0) for values in (reference, logits))
    if float(first.norm()) <= 1e-6 * float(reference.double().norm()):
        return None
    size = float(second.norm())
    return float((first * second).sum()) / (float(first.norm()) * size) if 0 < size < float("inf") else 0.0


def fidelity(calibration: Calibration, pixels: Tensor) -> Fidelity:
    """Return how the logits of all layers at 8 bits, without compensation, follow those in full precision.

    Args:
        calibration: Fitted quantizers that serve 8 bits.
        pixels: Images `[N, C, H, W]`, of which the first `IMAGES` are used.
    """
    graph, pixels = calibration.graph, pixels[:IMAGES]
    if len(pixels) == 1:
        return Fidelity(None, 1)
    reference = _logits(graph, pixels, {})
    operations = {layer.name: layer_operations(calibration, layer, (BITS, BITS)) for layer in graph.layers}
    everywhere = {node: operation for own in operations.values() for node, operation in own.items()}
    found = correlation_over_images(reference, _logits(graph, pixels, everywhere))
    if found is None or found >= LOWEST_CORRELATION:
        return Fidelity(found, len(pixels))
    alone = {name: correlation_over_images(reference, _logits(graph, pixels, own)) for name, own in operations.items()}
    worst = min(alone, key=alone.get)
    return Fidelity(found, len(pixels), worst, alone[worst])


def check_fidelity(found: Fidelity, recipe: str) -> None:
    """Refuse a calibration whose 8 bits do not follow full precision.

    Raises:
        CalibrationError: They do not; the message names the layer that breaks it.
    """
    if found.layer:
        raise CalibrationError(
            f"With recipe {recipe} even 8 bits do not follow full precision: over {found.images} calibration images "
            f"the correlation of the logits is {found.correlation:.2f}, so fewer bits would measure nothing. Alone, "
            f"the layer {found.layer} breaks most ({found.layer_correlation:.2f}). Check the weights and the "
            "normalization of the images, or choose another recipe."
        )


def _logits(graph: Graph, pixels: Tensor, operations: Mapping[str, QuantizedOperation]) -> Tensor:
    def run(part: slice) -> Tensor:
        with torch.no_grad():
            return graph.run(pixels[part], operations)[0].cpu()

    most = images_at_once(graph, len(pixels))
    return torch.cat(list(in_parts(run, len(pixels), most, graph.device, "check of 8 bits")))
