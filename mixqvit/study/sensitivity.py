"""Calibration and sensitivity of a study: fitted quantizers, and the harm of each layer's."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mixqvit.criteria.sensitivity.metrics import METRICS, find_metric, harm, intervals
from mixqvit.criteria.sensitivity.stage import Effects, Sweep
from mixqvit.criteria.sensitivity.sweep import SensitivityCell
from mixqvit.progress import Progress
from mixqvit.quantization.calibration import Calibration
from mixqvit.quantization.calibration_stage import device_calibration, own_calibration, worker_calibration
from mixqvit.stages import runner
from mixqvit.study.base import StudyBase

__all__ = ["SensitivityStages"]


class SensitivityStages(StudyBase):
    """Fitted quantizers, and the harm of each layer's."""

    def calibration_steps(self) -> Iterator[Progress]:
        """Fit the quantizers, a layer at a time; the last result is the `Calibration`."""
        return runner.steps(self, own_calibration(self))

    def calibration_progress(self) -> Progress:
        """Return how many layers have their quantizers fitted and saved."""
        return runner.progress(self, own_calibration(self))

    def calibration(self) -> Calibration:
        """Return the calibration, computing what is missing."""
        return self.result(own_calibration(self))

    @property
    def _device_calibration(self) -> Calibration:
        return device_calibration(self)

    def _worker_calibration(self) -> Any:
        return worker_calibration(self)

    def _calibrated_steps(self) -> Iterator[Progress]:
        """Report the calibration as a stage that another one needs first, where it is not there yet."""
        if self.calibration_progress().done < len(self.layers):
            yield from (replace(step, result=None) for step in self.calibration_steps())

    @property
    def metrics(self) -> dict[str, str]:
        """Descriptions of the metrics of sensitivity by name, those that these images have labels for."""
        has_labels = self.calibration_images.labels is not None
        return {name: metric.description for name, metric in METRICS.items() if has_labels or not metric.needs_labels}

    def sensitivity_steps(self, operands: str = "both", baseline: int | None = None) -> Iterator[Progress]:
        """Measure the sensitivity of every layer at every bit-width, a cell at a time.

        The pieces of steps are cells; the last result is Λ by layer and bit-width, by the metric of the settings.

        Args:
            operands: `both`, `weights` or `activations`.
            baseline: Bit-width of all other layers; that of the settings by default.
        """
        for step in runner.steps(self, self._sweep(operands, baseline)):
            yield replace(step, result=self.sensitivity(operands, baseline=baseline)) if step.finished else step

    def sensitivity_progress(self, operands: str = "both", baseline: int | None = None) -> Progress:
        """Return how many cells are measured and saved; arguments as in `sensitivity_steps`."""
        return runner.progress(self, self._sweep(operands, baseline))

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
        chosen, sweep = find_metric(metric or self.settings.metric), self._sweep(operands, baseline)
        effects: Effects = self.result(sweep)
        return self.remembered(
            ("sensitivity", chosen.name, sweep),
            lambda: {name: {bits: harm(chosen, found) for bits, found in row.items()} for name, row in effects.items()},
        )

    def sensitivity_intervals(
        self, operands: str = "both", metric: str | None = None, baseline: int | None = None
    ) -> dict[str, dict[int, tuple[float, float]]]:
        """Return the 95 % bootstrap interval over images of every Λ; arguments and errors as in `sensitivity`.

        Empty where there is one image, which cannot be drawn again in another way.
        """
        chosen, sweep = find_metric(metric or self.settings.metric), self._sweep(operands, baseline)
        effects: Effects = self.result(sweep)
        if len(self.analysis_images) == 1:
            return {}

        def compute() -> dict[str, dict[int, tuple[float, float]]]:
            found = iter(intervals(chosen, [cell for row in effects.values() for cell in row.values()]))
            return {name: {bits: next(found) for bits in row} for name, row in effects.items()}

        return self.remembered(("intervals", chosen.name, sweep), compute)

    def saved_sensitivity(self, operands: str = "both", baseline: int | None = None) -> list[SensitivityCell]:
        """Return the cells that are saved already, without computing any."""
        return list(self.saved(self._sweep(operands, baseline)).values())

    def _sweep(self, operands: str, baseline: int | None) -> Sweep:
        return Sweep(operands, self.settings.baseline if baseline is None else baseline)

    def _sensitivity_key(self, operands: str, baseline: int) -> str:
        return runner.key(self, self._sweep(operands, baseline))
