"""Several processes of this machine, one thread each; with CUDA, each has a GPU of its own."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, ClassVar

from loky import ProcessPoolExecutor
from loky.backend import get_context

from mixqvit.engines.base import LOSSES, Task, Work
from mixqvit.errors import EngineError

__all__ = ["Processes"]

_MOST = 256


@dataclass(frozen=True)
class Processes:
    """Tasks run in processes that are started for them and end with them.

    Attributes:
        workers: Number of processes; one per core by default.
    """

    workers: int = os.cpu_count() or 1

    is_here: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= _MOST:
            raise EngineError(f"{self.workers} worker processes are not possible: use 1 to {_MOST}.")

    def results(self, work: Work, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yield the pieces of all tasks; see `Engine.results`."""
        left, losses = dict(enumerate(tasks)), 0
        while left:
            # A pool loses all its workers with one of them, so what was not finished begins again in a new one.
            finished_before = len(left)
            try:
                for place, pieces in self._finished(work, left):
                    del left[place]
                    yield from pieces
            except BrokenProcessPool as error:
                losses = 1 if len(left) < finished_before else losses + 1
                if losses >= LOSSES:
                    raise EngineError(
                        f"{losses} times in a row a worker process died before it finished anything; memory may not "
                        "suffice for so many. Use fewer workers, or --engine this-process; what is finished is saved."
                    ) from error

    def _finished(self, work: Work, tasks: dict[int, Task]) -> Iterator[tuple[int, list[Any]]]:
        # A forked child hangs in the thread pools of torch, and a spawned one of Python's own would run the program's
        # main file again, which under Streamlit is the dashboard.
        context = get_context("loky")
        numbers = context.SimpleQueue()
        count = min(self.workers, len(tasks))
        for number in range(count):
            numbers.put(number)
        pool = ProcessPoolExecutor(count, context=context, initializer=_begin, initargs=(work, numbers))
        waiting = iter(list(tasks.items()))
        running: dict[Future[list[Any]], int] = {}
        try:
            # Only as many as there are workers, so that stopping leaves nothing behind that would still be run.
            for place, task in (pair for pair, _ in zip(waiting, range(count), strict=False)):
                running[pool.submit(_do, task)] = place
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    place = running.pop(future)
                    pieces = future.result()
                    following = next(waiting, None)
                    if following is not None:
                        running[pool.submit(_do, following[1])] = following[0]
                    yield place, pieces
        finally:
            # Some may still be loading their model, or be at a task that nobody wants any more.
            pool.shutdown(wait=True, kill_workers=True)


_worker: Callable[[Task], Iterable[Any]] | None = None


def _begin(work: Work, numbers: Any) -> None:
    """Build the worker of this process; called once in each."""
    global _worker
    import torch

    number = numbers.get()
    torch.set_num_threads(1)
    if torch.cuda.device_count() > 1:
        os.environ["MIXQVIT_DEVICE"] = f"cuda:{number % torch.cuda.device_count()}"
    _worker = work()


def _do(task: Task) -> list[Any]:
    assert _worker is not None
    return list(_worker(task))
