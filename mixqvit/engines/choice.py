"""Engines by name, as options and pages offer them; needs no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixqvit.errors import EngineError

if TYPE_CHECKING:
    from mixqvit.engines.base import Engine

__all__ = ["ENGINES", "EngineChoice", "find_engine"]

ENGINES = {
    "this-process": "the program itself",
    "processes": "several processes of this machine, one thread each",
    "ray": "a Ray cluster (pip install ray)",
}
"""What engines there are, in words."""


@dataclass(frozen=True)
class EngineChoice:
    """Which engine is wanted.

    Attributes:
        name: One of `ENGINES`.
        workers: How many; None for one per core, or all that a cluster has.
        address: Of a Ray cluster, `HOST:PORT`, `ray://HOST:PORT` or `auto`; None for one on this machine only.
    """

    name: str = "this-process"
    workers: int | None = None
    address: str | None = None


def find_engine(choice: EngineChoice) -> "Engine":
    """Return the engine that is wanted; a cluster is not asked yet.

    Raises:
        EngineError: There is no such engine, or it does not take what is given with it.
    """
    from mixqvit.engines.processes import Processes
    from mixqvit.engines.ray_cluster import RayCluster
    from mixqvit.engines.this_process import ThisProcess

    if choice.name not in ENGINES:
        raise EngineError(f"There is no engine {choice.name!r}; choose one of {', '.join(ENGINES)}.")
    if choice.address is not None and choice.name != "ray":
        raise EngineError("An address goes with --engine ray only.")
    if choice.workers is not None and choice.name == "this-process":
        raise EngineError("This process is one worker. Give --engine processes or --engine ray with --workers.")
    if choice.name == "ray":
        return RayCluster(choice.address, choice.workers)
    if choice.name == "processes":
        return Processes() if choice.workers is None else Processes(choice.workers)
    return ThisProcess()
