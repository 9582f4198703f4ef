"""Where a study computes: the device, its free memory, how many images run at once, and what happens when memory ends.

Stages run some images at a time. How many is estimated from free memory; where that was too many, half as many are
tried, down to one.
"""

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch
from torch import Tensor

from mixqvit.errors import MixQViTError

if TYPE_CHECKING:
    from mixqvit.network.graph import Graph

__all__ = [
    "DEVICE_VARIABLE",
    "choose_device",
    "describe",
    "free_bytes",
    "halving",
    "images_at_once",
    "in_parts",
    "is_out_of_memory",
    "moved",
    "named_out_of_memory",
    "precise_device",
]

Result = TypeVar("Result")

DEVICE_VARIABLE = "MIXQVIT_DEVICE"
"""Environment variable that names the device to compute on: cpu, cuda, cuda:1, mps."""

MEMORY_SHARE = 4
"""One part in so many of the free memory is what the images that run at once may take."""

TEMPORARIES = 3
"""Values that quantizers and attention hold at once, for each value of the network that is alive."""

_GIGA = 10**9
_OUT_OF_MEMORY = (
    "can't allocate memory",  # torch on the CPU, Linux
    "not enough memory",  # torch on the CPU, elsewhere
    "out of memory",  # CUDA and MPS
    "cublas_status_alloc_failed",
)


def choose_device() -> torch.device:
    """Return the device to compute on: CUDA, else MPS, else the CPU; `MIXQVIT_DEVICE` overrides.

    Raises:
        MixQViTError: The variable names no device, or one that is not there.
    """
    wanted = os.environ.get(DEVICE_VARIABLE, "").strip().lower()
    if wanted:
        return _named(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _named(name: str) -> torch.device:
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise MixQViTError(f"{DEVICE_VARIABLE}={name} is no device: use cpu, cuda, cuda:1 (the second GPU) or mps.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            there = f"{count} CUDA GPU(s)" if count else "no CUDA GPU that PyTorch can use"
            raise MixQViTError(f"{DEVICE_VARIABLE}={name}, but there is {there} here. Use another, or cpu.")
        return torch.device("cuda", int(index or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise MixQViTError(f"{DEVICE_VARIABLE}={name}, but PyTorch cannot use an Apple GPU here. Use cpu.")
    return torch.device(kind)


def precise_device(device: torch.device) -> torch.device:
    """Return the device itself, or the CPU in place of one that has no double precision (MPS)."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except TypeError:
        return torch.device("cpu")
    return device


def describe(device: torch.device) -> str:
    """Return the device and its free memory in words, such as `CPU, 2 cores, 19.8 GB free`."""
    free = f"{free_bytes(device) / _GIGA:.1f} GB free"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {free}"
    if device.type == "mps":
        return f"Apple GPU, {free}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"CPU, {cores} core{'' if cores == 1 else 's'}, {free}"


def free_bytes(device: torch.device) -> int:
    """Return how much memory new tensors on a device can take, in bytes.

    On the CPU within the limit of the container (cgroup), where there is one; on CUDA with what PyTorch keeps unused.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = min([psutil.virtual_memory().available, *_cgroup_free_bytes()])
    if device.type == "mps":
        free = min(free, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return max(0, free)


def _cgroup_free_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return what each control group that this process is in leaves it, in versions 1 and 2; empty without limits."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folder, limit, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            folder, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        # A group is bound by those above it too; inside a container only some of them can be seen.
        for depth in range(len(parts) + 1):
            group = folder.joinpath(*parts[:depth])
            with suppress(OSError, ValueError):  # unreadable, or without a limit ("max")
                free = int((group / limit).read_text()) - int((group / used).read_text())
                found.append(max(0, free) + _cached_bytes(group / "memory.stat"))
    return found


def _cached_bytes(statistics: Path) -> int:
    """Return the bytes of files that the system counts as used and drops when memory is needed."""
    with suppress(OSError, ValueError):
        pairs = dict(line.split() for line in statistics.read_text().splitlines())
        return int(pairs.get("total_inactive_file", pairs.get("inactive_file", 0)))
    return 0


def images_at_once(graph: "Graph", most: int, image_bytes: int | None = None) -> int:
    """Return how many images to run at once: a power of two, at least 1, at most `most`.

    Args:
        graph: The traced model, on the device it will run on.
        most: What more would not make faster.
        image_bytes: Memory that an image takes; by default that of a pass without gradients, from the shapes.
    """
    if image_bytes is None:
        image_bytes = TEMPORARIES * graph.live_bytes
    fitting = min(most, free_bytes(graph.device) // (MEMORY_SHARE * max(1, image_bytes)))
    return most if fitting >= most else 1 << max(0, fitting.bit_length() - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def halving(steps: Callable[[int], Iterator[Result]], most: int, device: torch.device, stage: str) -> Iterator[Result]:
    """Yield what `steps(images at once)` yields, begun anew with half as many images whenever memory runs out.

    Args:
        steps: From the number of images that may run at once to the pieces; leaves out those that were yielded before.
        most: Images at once to begin with.
        device: Where the memory ran out.
        stage: What is computed, in words, for the message.

    Raises:
        MixQViTError: Not even one image fits; the message says how much memory is free and what to do.
    """
    at_once = max(1, most)
    while True:
        running, is_full = steps(at_once), False
        while not is_full:
            try:
                piece = next(running)
            except StopIteration:
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # Out of this block the traceback is gone, and with it the tensors that its frames hold.
                is_full = True
            else:
                yield piece
        del running
        _empty_cache()
        if at_once == 1:
            raise _out_of_memory(device, f"{stage}, even one image at a time")
        at_once //= 2


def in_parts(
    run: Callable[[slice], Result], images: int, most: int, device: torch.device, stage: str
) -> Iterator[Result]:
    """Yield `run(part)` for consecutive parts of the images, half as many at once whenever memory runs out.

    Args:
        run: From the part of the images to its result.
        images: Number of images.
        most: Images at once to begin with.
        device: Where the memory ran out.
        stage: What is computed, in words, for the message.

    Raises:
        MixQViTError: As in `halving`.
    """
    done = 0

    def steps(at_once: int) -> Iterator[Result]:
        nonlocal done
        while done < images:
            part = slice(done, min(done + at_once, images))
            found = run(part)
            done = part.stop
            yield found

    yield from halving(steps, min(most, images), device, stage)


@contextmanager
def named_out_of_memory(device: torch.device, stage: str) -> Iterator[None]:
    """Turn memory that runs out inside into the error that says so; for what cannot be done in parts.

    Raises:
        MixQViTError: Memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(device, stage) from None


def _out_of_memory(device: torch.device, stage: str) -> MixQViTError:
    instead = "Close other programs or use a smaller model"
    if device.type != "cpu":
        instead = f"Set {DEVICE_VARIABLE}=cpu to use the computer's own memory, or use a smaller model"
    return MixQViTError(
        f"Memory ran out during the {stage} ({describe(device)} now). {instead}; what is finished is saved."
    )


def _empty_cache() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def moved(value: Any, device: torch.device) -> Any:
    """Return tensors, and mappings, tuples, lists and dataclasses that hold some, on a device; other values as is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(part, device) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(moved(part, device) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
    return value
