"""Where a sweep's measurements run: in this process, in several processes, on a Ray cluster.

An engine takes independent tasks and yields what they find, in the order they are finished. Each worker builds its
model once. Tasks are saved by the caller as they come, so what an engine has yielded is never computed again.
"""

from mixqvit.engines.base import Engine, Work
from mixqvit.engines.choice import ENGINES, EngineChoice, find_engine
from mixqvit.engines.in_order import InOrder
from mixqvit.engines.processes import Processes
from mixqvit.engines.ray_cluster import RayCluster
from mixqvit.engines.this_process import ThisProcess

__all__ = [
    "ENGINES",
    "Engine",
    "EngineChoice",
    "InOrder",
    "Processes",
    "RayCluster",
    "ThisProcess",
    "Work",
    "find_engine",
]
