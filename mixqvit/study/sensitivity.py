"""Calibration and sensitivity in a study: fitted quantizers, and the harm of each layer's."""

from collections.abc import Iterator
from dataclasses import replace

from mixqvit.criteria.sensitivity.harms import layer_harms
from mixqvit.criteria.sensitivity.stage import Effects, Sweep, own_sweep
from mixqvit.criteria.sensitivity.sweep import SensitivityCell
from mixqvit.engines.progress import Progress
from mixqvit.quantization.calibration import Calibration
from mixqvit.quantization.calibration_stage import own_calibration
from mixqvit.quantization.fidelity_stage import checked_calibration, trusted_calibration
from mixqvit.stages import runner
from mixqvit.study.part import Part

__all__ = ["Sensitivities"]


class Sensitivities(Part):
    """Fitted quantizers, and the harm of each layer's."""

    def calibration_steps(self) -> Iterator[Progress]:
        """Fit the quantizers, a layer at a time, and check them at 8 bits; the last result is the `Calibration`."""
        yield from runner.ready(self.study, checked_calibration(self.study))
        trusted_calibration(self.study)
        yield from runner.steps(self.study, own_calibration(self.study))

    def calibration_progress(self) -> Progress:
        """Return how many layers have their quantizers fitted and saved."""
        return runner.progress(self.study, own_calibration(self.study))

    def calibration(self) -> Calibration:
        """Return the calibration, computing what is missing."""
        return trusted_calibration(self.study)

    def metrics(self) -> dict[str, str]:
        """Return descriptions of the metrics of sensitivity by name, those that these images have labels for."""
        metrics = self.study.task.metrics_for(self.study.calibration_images.labels is not None)
        return {name: metric.description for name, metric in metrics.items()}

    def steps(self, operands: str = "both", baseline: int | None = None) -> Iterator[Progress]:
        """Measure the sensitivity of every layer at every bit-width, a cell at a time.

        The pieces of steps are cells; the last result is Λ by layer and bit-width, by the metric of the settings.

        Args:
            operands: `both`, `weights` or `activations`.
            baseline: Bit-width of all other layers; that of the settings by default.
        """
        for step in runner.steps(self.study, self.stage(operands, baseline)):
            yield replace(step, result=self.harms(operands, baseline=baseline)) if step.finished else step

    def progress(self, operands: str = "both", baseline: int | None = None) -> Progress:
        """Return how many cells are measured and saved; arguments as in `sensitivity_steps`."""
        return runner.progress(self.study, self.stage(operands, baseline))

    def harms(
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
        return layer_harms(self.study, operands, metric, baseline)

    def harm_intervals(
        self, operands: str = "both", metric: str | None = None, baseline: int | None = None
    ) -> dict[str, dict[int, tuple[float, float]]]:
        """Return the 95 % bootstrap interval over images of every Λ; arguments and errors as in `sensitivity`.

        Empty where there is one image, which cannot be drawn again in another way.
        """
        has_labels = self.study.analysis_images.labels is not None
        chosen = self.study.task.metric(metric or self.study.settings.metric, has_labels)
        sweep = self.stage(operands, baseline)
        effects: Effects = self.study.result(sweep)
        if len(self.study.analysis_images) == 1:
            return {}

        def compute() -> dict[str, dict[int, tuple[float, float]]]:
            found = iter(chosen.intervals([cell for row in effects.values() for cell in row.values()]))
            return {name: {bits: next(found) for bits in row} for name, row in effects.items()}

        return self.study.remembered(("intervals", chosen.name, sweep), compute)

    def saved(self, operands: str = "both", baseline: int | None = None) -> list[SensitivityCell]:
        """Return the cells that are saved already, without computing any."""
        return list(self.study.saved(self.stage(operands, baseline)).values())

    def stage(self, operands: str = "both", baseline: int | None = None) -> Sweep:
        """Return the stage that measures them."""
        return own_sweep(self.study, operands, baseline)
