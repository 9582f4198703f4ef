"""Calibrated tiny models; a distilled DeiT has two heads, a Swin has windows and patch merging."""

import pytest

from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import Calibration, calibrate
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model


def calibrated(architecture: str) -> Calibration:
    """Return a calibration at 2, 4 and 8 bits."""
    return calibrate(trace(tiny_model(architecture), tiny_images(1)), tiny_images(4), bit_widths=(2, 4, 8))


@pytest.fixture(scope="session", params=ARCHITECTURES)
def calibration(request) -> Calibration:
    """Every architecture in turn."""
    return calibrated(request.param)


@pytest.fixture(scope="session")
def vit() -> Calibration:
    """A plain vision transformer."""
    return calibrated("vit")
