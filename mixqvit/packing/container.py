"""The file around a packed model: safetensors whose header has a size known beforehand and which seals itself.

A header of fixed size, filled up with spaces as the format allows, makes the size of the file a sum over layers. The
SHA-256 in its metadata covers every byte of the file, header included, with its own 64 digits read as zeros.
"""

import hashlib
import json
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from mixqvit.errors import PackingError

__all__ = ["LENGTH_BYTES", "decode", "encode", "read", "sealed_header_bytes", "write"]

LENGTH_BYTES = 8
"""Bytes before the header that state its length."""

_FORMAT = {"format": "mixqvit packed model", "version": "1"}
_DTYPES = {"float32": "F32", "uint8": "U8"}
_ALIGNMENT = 64
_UNSEALED = "0" * 64
_TENSOR_TABLE_BYTES = 1024


def sealed_header_bytes(metadata: Mapping[str, str], room: int) -> int:
    """Return the length of a header that holds this metadata and has room for as many bytes more."""
    known = len(json.dumps({"__metadata__": _sealable(metadata)}).encode())
    needed = LENGTH_BYTES + known + room + _TENSOR_TABLE_BYTES
    return -(-needed // _ALIGNMENT) * _ALIGNMENT - LENGTH_BYTES


def _sealable(metadata: Mapping[str, str]) -> dict[str, str]:
    return {**_FORMAT, **metadata, "sha256": _UNSEALED}


def encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], header_bytes: int) -> bytes:
    """Return the content of a file.

    Args:
        tensors: By name, in the order they are written; float32 before uint8, so that all are aligned.
        metadata: What else the header says.
        header_bytes: Length of the header.

    Raises:
        PackingError: The header does not fit; this is a mistake of the program.
    """
    header: dict[str, object] = {"__metadata__": _sealable(metadata)}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}
    written = json.dumps(header).encode()
    if len(written) > header_bytes:
        raise PackingError(f"The header takes {len(written)} bytes, {header_bytes} were kept for it: please report.")
    head = struct.pack("<Q", header_bytes) + written.ljust(header_bytes)
    data = b"".join(array.tobytes() for array in tensors.values())
    return _with_digest(head, _UNSEALED, _digest(head, data)) + data


def _with_digest(head: bytes, old: str, new: str) -> bytes:
    return head.replace(f'"sha256": "{old}"'.encode(), f'"sha256": "{new}"'.encode(), 1)


def _digest(head: bytes, data: bytes | memoryview) -> str:
    digest = hashlib.sha256(head)
    digest.update(data)
    return digest.hexdigest()


def decode(content: bytes, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors and the metadata of what `encode` wrote.

    Args:
        content: The content of a file.
        name: What messages call it.

    Raises:
        PackingError: It is truncated, altered, or was no packed model at all.
    """
    metadata = _checked_metadata(content, name)
    digest = metadata["sha256"]
    start = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    if _digest(_with_digest(content[:start], digest, _UNSEALED), memoryview(content)[start:]) != digest:
        raise PackingError(f"{name} was altered or damaged after it was written: its SHA-256 differs. Pack it again.")
    try:
        return safetensors.numpy.load(content), metadata
    except SafetensorError as error:
        raise PackingError(f"{name} is not a valid safetensors file ({error}). Pack it again.") from error


def _checked_metadata(content: bytes, name: str) -> dict[str, str]:
    """Return the metadata of a file of the right kind and length."""
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    written = content[LENGTH_BYTES : LENGTH_BYTES + length]
    if len(content) < LENGTH_BYTES or len(written) < length:
        raise PackingError(f"{name} is truncated, or no safetensors file at all: its header ends too early.")
    try:
        header = json.loads(written)
        metadata = header.pop("__metadata__", {})
        expected = LENGTH_BYTES + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        is_packed = metadata.get("format") == _FORMAT["format"] and len(metadata["sha256"]) == len(_UNSEALED)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise PackingError(f"{name} is altered, or no safetensors file at all: its header cannot be read.") from error
    if not is_packed:
        raise PackingError(f"{name} holds no packed model. Give a file that `python -m mixqvit pack` wrote.")
    if metadata.get("version") != _FORMAT["version"]:
        raise PackingError(f"{name} is of version {metadata.get('version')}, this program reads {_FORMAT['version']}.")
    if len(content) != expected:
        word = "truncated" if len(content) < expected else "altered"
        raise PackingError(f"{name} is {word}: it has {len(content):,} bytes instead of {expected:,}. Copy it again.")
    return metadata


def read(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        PackingError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise PackingError(f"The packed model {path} cannot be read ({error.strerror}).") from error


def write(content: bytes, path: Path) -> None:
    """Write a file all at once: whatever happens, no half of it is left under its name.

    Raises:
        PackingError: It cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PackingError(f"The packed model cannot be written to {path} ({error.strerror}).") from error
