"""Calibrated layers as plain tensors and back, for the store: every quantizer, by the fields of its class."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from mixqvit.errors import StoreError
from mixqvit.quantization.calibration import LayerCalibration
from mixqvit.quantization.quantizers.base import QUANTIZERS, Quantizer

__all__ = ["from_tensors", "quantizer_from_tensors", "quantizer_to_tensors", "to_tensors"]


def to_tensors(piece: LayerCalibration) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the quantizers of a layer as tensors named `operand/bits/field`, and what else they are made of, in words.

    The words are JSON by `operand/bits`, and the number of operands: metadata of a safetensors file.
    """
    tensors: dict[str, Tensor] = {}
    descriptions = {"operands": str(len(piece.operands))}
    if piece.token_weights is not None:
        tensors["token_weights"] = piece.token_weights
    for index, quantizers in enumerate(piece.operands):
        for bits, quantizer in quantizers.items():
            path = f"{index}/{bits}"
            found, descriptions[path] = quantizer_to_tensors(quantizer)
            tensors |= {f"{path}/{name}": tensor for name, tensor in found.items()}
    return tensors, descriptions


def from_tensors(layer: str, tensors: Mapping[str, Tensor], descriptions: Mapping[str, str]) -> LayerCalibration:
    """Return what `to_tensors` was given.

    Raises:
        StoreError: A quantizer or one of its tensors is missing or unknown.
    """
    operands: list[dict[int, Quantizer]] = [{} for _ in range(int(descriptions.get("operands", 0)))]
    for path, description in descriptions.items():
        if path != "operands":
            prefix = f"{path}/"
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            index, bits = map(int, path.split("/"))
            operands[index][bits] = quantizer_from_tensors(own, description)
    ordered = tuple(dict(sorted(quantizers.items())) for quantizers in operands)
    return LayerCalibration(layer, ordered, tensors.get("token_weights"))


def quantizer_to_tensors(quantizer: Quantizer) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a quantizer by field name (`field/field` where nested) and the rest of it as JSON."""
    tensors: dict[str, Tensor] = {}
    return tensors, json.dumps(_describe(quantizer, "", tensors))


def quantizer_from_tensors(tensors: Mapping[str, Tensor], description: str) -> Quantizer:
    """Return what `quantizer_to_tensors` was given.

    Raises:
        StoreError: The class is unknown or a tensor is missing.
    """
    return _build(json.loads(description), "", tensors)


def _describe(quantizer: Quantizer, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put the tensors of a quantizer into `tensors` and return its class and its other fields."""
    description: dict[str, Any] = {"class": type(quantizer).__name__}
    for name in (field.name for field in fields(quantizer)):
        value = getattr(quantizer, name)
        if isinstance(value, Tensor):
            # Safetensors refuses tensors that share memory, as views of one result do.
            tensors[prefix + name] = value.detach().clone()
        elif is_dataclass(value):
            description[name] = _describe(value, f"{prefix}{name}/", tensors)
        else:
            description[name] = value
    return description


def _build(description: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor]) -> Quantizer:
    kind = QUANTIZERS.get(description["class"])
    if kind is None:
        raise StoreError(
            f"The saved calibration holds a quantizer {description['class']!r}, which this version does not know. "
            "Clear the cache and calibrate again."
        )
    values = {}
    for name in (field.name for field in fields(kind)):
        if name not in description and prefix + name not in tensors:
            raise StoreError(
                f"The saved {kind.__name__} lacks its {prefix}{name}. Clear the cache and calibrate again."
            )
        value = description[name] if name in description else tensors[prefix + name]
        values[name] = _build(value, f"{prefix}{name}/", tensors) if isinstance(value, dict) else value
    return kind(**values)
