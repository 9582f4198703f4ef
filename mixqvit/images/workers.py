"""Processes that decode and augment training images beside the training, seen from the program that trains.

torch's `DataLoader` prepares the views, in a fresh Python that runs `worker_process`. In the program itself it would
fork many threads with whatever locks they hold, or run the program's script again, which for a dashboard is a page; and
loky's processes would each hold a copy of the files that are kept in memory, which forked ones share.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mixqvit.errors import ImageError
from mixqvit.images.training_reading import Part, Request, TrainingFiles

__all__ = ["IDLE_SECONDS", "MOST_WORKERS", "WORKERS_FROM", "Workers", "worker_count"]

MOST_WORKERS = 8
"""Worker processes at most: more decode faster than a model learns."""

WORKERS_FROM = 1000
"""Images from which workers pay: the start takes the time that one core needs for about so many images."""

IDLE_SECONDS = 60
"""So long the processes wait for the next epoch."""


def worker_count(images: int, processes: int) -> int:
    """Return how many worker processes suit so many images where so many processes train on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores < 2 or images < WORKERS_FROM else max(1, min(MOST_WORKERS, cores // processes))


class Workers:
    """Views of training images, from processes that outlive an epoch; they end when idle, unused or interrupted."""

    def __init__(self, files: TrainingFiles) -> None:
        self._files = files
        self._idle: list[_Helper] = []
        weakref.finalize(self, _end_all, self._idle)

    def parts(self, seed: int, epoch: int, jobs: Sequence[Sequence[int]], count: int) -> Iterator[Part]:
        """Yield the views that `ViewReader.part` returns for each job, in their order.

        Args:
            seed: Of the views.
            epoch: Of the views.
            jobs: Positions of the images of each part.
            count: Worker processes.

        Raises:
            ImageError: The source cannot be read any longer, or a process ended early.
        """
        try:
            helper = self._idle.pop()
        except IndexError:
            helper = _Helper(self._files)
        helper.wake()
        finished = False
        try:
            yield from helper.parts(seed, epoch, jobs, count)
            finished = True
        finally:
            if finished and not self._idle:
                self._idle.append(helper)
                helper.end_when_idle(self._idle)
            else:
                helper.end()


def _end_all(helpers: "list[_Helper]") -> None:
    for helper in helpers:
        helper.end()


class _Helper:
    """The process that is started, seen from the program."""

    def __init__(self, files: TrainingFiles) -> None:
        root = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys([root, *filter(None, sys.path)])),
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mixqvit.images.worker_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a group of its own, which can be ended with all its workers
        )
        self._timer: threading.Timer | None = None
        self._first: TrainingFiles | None = files

    def parts(self, seed: int, epoch: int, jobs: Sequence[Sequence[int]], count: int) -> Iterator[Part]:
        try:
            if self._first is not None:
                self._send(self._first)
                self._first = None
            self._send(Request(seed, epoch, jobs, count))
            while (answer := pickle.load(self._process.stdout)) is not None:
                if isinstance(answer, str):
                    raise ImageError(answer)
                yield answer
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            self.end()
            raise ImageError(
                "the process that reads the training images ended early; was memory short? Close other "
                "programs, and go on from the last checkpoint"
            ) from error

    def _send(self, message: object) -> None:
        pickle.dump(message, self._process.stdin, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()

    def wake(self) -> None:
        """Keep the process from ending as idle."""
        if self._timer is not None:
            self._timer.cancel()

    def end_when_idle(self, idle: "list[_Helper]") -> None:
        """End the process some time from now if it is still in the list of those that wait."""

        def end() -> None:
            with suppress(ValueError):  # it has been taken from the list
                idle.remove(self)
                self.end()

        self._timer = threading.Timer(IDLE_SECONDS, end)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """End the process and its workers, now."""
        self.wake()
        with suppress(ProcessLookupError, PermissionError):
            if not hasattr(os, "killpg"):
                self._process.kill()
            elif self._process.returncode is None:  # not waited for: its number cannot be another's yet
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what could not be sent any more
                pipe.close()
