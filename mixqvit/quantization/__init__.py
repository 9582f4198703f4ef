"""Post-training quantization: quantizers, calibration, reparameterization, the quantized model."""

from mixqvit.quantization.calibration import Calibration, LayerCalibration, calibrate, calibrate_steps
from mixqvit.quantization.model import QuantizedModel, quantize
from mixqvit.quantization.recipes import RECIPES

__all__ = [
    "RECIPES",
    "Calibration",
    "LayerCalibration",
    "QuantizedModel",
    "calibrate",
    "calibrate_steps",
    "quantize",
]
