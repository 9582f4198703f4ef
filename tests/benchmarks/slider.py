"""Print what moving the budget slider costs: solving, and measuring from the first layer that changed.

RESULTS.md, "Speed: the slider".

`python -m tests.benchmarks.slider` moves the slider of every embedded model from 3 to 4 average bits and back by
tenths, once with paused runs of earlier positions and once without.
"""

import tempfile
import time
from collections.abc import Callable
from statistics import median

import torch

import mixqvit
from mixqvit.quantization.calibration import Calibration
from mixqvit.quantization.model import quantize
from mixqvit.quantization.paused_runs import PausedRuns, run_from_paused

POSITIONS = [*range(30, 41), *range(39, 29, -1)]
LIMIT = 512 * 2**20


def main() -> None:
    """Measure and print."""
    print(f"{torch.get_num_threads()} threads, {len(POSITIONS)} positions\n")
    print(
        "| model | solve, ms (median) | frontier of 61 budgets, s | measure anew, s "
        "| from the first layer that changed, s | times as fast (range) |\n| --- | --- | --- | --- | --- | --- |"
    )
    for model in mixqvit.list_models():
        with tempfile.TemporaryDirectory() as folder:
            _print(mixqvit.Study(model.name, store=mixqvit.Store(folder)))


def _print(study: mixqvit.Study) -> None:
    list(study.score_steps("mix-qvit"))
    calibration, pixels = study.calibration(), study.evaluation_images.pixels
    paused_runs = PausedRuns(LIMIT)
    solving, anew, resumed = [], [], []
    for position in POSITIONS:
        seconds, allocation = _timed(lambda position=position: study.allocate(position / 10))
        solving.append(seconds)
        plain, expected = _timed(lambda bits=allocation.bits: _logits(calibration, bits, pixels, None))
        faster, found = _timed(lambda bits=allocation.bits: _logits(calibration, bits, pixels, paused_runs))
        assert torch.equal(expected, found)
        anew.append(plain)
        resumed.append(faster)
    ratios = [one / other for one, other in zip(anew[1:], resumed[1:], strict=True)]
    seconds, _ = _timed(lambda: list(study.frontier_steps()))
    print(
        f"| {study.model.name} | {1000 * median(solving):.1f} | {seconds:.2f} | {median(anew):.2f} "
        f"| {median(resumed):.2f} | {median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |",
        flush=True,
    )


def _logits(calibration: Calibration, bits: dict, pixels: torch.Tensor, paused_runs: PausedRuns | None) -> torch.Tensor:
    model = quantize(calibration, bits, paused_runs=paused_runs)
    with torch.no_grad():
        return torch.cat(
            [
                model(batch)
                if paused_runs is None
                else run_from_paused(model.graph, batch, model.operations, model.bits, paused_runs, number)
                for number, batch in enumerate(pixels.split(64))
            ]
        )


def _timed(work: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
