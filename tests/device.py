"""A second device for tests on a computer without a GPU: tensors there do not mix with those of the CPU.

PyTorch's `meta` device is given numbers: tensors that say they are there are wrappers around a CPU tensor, and what
runs on them checks, as CUDA does, that nothing of the CPU is among its operands but single numbers. Autograd, factory
functions with `device=` and copies between both work as on any device; `.numpy()` does not.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")

_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class There(Tensor):
    """A tensor on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "There":
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), keywords=None):
        return _run(operation, arguments, keywords or {})

    def tolist(self) -> list[Any]:
        return self.cpu().tolist()


class _OnDevice(TorchDispatchMode):
    def __init__(self, has_double_precision: bool, counts: dict[str, int]) -> None:
        super().__init__()
        self._has_double_precision = has_double_precision
        self._counts = counts

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        found = _run(operation, arguments, keywords or {})
        on_device = [tensor for tensor in tree_leaves(found) if isinstance(tensor, There)]
        if on_device:
            name = operation._schema.name
            self._counts[name] = self._counts.get(name, 0) + 1
        if not self._has_double_precision and any(tensor.dtype == torch.float64 for tensor in on_device):
            raise TypeError("Cannot convert a tensor to float64: the device does not support it.")
        return found


class _NewTensors(TorchFunctionMode):
    """Makes tensors from numbers on the CPU first: these functions do not reach `_OnDevice`."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        if function not in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            return function(*arguments, **keywords)
        like = {}
        if function is Tensor.new_tensor:
            own, *arguments = arguments
            like = {"device": own.device, "dtype": own.dtype}
        device = (like | keywords).get("device")
        keywords = like | keywords | {"device": "cpu"}
        found = (torch.as_tensor if function is torch.as_tensor else torch.tensor)(*arguments, **keywords)
        return found if device is None else found.to(device)


@contextmanager
def second_device(has_double_precision: bool = True):
    """Have a second device at `DEVICE` inside; yields how often each operation ran there, by name."""
    counts: dict[str, int] = {}
    with _NewTensors(), _OnDevice(has_double_precision, counts):
        yield counts


class limited_memory(TorchDispatchMode):
    """Have memory run out inside whenever a network begins with more images at once than fit.

    Attributes:
        times: How often it did.
    """

    def __init__(self, images: int, raised: Callable[[], None]) -> None:
        """Let so many images fit; call `raised`, which raises the error, for more."""
        super().__init__()
        self._images, self._raise, self.times = images, raised, 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        if operation is torch.ops.aten.convolution.default and len(arguments[0]) > self._images:
            self.times += 1
            self._raise()
        return operation(*arguments, **(keywords or {}))


def _run(operation: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    tensors = [value for value in tree_leaves((arguments, keywords)) if isinstance(value, Tensor)]
    there = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, There)}
    here = [tensor for tensor in tensors if not isinstance(tensor, There) and tensor.dim()]
    if there and here and operation not in _COPIES:
        raise RuntimeError(f"Expected all tensors to be on the same device, in {operation}.")
    device = keywords.get("device")
    is_there = bool(there) if device is None else torch.device(device).type == DEVICE.type
    if operation is torch.ops.aten.copy_.default:
        is_there = isinstance(arguments[0], There)
    arguments, keywords = tree_map(_held, arguments), tree_map(_held, dict(keywords))
    if device is not None:
        keywords["device"] = "cpu"
    found = operation(*arguments, **keywords)

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return there[id(value)] if id(value) in there else There(value)  # what changed in place stays the same tensor

    return tree_map(wrapped, found) if is_there else found


def _held(value: Any) -> Any:
    return value.held if isinstance(value, There) else value
