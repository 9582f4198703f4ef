"""The calibration and sensitivity stages of a study."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mixqvit.bits import BIT_WIDTHS
from mixqvit.quantization import Calibration, LayerCalibration, calibrate_steps
from mixqvit.quantization.saving import from_tensors, to_tensors
from mixqvit.records import Progress
from mixqvit.sensitivity import SensitivityCell, sensitivity_steps
from mixqvit.study.base import StudyBase

__all__ = ["SensitivityStages"]


class SensitivityStages(StudyBase):
    """Fitted quantizers, and the harm of each layer's."""

    def calibration_steps(self) -> Iterator[Progress]:
        """Fit the quantizers, a layer at a time."""
        settings = self.settings
        key = self._key("calibration", settings.recipe, settings.calibration_images)
        found = {layer.name: self.store.tensors(key, layer.name) for layer in self.layers}
        finished = {name: from_tensors(name, *saved) for name, saved in found.items() if saved}
        pixels = self.calibration_images.subset(settings.calibration_images).pixels
        total = len(self.layers)
        if len(finished) < total:
            for piece in calibrate_steps(self.graph, pixels, settings.recipe, finished=finished):
                self.store.put_tensors(key, piece.layer, *to_tensors(piece))
                finished[piece.layer] = piece
                yield Progress(len(finished), total, f"calibration of {piece.layer}")
        ordered: Mapping[str, LayerCalibration] = {layer.name: finished[layer.name] for layer in self.layers}
        self._memory["calibration"] = Calibration(self.graph, settings.recipe, ordered, pixels)
        yield Progress(total, total, "calibration", self._memory["calibration"])

    def calibration(self) -> Calibration:
        """Return the calibration, computing what is missing."""
        return self._finished("calibration", self.calibration_steps)

    def sensitivity_steps(self, operands: str = "both") -> Iterator[Progress]:
        """Measure the sensitivity of every layer at every bit-width, a cell at a time.

        Args:
            operands: `both`, `weights` or `activations`.
        """
        key = self._sensitivity_key(operands)
        saved = self.store.rows(key)
        cells = {tuple(item.split("@")): harm for item, harm in saved.items()}
        harms = {(name, int(bits)): harm for (name, bits), harm in cells.items()}
        applicable = [layer for layer in self.layers if operands != "weights" or not layer.is_matmul]
        total = len(applicable) * len(BIT_WIDTHS)
        if len(harms) < total:
            if "calibration" not in self._memory:
                yield from (replace(step, result=None) for step in self.calibration_steps())
            calibration = self.calibration()
            for cell in sensitivity_steps(calibration, self._analysis_pixels, operands, finished=set(harms)):
                self.store.put(key, f"{cell.layer}@{cell.bits}", cell.harm)
                harms[cell.layer, cell.bits] = cell.harm
                yield Progress(len(harms), total, f"{cell.layer} at {cell.bits} bits", cell)
        table = {layer.name: {bits: harms[layer.name, bits] for bits in BIT_WIDTHS} for layer in applicable}
        self._memory["sensitivity", operands] = table
        yield Progress(total, total, "sensitivity", table)

    def sensitivity(self, operands: str = "both") -> dict[str, dict[int, float]]:
        """Return Λ by layer name and bit-width, computing what is missing."""
        return self._finished(("sensitivity", operands), lambda: self.sensitivity_steps(operands))

    def saved_sensitivity(self, operands: str = "both") -> list[SensitivityCell]:
        """Return the cells that are saved already, without computing any."""
        cells = []
        for item, harm in self.store.rows(self._sensitivity_key(operands)).items():
            name, bits = item.split("@")
            cells.append(SensitivityCell(name, operands, int(bits), harm))
        return cells

    def _sensitivity_key(self, operands: str) -> str:
        settings = self.settings
        return self._key(
            "sensitivity", settings.recipe, settings.calibration_images, settings.analysis_images, operands
        )
