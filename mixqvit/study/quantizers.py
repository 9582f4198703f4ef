"""Quantizers and recipes side by side in a study."""

from collections.abc import Iterator
from functools import lru_cache

from mixqvit.engines.progress import Progress
from mixqvit.errors import BitWidthError
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.quantization.calibration_stage import Calibrated
from mixqvit.quantization.evaluation_stage import Evaluated
from mixqvit.quantization.fisher import fisher_diagonals
from mixqvit.quantization.quantizer_comparison import OperandComparison, compare_quantizers
from mixqvit.quantization.recipes import RECIPES
from mixqvit.quantization.roles import roles
from mixqvit.study.composite import Composite
from mixqvit.study.evaluation import Evaluations
from mixqvit.study.part import Part
from mixqvit.tasks.evaluation import Evaluation

__all__ = ["Quantizers"]

# Comparisons of quantizers that are kept: some hundred kilobytes each.
OPERAND_COMPARISONS = 64


class Quantizers(Part):
    """What quantizers make of an operand, and recipes of the model."""

    def roles(self, layer: str) -> tuple[str, ...]:
        """Return what the activation operands of a layer are: one of a layer with a weight, two of a product."""
        return roles(self.study.layer(layer))

    def compare(self, layer: str, operand: int = 0) -> OperandComparison:
        """Return every quantizer of the menu fitted to one operand, quantized alone, at every bit-width.

        Args:
            layer: Name of the layer.
            operand: Which of `operand_roles`.
        """
        study = self.study

        def found(layer: str, operand: int) -> OperandComparison:
            pixels = study.calibration_pixels
            fisher = study.remembered("fisher", lambda: fisher_diagonals(study.graph, pixels))
            return compare_quantizers(study.graph, study.layer(layer), operand, pixels, fisher[layer])

        return study.remembered("operand comparisons", lambda: lru_cache(OPERAND_COMPARISONS)(found))(layer, operand)

    def recipes(self) -> dict[str, str]:
        """Return descriptions of all recipes by name, the plainest first."""
        return {name: RECIPES[name].description for name in reversed(RECIPES)}

    def recipe_steps(self, bits: int) -> Iterator[Progress]:
        """Measure full precision and every recipe at uniform bits on the evaluation images, one after the other.

        Every piece is what is finished so far: an `Evaluation` by recipe, and by `full precision`.

        Raises:
            BitWidthError: The bit-width is not 2 to 8.
        """
        found = self.saved_recipes(bits)
        missing = [setting for setting in self._settings(bits) if setting[0] not in found]
        whole = Composite("recipes", len(missing), lambda: dict(found))
        for name, recipe, width in missing:
            stages = (Evaluated.name,) if width == FULL_PRECISION else (Calibrated.name, Evaluated.name)
            found[name] = yield from whole.part(Evaluations(self.study).steps(width, recipe), name, stages)
            yield whole.progress()
        yield whole.last()

    def saved_recipes(self, bits: int) -> dict[str, Evaluation]:
        """Return what `recipe_steps` has finished at these bits, without measuring anything."""
        found = {}
        for name, recipe, width in self._settings(bits):
            saved = Evaluations(self.study).saved(width, recipe)
            if saved is not None:
                found[name] = saved
        return found

    def _settings(self, bits: int) -> list[tuple[str, str, int]]:
        """Return names, recipes and bits of what is measured."""
        if bits not in BIT_WIDTHS:
            raise BitWidthError(f"{bits!r} bits are not possible: use {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]}.")
        full = ("full precision", self.study.recipe, FULL_PRECISION)
        return [full, *((recipe, recipe, bits) for recipe in reversed(RECIPES))]
