"""What the configurations for other libraries share: a document in their own format, and what it cannot express."""

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixqvit.errors import ExportError
from mixqvit.network.graph import Graph
from mixqvit.network.query_key import is_merged

__all__ = ["LibraryConfig", "check_layers", "grouped", "json_content", "write_file"]


@dataclass(frozen=True)
class LibraryConfig:
    """Bits per layer as another library reads them.

    Attributes:
        document: Plain values that JSON can write, in the library's own format.
        notes: What of the bits the format cannot express and what the library then does, a sentence or two each.
    """

    document: Mapping[str, Any]
    notes: tuple[str, ...]


def check_layers(graph: Graph) -> None:
    """Make sure that the layers of a graph are modules of the model as other libraries load it.

    Raises:
        ExportError: Training merged query and key into layers that the model does not have.
    """
    if is_merged(graph):
        raise ExportError(
            "Training merged the weights of query and key into layers that timm's model does not have, so that no "
            "configuration for it can name them. Export this model as ONNX."
        )


def grouped(names: Iterable[str], graph: Graph) -> str:
    """Write layer names shortly, as code: `blocks.*.attn.qkv` where the layers of that name in all blocks are meant."""
    chosen = list(names)
    alike: dict[str, list[str]] = {}
    for layer in graph.layers:
        alike.setdefault(_pattern(layer.name), []).append(layer.name)
    found: dict[str, None] = {}
    for name in chosen:
        pattern = _pattern(name)
        found[pattern if set(alike[pattern]) <= set(chosen) else name] = None
    return ", ".join(f"`{name}`" for name in found)


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def json_content(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON text."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def write_file(content: bytes, path: Path) -> None:
    """Write a file all at once: whatever happens, no half of it is left under its name.

    Raises:
        ExportError: It cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ExportError(f"The export cannot be written to {path}: {error.strerror or error}.") from error
