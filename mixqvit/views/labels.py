"""Short names of layers for axes; the full name belongs into the hover."""

from collections.abc import Sequence

from mixqvit.network.layers import Layer
from mixqvit.views.grid import cells

__all__ = ["short_labels"]


def short_labels(layers: Sequence[Layer]) -> dict[str, str]:
    """Return a label such as `block 3 · fc1` or `head` by layer name."""
    places = cells(layers)
    return {layer.name: _label(layer, *places[layer.name]) for layer in layers}


def _label(layer: Layer, row: str, column: str) -> str:
    if layer.block is not None:
        return f"{row} · {column}"
    # Outside of blocks both are the kind; where it occurs again, one of them carries the number.
    return max(row, column, key=len)
