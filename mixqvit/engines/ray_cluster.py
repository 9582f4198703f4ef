"""A Ray cluster: one actor per worker, with a GPU of its own where the cluster has some. Ray is optional."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from mixqvit.engines.base import LOSSES, Task, Work
from mixqvit.errors import EngineError, MixQViTError

__all__ = ["RayCluster"]

CONNECT_SECONDS = 3
"""Until a host must answer."""

HEALTH_SECONDS = 6
"""Until what answers must say that it is Ray."""

FREE_SECONDS = 60
"""Until the cluster must give the first worker."""

_CLIENT = "ray://"
_AUTHENTICATION = "RAY_AUTH_MODE"


@dataclass(frozen=True)
class RayCluster:
    """Tasks run on the actors of a cluster; this program's own code is sent along, its libraries must be there.

    Attributes:
        address: `HOST:PORT` of the head node, `ray://HOST:PORT` of a client server, or `auto` for the cluster that this
            machine belongs to; None starts one on this machine, which ends with this process.
        workers: Number of actors; one for each GPU of the cluster by default, or for each core where it has none.
    """

    address: str | None = None
    workers: int | None = None

    is_here: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise EngineError(f"{self.workers} workers are not possible: use 1 or more.")

    def results(self, work: Work, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yield the pieces of all tasks; see `Engine.results`."""
        if not tasks:
            return
        ray = _connected(self.address)
        crew = _Crew(ray, work)
        left, losses = list(reversed(tasks)), 0
        try:
            for _ in range(min(self.workers or crew.most, len(tasks))):
                crew.hire()
            crew.wait_for_the_first()
            while left or crew.running:
                for worker in crew.free[: len(left)]:
                    crew.give(worker, left.pop())
                finished, _ = ray.wait(list(crew.running))
                worker, task = crew.running.pop(finished[0])
                try:
                    pieces = ray.get(finished[0])
                except ray.exceptions.RayActorError as error:
                    losses += 1
                    if losses >= LOSSES:
                        raise EngineError(
                            f"{losses} times in a row a worker of the Ray cluster died before it finished anything: "
                            f"{_first_line(error)} What is finished is saved."
                        ) from error
                    crew.lose(worker)
                    crew.hire()
                    left.append(task)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, MixQViTError):
                        raise error.cause from None
                    raise EngineError(f"A worker of the Ray cluster failed: {_first_line(error.cause)}") from error
                else:
                    losses = 0
                    crew.free.append(worker)
                    yield from pieces
        finally:
            crew.dismiss()


class _Worker:
    """Runs on the cluster."""

    def __init__(self, work: Work) -> None:
        import torch

        torch.set_num_threads(1)
        self._do = work()

    def do(self, task: Task) -> list[Any]:
        return list(self._do(task))


class _Crew:
    """The actors, those without a task, and what the others are at."""

    def __init__(self, ray: Any, work: Work) -> None:
        self._ray = ray
        self._work = ray.put(work)  # once, whatever the number of workers
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self.most = gpus or max(1, int(resources.get("CPU", 1)))
        self._kind = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(_Worker)
        self._all: list[Any] = []
        self.free: list[Any] = []
        self.running: dict[Any, tuple[Any, Task]] = {}

    def hire(self) -> None:
        worker = self._kind.remote(self._work)
        self._all.append(worker)
        self.free.append(worker)

    def wait_for_the_first(self) -> None:
        # Tasks are queued on workers that do not run yet, which must not be all of them.
        waiting = [worker.__ray_ready__.remote() for worker in self._all]
        ready, _ = self._ray.wait(waiting, timeout=FREE_SECONDS)
        if not ready:
            raise EngineError(
                f"The Ray cluster gave no worker within {FREE_SECONDS} s: its cores or GPUs are taken. Try again when "
                "they are free, or use --engine processes."
            )

    def give(self, worker: Any, task: Task) -> None:
        self.free.remove(worker)
        self.running[worker.do.remote(task)] = (worker, task)

    def lose(self, worker: Any) -> None:
        self._all.remove(worker)

    def dismiss(self) -> None:
        for worker in self._all:
            with contextlib.suppress(Exception):  # the cluster may be gone
                self._ray.kill(worker)


_lock = threading.Lock()
_address: str | None = None


def _connected(address: str | None) -> Any:
    """Return the ray module, connected; a process belongs to one cluster."""
    global _address
    if find_spec("ray") is None:
        raise EngineError("Ray is not installed here: `pip install ray`, or use --engine processes.")
    with _lock:
        if address not in (None, "auto", _address):
            _check(address)  # before Ray is loaded, which reads how to authenticate only then
        import ray

        if ray.is_initialized():
            if address != _address:
                raise EngineError(
                    f"This process belongs to the Ray cluster {_address or 'of this machine'} already; start the "
                    "program again to use another one."
                )
            return ray
        options: dict[str, Any] = {"include_dashboard": False} if address is None else {}
        if address is None:
            # Otherwise Ray looks for a cluster that a variable of the environment names.
            options |= {"address": "local", "num_cpus": os.cpu_count()}
        try:
            ray.init(
                **({"address": address} | options),
                logging_level="ERROR",
                log_to_driver=False,
                runtime_env={"py_modules": [str(Path(__file__).parents[1])]},
            )
        except (ConnectionError, RuntimeError, ValueError, OSError, SystemExit) as error:
            raise EngineError(
                f"The Ray cluster {address or 'of this machine'} cannot be used: {_first_line(error)} Start one with "
                "`ray start --head`, or use --engine processes."
            ) from error
        _address = address
        return ray


def _check(address: str) -> None:
    """Make sure that a cluster answers: Ray itself would try for minutes, and then end the process."""
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    if not host or not port.isdecimal():
        raise EngineError(f"A Ray cluster's address is HOST:PORT, e.g. 10.0.0.1:6379, or auto, not {address!r}.")
    missing = (
        f"There is no Ray cluster at {address}. Start one with `ray start --head` on its first machine, which prints "
        "the address, or use --engine processes."
    )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EngineError(missing) from error
    if address.startswith(_CLIENT):
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    # A cluster may ask for the token that it keeps in the user's folder; only this mode sends it.
    modes = [{}] if _AUTHENTICATION in os.environ else [{}, {_AUTHENTICATION: "token"}]
    started, asks_for_token = time.monotonic(), False
    for mode in modes:
        left = HEALTH_SECONDS - (time.monotonic() - started)
        try:
            subprocess.run(
                command, timeout=left, check=True, capture_output=True, text=True, env={**os.environ, **mode}
            )
        except subprocess.TimeoutExpired:
            break
        except subprocess.CalledProcessError as error:
            asks_for_token |= "AuthenticationError" in error.stderr
            if not asks_for_token:
                break
        else:
            os.environ.update(mode)
            return
    if asks_for_token:
        raise EngineError(
            f"The Ray cluster at {address} asks for a token. Set RAY_AUTH_TOKEN to its own, which its first machine "
            "keeps in ~/.ray/auth_token."
        )
    raise EngineError(f"{missing} Something else answers there, or a Ray of another version.")


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(". ") + "."
