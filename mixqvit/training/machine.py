"""Where training runs: one process, or several that `accelerate launch` started, each with its share of every batch."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixqvit.errors import TrainingError

__all__ = ["Machine", "launched", "open_machine"]


@dataclass(frozen=True)
class Machine:
    """The processes that train together.

    Attributes:
        device: Where this one computes.
        rank: Its number, from 0.
        processes: How many there are.
    """

    device: torch.device
    rank: int = 0
    processes: int = 1
    _accelerator: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process saves and prints."""
        return self.rank == 0

    def prepared(self, model: nn.Module) -> nn.Module:
        """Return the model so that its gradients are the means over all processes."""
        return model if self._accelerator is None else self._accelerator.prepare(model)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return values if self._accelerator is None else self._accelerator.reduce(values, "sum")

    def mixed_precision(self) -> AbstractContextManager[None]:
        """Return where products compute in bfloat16, on GPUs that have it; quantizers stay in float32."""
        if self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()


def launched() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many were launched together."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def open_machine(device: torch.device) -> Iterator[Machine]:
    """Yield this process's machine: `device` by itself, or its own device among those that were launched together.

    Raises:
        TrainingError: Several processes were launched and accelerate is missing.
    """
    if launched()[1] == 1:
        yield Machine(device)
        return
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise TrainingError("Training in several processes needs accelerate: pip install accelerate.") from error
    # A head that no logit reads, or a layer in full precision, has no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[unused])
    try:
        yield Machine(accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator)
    finally:
        accelerator.end_training()
