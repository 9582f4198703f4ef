"""Quantization sensitivity: the harm of quantizing one layer alone (METHOD.md, "Quantization sensitivity Λ")."""

from mixqvit.sensitivity.metrics import METRICS, Effect, Metric, effect, find_metric, harm, intervals
from mixqvit.sensitivity.sweep import OPERANDS, SensitivityCell, cell_bits, sensitivity_steps

__all__ = [
    "METRICS",
    "OPERANDS",
    "Effect",
    "Metric",
    "SensitivityCell",
    "cell_bits",
    "effect",
    "find_metric",
    "harm",
    "intervals",
    "sensitivity_steps",
]
