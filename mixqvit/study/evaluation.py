"""Evaluation in a study: any bits, by every recipe, measured on the evaluation images."""

from collections.abc import Iterator, Mapping, Sequence

from mixqvit.allocation.budget import Allocation
from mixqvit.engines.progress import Progress
from mixqvit.engines.this_process import ThisProcess
from mixqvit.errors import CalibrationError
from mixqvit.network.bits import Bits, BitsPerLayer, resolve_bits
from mixqvit.quantization.evaluation_stage import Evaluated, own_reference_answers
from mixqvit.quantization.fidelity_stage import checked_calibration
from mixqvit.quantization.recipes import find_recipe
from mixqvit.stages import runner
from mixqvit.study.part import Part
from mixqvit.tasks.evaluation import Evaluation
from mixqvit.tasks.task import Example

__all__ = ["AnyBits", "Evaluations"]

AnyBits = Allocation | int | Mapping[str, int | Bits]
"""An allocation, bits per layer, or one bit-width for all."""

QUICK_MACS = 10**11
"""Multiply-accumulates of an evaluation that takes seconds on two cores: the digits' 500 images are a quarter of it."""

QUANTIZED_PASS, COMPENSATION_PASSES = 1.3, 10.6
"""Time of a quantized pass, and of error compensation over the calibration images, in full-precision passes (measured
on DeiT-Tiny, tests/benchmarks/RESULTS.md)."""

COMPENSATION_LAYER_SECONDS = 0.005
"""Time of error compensation for each layer beside its passes (one thread; digits_vit and digits_swin)."""


class Evaluations(Part):
    """Quantized models, measured."""

    def steps(self, bits: AnyBits, recipe: str | None = None) -> Iterator[Progress]:
        """Measure bits on the evaluation images, a batch at a time; every piece is an `Evaluation` so far.

        Args:
            bits: An allocation, bits per layer or one bit-width for all.
            recipe: Another recipe than the study's; one that serves a single setting takes one bit-width for all.

        Raises:
            BitWidthError: A bit-width or layer name is not possible.
            CalibrationError: The recipe is unknown, or cannot serve these bits.
        """
        if find_recipe(recipe or self.study.recipe).one_setting and not isinstance(bits, int):
            raise CalibrationError(f"Recipe {recipe} is calibrated for one bit setting: give one bit-width for all.")
        study, stage = self.study, self.stage(bits, recipe)
        if self.by_itself():
            study = study.with_engine(ThisProcess())
        elif not study.engine.is_here and stage.recipe == study.recipe:
            yield from runner.ready(study, checked_calibration(study))  # which its workers are sent
        yield from runner.steps(study, stage)

    def many_steps(self, many: Sequence[AnyBits]) -> Iterator[Progress]:
        """Measure several settings, on the engine of the study side by side; the last result is their evaluations.

        Args:
            many: Each as in `evaluate_steps`.

        Raises:
            BitWidthError: A bit-width or layer name is not possible.
            EngineError: The engine cannot be used.
        """
        if not self.study.engine.is_here:
            yield from runner.ready(self.study, checked_calibration(self.study))
        yield from runner.steps_together(self.study, [self.stage(bits) for bits in many])

    def progress(self, bits: AnyBits, recipe: str | None = None) -> Progress:
        """Return how many evaluation images are measured and saved at these bits."""
        return runner.progress(self.study, self.stage(bits, recipe))

    def evaluation(self, bits: AnyBits) -> Evaluation:
        """Return accuracy, agreement and KL on all evaluation images, measuring what is not saved."""
        *_, last = self.steps(bits)
        return last.result

    def saved(self, bits: AnyBits, recipe: str | None = None) -> Evaluation | None:
        """Return what was measured of bits on all evaluation images, None if they were not, without measuring."""
        return runner.whole(self.study, self.stage(bits, recipe))

    def stage(self, bits: AnyBits, recipe: str | None = None) -> Evaluated:
        """Return the stage that measures bits."""
        return Evaluated.at(self.resolved(bits), recipe or self.study.recipe)

    def resolved(self, bits: AnyBits) -> BitsPerLayer:
        """Return (weight bits, activation bits) for every layer."""
        return resolve_bits(self.study.layers, bits.bits if isinstance(bits, Allocation) else bits)

    def by_itself(self) -> bool:
        """Return whether measuring an allocation takes seconds, so that it need not be asked for."""
        return self.study.graph.macs * len(self.study.evaluation_images) <= QUICK_MACS

    def estimate(self) -> float:
        """Return about how many seconds measuring one allocation takes here, from a timed run of a few images."""
        study = self.study
        return study.seconds_per_image() * (
            QUANTIZED_PASS * len(study.evaluation_images) + COMPENSATION_PASSES * len(study.calibration_pixels)
        ) + COMPENSATION_LAYER_SECONDS * len(study.layers)

    def reference(self) -> list[int]:
        """Return the top-1 class of every evaluation image in full precision, among the classes of the settings."""
        return list(own_reference_answers(self.study).predicted)

    def example(self, index: int) -> Example:
        """Return an evaluation image as a person sees it, with its label."""
        return self.study.task.example(self.study.evaluation_images, index)
