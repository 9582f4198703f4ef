"""The stage that fits quantizers, a layer at a time, and what carries them to other processes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mixqvit.network.bits import BIT_WIDTHS, Bits
from mixqvit.network.devices import choose_device, moved
from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import Calibration, LayerCalibration, calibrate_steps
from mixqvit.quantization.saving import from_tensors, to_tensors
from mixqvit.stages.context import Context
from mixqvit.stages.forms import TENSORS, Tensors
from mixqvit.stages.items import Named
from mixqvit.stages.stage import Stage, registered

__all__ = ["Calibrated", "Rebuilt", "own_calibration"]


@registered
@dataclass(frozen=True)
class Calibrated(Stage[LayerCalibration, Calibration]):
    """Quantizers fitted to the calibration images; arguments as in `calibrate`."""

    name = "calibration"
    version = 1
    form = TENSORS

    recipe: str
    bits: Bits | None = None
    bit_widths: tuple[int, ...] = BIT_WIDTHS

    def depends_on(self, study: Context) -> Sequence[int]:
        """Return the number of images."""
        return [len(study.calibration_pixels)]

    def items(self, study: Context) -> Named:
        """Return the layers."""
        return Named(tuple(layer.name for layer in study.layers), "calibration of {name}")

    def compute(self, study: Context, missing: Sequence[str]) -> Iterator[tuple[str, LayerCalibration]]:
        """Yield the layers in network order."""
        graph, wanted = study.precise_graph, set(missing)
        known = {name: moved(piece, graph.device) for name, piece in study.saved(self).items() if name not in wanted}
        steps = calibrate_steps(graph, study.calibration_pixels, self.recipe, self.bits, self.bit_widths, known)
        return ((piece.layer, piece) for piece in steps)

    def written(self, piece: LayerCalibration) -> Tensors:
        """Return the quantizers as tensors."""
        return Tensors(*to_tensors(piece))

    def read(self, name: str, written: Tensors) -> LayerCalibration:
        """Return a layer's quantizers, on the CPU."""
        return from_tensors(name, written.tensors, written.metadata)

    def join(self, study: Context, pieces: Mapping[str, LayerCalibration]) -> Calibration:
        """Return the calibration, where sums are in double precision."""
        graph = study.precise_graph
        layers = {layer.name: moved(pieces[layer.name], graph.device) for layer in study.layers}
        return Calibration(graph, self.recipe, layers, study.calibration_pixels, self.bits)

    def is_remembered(self, study: Context) -> bool:
        """Return whether it is the study's own recipe: the weights that a calibration prepares take memory."""
        return self == own_calibration(study)


def own_calibration(study: Context) -> Calibrated:
    """Return the calibration that a study computes with."""
    return Calibrated(study.recipe)


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """A calibrated model on its way to a worker, which traces it anew; called there, once.

    Attributes:
        module: The model.
        example: One image `[1, C, H, W]` to trace with.
        recipe: Name of the recipe.
        layers: Fitted quantizers by layer name.
        pixels: Calibration images `[N, C, H, W]`.
    """

    module: nn.Module
    example: Tensor
    recipe: str
    layers: Mapping[str, LayerCalibration]
    pixels: Tensor

    def __call__(self) -> Calibration:
        """Return the calibration, on the worker's device."""
        graph = trace(self.module, self.example)
        return Calibration(graph, self.recipe, self.layers, self.pixels).on(choose_device())
