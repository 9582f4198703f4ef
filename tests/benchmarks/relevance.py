"""Print how long relevance takes on DeiT-Tiny's shapes (RESULTS.md, "Speed and accuracy: relevance").

Run it as `python -m tests.benchmarks.relevance`. Everything is timed in one run, in double precision, and stated per
image as a multiple of one image's full-precision pass. The literal implementations are the tests' oracles: one image at
a time, equation by equation, and in the manner of the published code. Peak memory is that of a process that does
nothing else.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

from mixqvit.network.graph import Graph
from mixqvit.network.tracing import trace
from mixqvit.relevance.propagation import BATCH_SIZE, propagate_steps
from tests.relevance.literal_chefer import AutogradChefer, LiteralChefer

MODEL = "deit_tiny_patch16_224"
IMAGES = 16


def _prepared() -> tuple[torch.nn.Module, Graph, torch.Tensor]:
    torch.manual_seed(0)
    module = timm.create_model(MODEL).double().eval()
    pixels = torch.randn(IMAGES, 3, 224, 224, dtype=torch.float64)
    return module, trace(module, pixels), pixels


def _seconds(work: Callable[[], object], repeats: int) -> float:
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def _propagate(graph: Graph, pixels: torch.Tensor, rules: str, batch_size: int) -> None:
    for _ in propagate_steps(graph, pixels, rules=rules, keep=(), batch_size=batch_size):
        pass


def main() -> None:
    """Measure and print, row by row."""
    module, graph, pixels = _prepared()
    with torch.no_grad():
        one_pass = _seconds(lambda: graph(pixels[:8]), 3) / 8
    print(f"{torch.get_num_threads()} threads; one pass takes {one_pass:.3f} s per image\n")
    print("| what | passes per image | times as fast as equation by equation |\n| --- | --- | --- |")
    literal = _seconds(lambda: LiteralChefer(module)(pixels[0]), 2)
    rows = {
        "equation by equation, one image": literal,
        "manner of the published code, one image": _seconds(lambda: AutogradChefer(module)(pixels[0]), 3),
        "`propagate`, chefer, one image": _seconds(lambda: _propagate(graph, pixels[:1], "chefer", 1), 3),
    }
    for rules in ("chefer", "attnlrp"):
        seconds = _seconds(lambda rules=rules: _propagate(graph, pixels, rules, BATCH_SIZE), 2) / IMAGES
        rows[f"`propagate`, {rules}, batches of {BATCH_SIZE}"] = seconds
    for name, seconds in rows.items():
        print(f"| {name} | {seconds / one_pass:.1f} | {literal / seconds:.1f} |", flush=True)
    peak = subprocess.run([sys.executable, "-m", __spec__.name, "memory"], check=True, capture_output=True, text=True)
    print(f"\nPeak memory in batches of {BATCH_SIZE}: {peak.stdout.strip()}")


def memory() -> None:
    """Print the resident memory before and at the peak of a batch."""
    _, graph, pixels = _prepared()
    before = _peak()
    _propagate(graph, pixels[:BATCH_SIZE], "chefer", BATCH_SIZE)
    print(f"{_peak():.2f} GiB ({before:.2f} GiB before)")


def _peak() -> float:
    """Return the peak of this process alone in GiB; `getrusage` would count its parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2**20


if __name__ == "__main__":
    memory() if sys.argv[1:] == ["memory"] else main()
