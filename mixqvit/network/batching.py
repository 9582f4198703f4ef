"""Many settings in one batch: what a paused run holds, repeated, so that one run from there serves them all."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixqvit.errors import UnsupportedOperationError
from mixqvit.network.graph import Graph, Operation, Values

__all__ = ["each_copy", "repeat_values"]


def each_copy(operations: Sequence[Operation]) -> Operation:
    """Return the operation that does to each copy of the images, as `repeat_values` lays them out, its own."""

    def operation(*operands: Tensor) -> Tensor:
        copies = zip(*(operand.chunk(len(operations)) for operand in operands), strict=True)
        return torch.cat([own(*parts) for own, parts in zip(operations, copies, strict=True)])

    return operation


def repeat_values(graph: Graph, values: Mapping[str, Any], images: int, times: int) -> Values:
    """Return the values of a paused run as if every image were there `times` times.

    Args:
        graph: The traced model.
        values: What `Graph.walk` yielded; not changed.
        images: Images of that run.
        times: Copies of each image.

    Returns:
        Values for `Graph.resume`: copy k of image n is at position k · images + n.

    Raises:
        UnsupportedOperationError: A value does not grow with the number of images along one dimension.
    """
    if times == 1:
        return dict(values)
    before, after = graph.shapes(images), graph.shapes(images * times)
    return {name: _repeated(name, value, before[name], after[name], times) for name, value in values.items()}


def _repeated(name: str, value: Any, before: Any, after: Any, times: int) -> Any:
    if isinstance(value, Tensor):
        grown = [dim for dim, (one, many) in enumerate(zip(before, after, strict=True)) if one != many]
        if not grown:
            return value
        # Windows and heads are inside of images, which come first in their dimension.
        if len(grown) > 1 or after[grown[0]] != times * before[grown[0]]:
            raise UnsupportedOperationError(f"The value {name!r} of the model cannot be repeated for several settings.")
        return torch.cat([value] * times, dim=grown[0])
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        parts = zip(value, before, after, strict=True)
        return type(value)(_repeated(name, part, one, many, times) for part, one, many in parts)
    return after  # a number or a shape
