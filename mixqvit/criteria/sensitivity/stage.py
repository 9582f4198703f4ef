"""The stage that sweeps a model: the effect of every layer at every bit-width."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from mixqvit.criteria.sensitivity.sweep import SensitivityCell, cell_bits, sensitivity_steps
from mixqvit.engines.in_order import InOrder
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.quantization.calibration import Calibration
from mixqvit.quantization.fidelity_stage import checked_calibration, worker_calibration
from mixqvit.stages.context import Context
from mixqvit.stages.items import Named
from mixqvit.stages.stage import Stage, registered
from mixqvit.tasks.metrics import Effect

__all__ = ["Effects", "Sweep", "own_sweep"]

Effects = dict[str, dict[int, Effect]]
"""By layer name and bit-width."""


@registered
@dataclass(frozen=True)
class Sweep(Stage[SensitivityCell, Effects]):
    """What quantizing each layer alone does to every image.

    Attributes:
        operands: Which operands of the layer, one of `OPERANDS`.
        baseline: Bit-width of all other layers.
    """

    name = "sensitivity"
    version = 1

    operands: str = "both"
    baseline: int = FULL_PRECISION

    def needs(self, study: Context) -> tuple[Stage, ...]:
        """Return the calibration and its check."""
        return checked_calibration(study)

    def depends_on(self, study: Context) -> Sequence[int]:
        """Return the number of images."""
        return [len(study.analysis_images)]

    def items(self, study: Context) -> Named:
        """Return the cells."""
        return Named(tuple(_name(layer, bits) for layer in self._swept(study) for bits in BIT_WIDTHS))

    def work(self, study: Context) -> Callable[[], InOrder]:
        """Return what measures the cells of a layer."""
        images = study.analysis_images
        return partial(
            sweep_worker,
            worker_calibration(study),
            study.sent(images.pixels),
            images.labels,
            self.operands,
            self.baseline,
        )

    def tasks(self, study: Context, missing: Sequence[str]) -> list[tuple[str, list[int]]]:
        """Return the layers with their missing bit-widths."""
        found: dict[str, list[int]] = {}
        for name in missing:
            layer, bits = _parsed(name)
            found.setdefault(layer, []).append(bits)
        return list(found.items())

    def written(self, piece: SensitivityCell) -> dict[str, list[float] | None]:
        """Return the effect, image by image."""
        return {part: None if values is None else values.tolist() for part, values in piece.effect.items()}

    def read(self, name: str, written: Mapping[str, Any]) -> SensitivityCell:
        """Return the cell."""
        effect = {part: None if values is None else np.array(values) for part, values in written.items()}
        layer, bits = _parsed(name)
        return SensitivityCell(layer, self.operands, bits, effect)

    def join(self, study: Context, pieces: Mapping[str, SensitivityCell]) -> Effects:
        """Return the effects."""
        return {layer: {bits: pieces[_name(layer, bits)].effect for bits in BIT_WIDTHS} for layer in self._swept(study)}

    def _swept(self, study: Context) -> list[str]:
        return [layer.name for layer in study.layers if cell_bits(layer, self.operands, BIT_WIDTHS[0]) is not None]


def own_sweep(study: Context, operands: str = "both", baseline: int | None = None) -> Sweep:
    """Return the sweep of some operands, over the study's own baseline by default."""
    return Sweep(operands, study.baseline if baseline is None else baseline)


def sweep_worker(
    calibration: Callable[[], Calibration], pixels: Tensor, labels: Tensor | None, operands: str, baseline: int
) -> InOrder:
    """Return what measures the cells of a task (layer, its bit-widths); arguments as in `sensitivity_steps`."""
    found = calibration()

    def start(wanted: Callable[[str], Collection[int]]) -> Iterator[tuple[str, SensitivityCell]]:
        for cell in sensitivity_steps(found, pixels, labels, operands, BIT_WIDTHS, baseline, wanted):
            yield _name(cell.layer, cell.bits), cell

    return InOrder(start, {layer.name: place for place, layer in enumerate(found.graph.layers)})


def _name(layer: str, bits: int) -> str:
    return f"{layer} at {bits} bits"


def _parsed(name: str) -> tuple[str, int]:
    layer, _, bits = name.removesuffix(" bits").rpartition(" at ")
    return layer, int(bits)
