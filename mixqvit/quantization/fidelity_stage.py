"""The stage that checks a study's calibration at 8 bits, and the calibration as other stages get it: checked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mixqvit.quantization.calibration import Calibration
from mixqvit.quantization.calibration_stage import Calibrated, Rebuilt, own_calibration
from mixqvit.quantization.fidelity import Fidelity, check_fidelity, fidelity
from mixqvit.stages.context import Context
from mixqvit.stages.items import Named
from mixqvit.stages.stage import Stage, registered

__all__ = ["Checked", "checked_calibration", "device_calibration", "trusted_calibration", "worker_calibration"]

_ITEM = "8 bits beside full precision"


@registered
@dataclass(frozen=True)
class Checked(Stage[Fidelity, Fidelity]):
    """Whether 8 bits follow full precision from image to image, on a few calibration images."""

    name = "fidelity"
    version = 1

    recipe: str

    def needs(self, study: Context) -> Sequence[Calibrated]:
        """Return the calibration."""
        return (Calibrated(self.recipe),)

    def items(self, study: Context) -> Named:
        """Return the one check."""
        return Named((_ITEM,))

    def compute(self, study: Context, missing: Sequence[str]) -> Iterator[tuple[str, Fidelity]]:
        """Yield how 8 bits follow."""
        calibration = study.result(Calibrated(self.recipe))
        return ((name, fidelity(calibration, calibration.pixels)) for name in missing)

    def written(self, piece: Fidelity) -> dict[str, Any]:
        """Return the numbers."""
        return asdict(piece)

    def read(self, name: str, written: Mapping[str, Any]) -> Fidelity:
        """Return what was found."""
        return Fidelity(**written)

    def join(self, study: Context, pieces: Mapping[str, Fidelity]) -> Fidelity:
        """Return what was found.

        Raises:
            CalibrationError: 8 bits do not follow; the message names the layer that breaks them.
        """
        check_fidelity(pieces[_ITEM], self.recipe)
        return pieces[_ITEM]


def checked_calibration(study: Context) -> tuple[Stage, ...]:
    """Return the stages that make the calibration of a study and check it."""
    return own_calibration(study), Checked(study.recipe)


def trusted_calibration(study: Context) -> Calibration:
    """Return the study's calibration.

    Raises:
        CalibrationError: Even at 8 bits the quantized model does not follow the model.
    """
    study.result(Checked(study.recipe))
    return study.result(own_calibration(study))


def device_calibration(study: Context) -> Calibration:
    """Return the study's calibration on its device, for what only runs forward."""
    calibration = trusted_calibration(study)
    return study.remembered("device calibration", lambda: calibration.on(study.device))


def worker_calibration(study: Context) -> Callable[[], Calibration]:
    """Return what gives a worker the calibration: the one in memory here, in other processes one built anew."""
    if study.engine.is_here:
        return lambda: device_calibration(study)
    calibration = trusted_calibration(study).on(torch.device("cpu"))
    pixels = study.sent(calibration.pixels)
    example = study.sent(study.calibration_images.pixels[:1])
    return Rebuilt(study.module, example, calibration.recipe, calibration.layers, pixels)
