"""Print how fast a sweep is against one full pass per cell (RESULTS.md, "Speed: the sensitivity sweep").

Measured are partial execution and runs that bit-widths share.

`python -m tests.benchmarks.sensitivity CHECKPOINT IMAGES [LAYERS]` measures a DeiT-Tiny on 8 photographs, at every
LAYERS-th layer (default 1, all); without arguments the embedded models. All ways use the same quantizers and the same
prepared weights, made beforehand.
"""

import sys
import time
from itertools import islice

import torch

import mixqvit
from mixqvit.criteria.sensitivity import sweep
from mixqvit.criteria.sensitivity.sweep import cell_bits, sensitivity_steps
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.quantization.calibration import Calibration, layer_operations
from mixqvit.tasks.classification import METRICS

IMAGES = 8


def main(arguments: list[str]) -> None:
    """Measure and print."""
    every = int(arguments[2]) if len(arguments) > 2 else 1
    if arguments:
        model = mixqvit.load_model("deit_tiny_patch16_224", arguments[0])
        sources = [(model, mixqvit.load_images(arguments[1], "calibration", model).pixels)]
    else:
        digits = mixqvit.load_images("digits", "calibration").pixels
        sources = [(mixqvit.load_model(found.name), digits) for found in mixqvit.list_models()]
    print(f"{torch.get_num_threads()} threads, {IMAGES} images, every {every}. layer\n")
    print(
        "| model | cells | bound from MACs | full passes, s | partial execution, times as fast "
        "| bit-widths sharing a run | largest difference |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for model, pixels in sources:
        _print(model, pixels[:IMAGES], every)


def _print(model: mixqvit.Model, pixels: torch.Tensor, every: int) -> None:
    graph = mixqvit.trace(model.module, pixels[:1])
    calibration = mixqvit.calibrate(graph, pixels, "adalog")
    names = {layer.name for layer in islice(graph.layers, 0, None, every)}
    wanted = lambda name: BIT_WIDTHS if name in names else ()  # noqa: E731
    list(sensitivity_steps(calibration, pixels[:1], wanted=wanted))  # prepares all weights
    started = time.perf_counter()
    plain = _full_passes(calibration, pixels, names)
    seconds = time.perf_counter() - started
    speeds, difference = [], 0.0
    for shared in (1, sweep.SHARED_MACS, 10**15):
        chosen, sweep.SHARED_MACS = sweep.SHARED_MACS, shared
        started = time.perf_counter()
        cells = list(sensitivity_steps(calibration, pixels, wanted=wanted))
        speeds.append(seconds / (time.perf_counter() - started))
        sweep.SHARED_MACS = chosen
        harms = {(cell.layer, cell.bits): METRICS["kl"].harm(cell.effect) for cell in cells}
        difference = max(difference, *(abs(harm / plain[cell] - 1) for cell, harm in harms.items() if harm > 1e-6))
    remaining, executed = graph.macs, 0
    for layer in graph.layers:
        executed += remaining if layer.name in names else 0
        remaining -= layer.macs
    bound = len(names) * graph.macs * len(BIT_WIDTHS) / (executed * len(BIT_WIDTHS) + graph.macs)
    print(
        f"| {model.name} | {len(plain)} | {bound:.2f} | {seconds:.1f} | {speeds[0]:.2f} "
        f"| {speeds[1]:.2f} (all seven: {speeds[2]:.2f}) | {difference:.0e} |",
        flush=True,
    )


def _full_passes(calibration: Calibration, pixels: torch.Tensor, names: set[str]) -> dict[tuple[str, int], float]:
    graph = calibration.graph
    harms = {}
    with torch.no_grad():
        reference = graph(pixels)
        for layer in graph.layers:
            for bits in BIT_WIDTHS if layer.name in names else ():
                operations = layer_operations(calibration, layer, cell_bits(layer, "both", bits))
                logits, _ = graph.run(pixels, operations)
                harms[layer.name, bits] = float(graph.task.divergence(reference, logits).mean())
    return harms


if __name__ == "__main__":
    main(sys.argv[1:])
