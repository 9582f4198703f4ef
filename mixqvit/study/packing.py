"""Quantized models of a study, written to files and measured from there."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from mixqvit.engines.progress import Progress
from mixqvit.errors import PackingError
from mixqvit.packing.model import Packed, load_packed, packed, packed_source
from mixqvit.quantization.evaluation import evaluate_steps
from mixqvit.quantization.evaluation_stage import FullPrecision, most_images
from mixqvit.quantization.model import QuantizedModel, quantize
from mixqvit.stages import runner
from mixqvit.study.evaluation import AnyBits, Evaluations
from mixqvit.study.part import Part
from mixqvit.study.sensitivity import Sensitivities

__all__ = ["Packing"]


class Packing(Part):
    """Quantized models as files."""

    def quantized(self, bits: AnyBits) -> QuantizedModel:
        """Return the quantized model, on the CPU."""
        calibration, resolved = Sensitivities(self.study).calibration(), Evaluations(self.study).resolved(bits)
        return quantize(calibration, resolved).on(torch.device("cpu"))

    def packed(self, bits: AnyBits) -> Packed:
        """Return the quantized model as the content of one file, of the very size that its cost says.

        Raises:
            PackingError: The model cannot be packed.
        """
        return packed(self.quantized(bits), self.study.model)

    def pack(self, bits: AnyBits, path: str | Path) -> Packed:
        """Write the quantized model as one file, atomically; `load_packed` reads it.

        Raises:
            PackingError: The model cannot be packed or the file cannot be written.
        """
        found = self.packed(bits)
        found.write(path)
        return found

    def evaluate_steps(self, path: str | Path) -> Iterator[Progress]:
        """Measure a packed model on the evaluation images, beside the full-precision model it was made from.

        Every piece is an `Evaluation` so far.

        Raises:
            PackingError: The file cannot be loaded, or was made from another model than this study's.
        """
        study = self.study
        if packed_source(path).fingerprint != study.graph.fingerprint:
            raise PackingError(
                f"{path} was not made from {study.model.name} as it is here. Open the model that it was packed from: "
                "the same name, checkpoint and outlier amplification."
            )
        predict = load_packed(path, study.model).on(study.device)
        yield from runner.ready(study, [FullPrecision()])
        images, reference = study.evaluation_images, study.result(FullPrecision())
        steps = evaluate_steps(
            study.task, predict, images.pixels, images.labels, reference, most_images(study), study.device
        )
        for so_far in steps:
            words = f"{so_far.images} of {len(images)} images"
            step = Progress(so_far.images, len(images), words, stage="evaluation of the packed model", piece=so_far)
            yield step
        yield replace(step, result=so_far)
