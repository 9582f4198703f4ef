"""Calibrated layers as plain tensors and back, for the store."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mixqvit.quantization.calibration import LayerCalibration
from mixqvit.quantization.quantizers import (
    ActivationQuantizer,
    LogSqrt2Quantizer,
    ReparameterizedQuantizer,
    UniformQuantizer,
)

__all__ = ["from_tensors", "to_tensors"]


def to_tensors(piece: LayerCalibration) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the quantizers of a layer as tensors named `operand/bits/field`, and the class of each operand."""
    tensors: dict[str, Tensor] = {}
    classes: dict[str, str] = {}
    for index, quantizers in enumerate(piece.operands):
        for bits, quantizer in quantizers.items():
            classes[str(index)] = type(quantizer).__name__
            for name, tensor in _fields(quantizer).items():
                tensors[f"{index}/{bits}/{name}"] = tensor
    return tensors, classes


def from_tensors(layer: str, tensors: Mapping[str, Tensor], classes: Mapping[str, str]) -> LayerCalibration:
    """Return what `to_tensors` was given."""
    grouped: dict[int, dict[int, dict[str, Tensor]]] = {}
    for path, tensor in tensors.items():
        operand, bits, name = path.split("/")
        grouped.setdefault(int(operand), {}).setdefault(int(bits), {})[name] = tensor
    operands = tuple(
        {bits: _quantizer(classes[str(index)], bits, fields) for bits, fields in sorted(by_bits.items())}
        for index, by_bits in sorted(grouped.items())
    )
    return LayerCalibration(layer, operands)


def _fields(quantizer: ActivationQuantizer) -> dict[str, Tensor]:
    if isinstance(quantizer, ReparameterizedQuantizer):
        moved = {"ratio": quantizer.ratio, "shift": quantizer.shift, "clip": torch.tensor(quantizer.clip)}
        return moved | _fields(quantizer.tensor)
    if isinstance(quantizer, LogSqrt2Quantizer):
        return {"scale": quantizer.scale}
    return {"scale": quantizer.scale, "zero_point": quantizer.zero_point}


def _quantizer(kind: str, bits: int, fields: Mapping[str, Tensor]) -> ActivationQuantizer:
    if kind == LogSqrt2Quantizer.__name__:
        return LogSqrt2Quantizer(fields["scale"], bits)
    uniform = UniformQuantizer(fields["scale"], fields["zero_point"], bits)
    if kind == UniformQuantizer.__name__:
        return uniform
    return ReparameterizedQuantizer(fields["ratio"], fields["shift"], uniform, round(float(fields["clip"]), 6))
