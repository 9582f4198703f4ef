"""The calibration and sensitivity stages of a study."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixqvit.criteria.sensitivity.metrics import METRICS, Effect, find_metric, harm, intervals
from mixqvit.criteria.sensitivity.sweep import SensitivityCell, cell_bits
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.network.devices import moved
from mixqvit.network.layers import Layer
from mixqvit.progress import Progress
from mixqvit.quantization.calibration import Calibration, LayerCalibration, calibrate_steps
from mixqvit.quantization.fidelity import Fidelity, check_fidelity, fidelity
from mixqvit.quantization.saving import from_tensors, to_tensors
from mixqvit.study.claims import once
from mixqvit.study.placement import Placement
from mixqvit.study.workers import Rebuilt, sweep_worker

__all__ = ["SensitivityStages"]

_FIDELITY = "8 bits beside full precision"


class SensitivityStages(Placement):
    """Fitted quantizers, and the harm of each layer's."""

    def calibration_steps(self) -> Iterator[Progress]:
        """Fit the quantizers, a layer at a time."""
        settings, key = self.settings, self._calibration_key
        graph, pixels, total = self._precise_graph, self._calibration_pixels, len(self.layers)
        finished: dict[str, LayerCalibration] = {}

        def progress() -> Progress:
            for layer in self.layers:
                if layer.name not in finished and (saved := self.store.tensors(key, layer.name)):
                    finished[layer.name] = moved(from_tensors(layer.name, *saved), graph.device)
            return Progress(len(finished), total, "calibration")

        def run() -> Iterator[Progress]:
            for piece in calibrate_steps(graph, pixels, settings.recipe, finished=dict(finished)):
                self.store.put_tensors(key, piece.layer, *to_tensors(piece))
                finished[piece.layer] = piece
                yield Progress(len(finished), total, f"calibration of {piece.layer}")

        yield from once(self.store, key, progress, run)
        ordered: Mapping[str, LayerCalibration] = {layer.name: finished[layer.name] for layer in self.layers}
        found = Calibration(graph, settings.recipe, ordered, pixels)
        check_fidelity(self._remembered("fidelity", lambda: self._fidelity(found)), settings.recipe)
        found = self._remembered("calibration", lambda: found)
        yield Progress(total, total, "calibration", found)

    def _fidelity(self, calibration: Calibration) -> Fidelity:
        """Return how 8 bits follow full precision, saved once it is known."""
        key = self._key("calibration", self.settings.recipe, self.settings.calibration_images, _FIDELITY)
        saved = self.store.rows(key).get(_FIDELITY)
        if saved is None:
            found = fidelity(calibration, calibration.pixels)
            self.store.put(key, _FIDELITY, vars(found))
            return found
        return Fidelity(**saved)

    @property
    def check_notes(self) -> tuple[str, ...]:
        """What could not be checked of the quantized model, in sentences; known once it is calibrated."""
        found: Fidelity | None = self._memory.get("fidelity")
        return () if found is None or found.note is None else (found.note,)

    def calibration_progress(self) -> Progress:
        """Return how many layers have their quantizers fitted and saved."""
        saved = set(self.store.items(self._calibration_key))
        done = sum(f"tensors/{layer.name}" in saved for layer in self.layers)
        return Progress(done, len(self.layers), "calibration")

    @property
    def _calibration_key(self) -> str:
        return self._key("calibration", self.settings.recipe, self.settings.calibration_images)

    def calibration(self) -> Calibration:
        """Return the calibration, computing what is missing."""
        return self._finished("calibration", self.calibration_steps)

    @property
    def _device_calibration(self) -> Calibration:
        """The calibration on the device, for what only runs forward."""
        calibration = self.calibration()
        return self._remembered("device calibration", lambda: calibration.on(self.device))

    def _worker_calibration(self) -> Callable[[], Calibration]:
        """Return what gives a worker the calibration: the one in memory here, in other processes one built anew."""
        if self.engine.is_here:
            return lambda: self._device_calibration
        calibration = self.calibration().on(torch.device("cpu"))
        pixels = self._sent(calibration.pixels)
        return Rebuilt(self._module, self._sent(self._example), calibration.recipe, calibration.layers, pixels)

    def _sent(self, tensor: Tensor) -> Tensor:
        """Return a tensor as tasks have it: a part of a larger one would be sent to other processes as the whole."""
        return tensor if self.engine.is_here else tensor.clone()

    def _calibrated_steps(self) -> Iterator[Progress]:
        """Report the calibration as a stage that another one needs first, where it is not there yet."""
        if "calibration" not in self._memory:
            yield from (replace(step, result=None) for step in self.calibration_steps())

    @property
    def metrics(self) -> dict[str, str]:
        """Descriptions of the metrics of sensitivity by name, those that these images have labels for."""
        has_labels = self.calibration_images.labels is not None
        return {name: metric.description for name, metric in METRICS.items() if has_labels or not metric.needs_labels}

    def sensitivity_steps(self, operands: str = "both", baseline: int | None = None) -> Iterator[Progress]:
        """Measure the sensitivity of every layer at every bit-width, a cell at a time.

        The results of steps are cells; the last one is Λ by layer and bit-width, by the metric of the settings.

        Args:
            operands: `both`, `weights` or `activations`.
            baseline: Bit-width of all other layers; that of the settings by default.
        """
        baseline = self.settings.baseline if baseline is None else baseline
        key = self._sensitivity_key(operands, baseline)
        swept = self._swept(operands)
        total = len(swept) * len(BIT_WIDTHS)

        def progress() -> Progress:
            return self.sensitivity_progress(operands, baseline)

        def run() -> Iterator[Progress]:
            saved = set(self.store.items(key))
            missing = {
                layer.name: [bits for bits in BIT_WIDTHS if _item(layer.name, bits) not in saved] for layer in swept
            }
            images = self._analysis_images
            work = partial(
                sweep_worker,
                self._worker_calibration(),
                self._sent(images.pixels),
                images.labels,
                operands,
                BIT_WIDTHS,
                baseline,
            )
            tasks = [(layer, widths) for layer, widths in missing.items() if widths]
            for done, cell in enumerate(self.engine.results(work, tasks), len(saved) + 1):
                self.store.put(key, _item(cell.layer, cell.bits), _row(cell.effect))
                yield Progress(done, total, f"{cell.layer} at {cell.bits} bits", cell)

        if ("effects", operands, baseline) not in self._memory:
            if progress().done < total:
                yield from self._calibrated_steps()
            yield from once(self.store, key, progress, run)
            cells = {(cell.layer, cell.bits): cell.effect for cell in self.saved_sensitivity(operands, baseline)}
            effects = {layer.name: {bits: cells[layer.name, bits] for bits in BIT_WIDTHS} for layer in swept}
            self._memory["effects", operands, baseline] = effects
        yield Progress(total, total, "sensitivity", self.sensitivity(operands, baseline=baseline))

    def sensitivity_progress(self, operands: str = "both", baseline: int | None = None) -> Progress:
        """Return how many cells are measured and saved; arguments as in `sensitivity_steps`."""
        baseline = self.settings.baseline if baseline is None else baseline
        saved = self.store.items(self._sensitivity_key(operands, baseline))
        return Progress(len(saved), len(self._swept(operands)) * len(BIT_WIDTHS), "sensitivity")

    def sensitivity(
        self, operands: str = "both", metric: str | None = None, baseline: int | None = None
    ) -> dict[str, dict[int, float]]:
        """Return Λ by layer name and bit-width, computing what is missing.

        Args:
            operands: `both`, `weights` or `activations`.
            metric: How harm is measured, one of `metrics`; that of the settings by default.
            baseline: Bit-width of all other layers; that of the settings by default.

        Raises:
            MixQViTError: The metric is unknown.
            ImageError: The metric needs labels and there are none.
        """
        chosen, baseline = self._chosen(metric, baseline)
        effects = self._effects(operands, baseline)
        return self._remembered(
            ("sensitivity", operands, chosen.name, baseline),
            lambda: {name: {bits: harm(chosen, found) for bits, found in row.items()} for name, row in effects.items()},
        )

    def sensitivity_intervals(
        self, operands: str = "both", metric: str | None = None, baseline: int | None = None
    ) -> dict[str, dict[int, tuple[float, float]]]:
        """Return the 95 % bootstrap interval over images of every Λ; arguments and errors as in `sensitivity`."""
        chosen, baseline = self._chosen(metric, baseline)
        effects = self._effects(operands, baseline)

        def compute() -> dict[str, dict[int, tuple[float, float]]]:
            found = iter(intervals(chosen, [cell for row in effects.values() for cell in row.values()]))
            return {name: {bits: next(found) for bits in row} for name, row in effects.items()}

        return self._remembered(("intervals", operands, chosen.name, baseline), compute)

    def saved_sensitivity(self, operands: str = "both", baseline: int | None = None) -> list[SensitivityCell]:
        """Return the cells that are saved already, without computing any."""
        baseline = self.settings.baseline if baseline is None else baseline
        cells = []
        for item, row in self.store.rows(self._sensitivity_key(operands, baseline)).items():
            name, bits = item.split("@")
            found = Effect(**{part: None if values is None else np.array(values) for part, values in row.items()})
            cells.append(SensitivityCell(name, operands, int(bits), found))
        return cells

    def _effects(self, operands: str, baseline: int) -> dict[str, dict[int, Effect]]:
        steps = lambda: self.sensitivity_steps(operands, baseline)  # noqa: E731
        return self._finished(("effects", operands, baseline), steps)

    def _chosen(self, metric: str | None, baseline: int | None) -> tuple[Any, int]:
        return find_metric(metric or self.settings.metric), self.settings.baseline if baseline is None else baseline

    def _swept(self, operands: str) -> list[Layer]:
        return [layer for layer in self.layers if cell_bits(layer, operands, BIT_WIDTHS[0]) is not None]

    def _sensitivity_key(self, operands: str, baseline: int) -> str:
        settings = self.settings
        images = (settings.calibration_images, settings.analysis_images)
        return self._key("sensitivity", settings.recipe, *images, operands, baseline)


def _item(layer: str, bits: int) -> str:
    return f"{layer}@{bits}"


def _row(effect: Effect) -> dict[str, list[float] | None]:
    """Return what is saved of a cell."""
    return {part: None if values is None else values.tolist() for part, values in vars(effect).items()}
