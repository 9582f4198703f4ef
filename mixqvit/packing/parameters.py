"""The parameters of an activation quantizer as bytes of a size known before it is fitted.

What kind of quantizer it is (its class, which tensors it has, their shapes) is said apart from the numbers: many
operands share a few kinds, whatever was fitted.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixqvit.allocation.costs import OPERAND_BYTES
from mixqvit.errors import PackingError, StoreError
from mixqvit.quantization.quantizers.base import QUANTIZERS, Quantizer
from mixqvit.quantization.saving import quantizer_from_tensors, quantizer_to_tensors

__all__ = ["EncodedQuantizer", "decode_quantizer", "encode_quantizer"]

# Stand for the operand's bit-width and for a fitted number in the description of a kind.
_WIDTH, _NUMBER = "<width>", "<number>"
_DTYPES = {1: np.dtype("int8"), 4: np.dtype("<f4")}  # by `Quantizer.channel_bytes`


@dataclass(frozen=True)
class EncodedQuantizer:
    """An activation quantizer in bytes.

    Attributes:
        kind: Its class, the shapes of its tensors and what is not fitted, as JSON.
        numbers: Its scalars as float32, then its numbers that are no tensors as float64, then zeros: `OPERAND_BYTES`.
        channels: Its other tensors, as its class states: float32, or whole numbers of one byte.
    """

    kind: str
    numbers: bytes
    channels: bytes


def encode_quantizer(quantizer: Quantizer, width: int) -> EncodedQuantizer:
    """Return the quantizer of an operand of `width` bits in bytes.

    Raises:
        PackingError: It does not fit the format; this is a mistake of the program.
    """
    tensors, description = quantizer_to_tensors(quantizer)
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise PackingError("Only models in float32 can be packed: convert the model and calibrate it again.")
    fitted: list[float] = []
    plain = _without_numbers(json.loads(description), width, fitted)
    kind = {"quantizer": plain, "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()}}
    scalars = b"".join(tensor.numpy().tobytes() for tensor in tensors.values() if not tensor.dim())
    numbers = scalars + struct.pack(f"<{len(fitted)}d", *fitted)
    if len(numbers) > OPERAND_BYTES:
        raise PackingError(f"A {type(quantizer).__name__} takes {len(numbers)} bytes, {OPERAND_BYTES} were kept.")
    vectors = (_vector_bytes(type(quantizer), name, tensor) for name, tensor in tensors.items() if tensor.dim())
    return EncodedQuantizer(json.dumps(kind), numbers.ljust(OPERAND_BYTES, b"\0"), b"".join(vectors))


def _vector_bytes(kind: type[Quantizer], name: str, tensor: Tensor) -> bytes:
    stored = tensor.numpy().astype(_vector_dtype(kind, name))
    if not np.array_equal(stored, tensor.numpy()):
        raise PackingError(f"The {name} of a {kind.__name__} must be whole numbers of one byte.")
    return stored.tobytes()


def _vector_dtype(kind: type[Quantizer], name: str) -> np.dtype:
    if name not in kind.channel_bytes:
        raise PackingError(f"A {kind.__name__} has one {name} for the whole tensor, not one per channel.")
    return _DTYPES[kind.channel_bytes[name]]


def decode_quantizer(kind: str, numbers: bytes, channels: bytes, width: int) -> tuple[Quantizer, int]:
    """Return what `encode_quantizer` was given, and how many bytes of `channels`, which may go on, it took.

    Raises:
        PackingError: The kind of quantizer is unknown.
    """
    description = json.loads(kind)
    quantizer_class = QUANTIZERS.get(description["quantizer"]["class"])
    if quantizer_class is None:
        raise PackingError(
            "The packed model has an activation quantizer that this version does not know. Pack it again."
        )
    tensors: dict[str, Tensor] = {}
    scalar_end = channel_end = 0
    for name, shape in description["tensors"].items():
        dtype = _vector_dtype(quantizer_class, name) if shape else np.dtype("<f4")
        start = channel_end if shape else scalar_end
        found = np.frombuffer(channels if shape else numbers, dtype, prod(shape), start)
        tensors[name] = torch.from_numpy(found.astype(np.float32)).reshape(shape)
        if shape:
            channel_end += found.nbytes
        else:
            scalar_end += found.nbytes
    fitted = iter(struct.unpack_from(f"<{(OPERAND_BYTES - scalar_end) // 8}d", numbers, scalar_end))
    complete = json.dumps(_with_numbers(description["quantizer"], width, fitted))
    try:
        return quantizer_from_tensors(tensors, complete), channel_end
    except StoreError as error:
        raise PackingError(
            f"The packed model's {quantizer_class.__name__} is not the one that this version knows. Pack it again."
        ) from error


def _without_numbers(description: Mapping[str, Any], width: int, fitted: list[float]) -> dict[str, Any]:
    """Put the fitted numbers of a quantizer's description into `fitted` and return what is left."""
    plain: dict[str, Any] = {}
    for name, value in description.items():
        if isinstance(value, dict):
            plain[name] = _without_numbers(value, width, fitted)
        elif isinstance(value, float):
            fitted.append(value)
            plain[name] = _NUMBER
        else:
            plain[name] = _WIDTH if name == "bits" and value == width else value
    return plain


def _with_numbers(plain: Mapping[str, Any], width: int, fitted: Iterator[float]) -> dict[str, Any]:
    known = {_WIDTH: lambda: width, _NUMBER: lambda: next(fitted)}
    return {
        name: _with_numbers(value, width, fitted)
        if isinstance(value, dict)
        else known[value]()
        if value in (_WIDTH, _NUMBER)
        else value
        for name, value in plain.items()
    }
