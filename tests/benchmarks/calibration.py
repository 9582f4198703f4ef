"""Print how long calibration and quantized passes take (RESULTS.md, "Speed: calibration and quantized passes").

`python -m tests.benchmarks.calibration CHECKPOINT IMAGES`, with a DeiT-Tiny.

Everything is timed in one run and stated as a multiple of one full-precision pass of the timm model over the same 32
images. The literal algorithm is the tests' oracle of RepQ-ViT, one pass over the images for every quantizer.
"""

import sys
import time
from collections.abc import Callable

import torch

import mixqvit
from tests.quantization import literal_repq

MODEL = "deit_tiny_patch16_224"


class _FittedError(Exception):
    """A quantizer has been fitted: the pass starts again."""


class _OnePassPerQuantizer(literal_repq.LiteralRepQ):
    def run(self, *args):
        while True:
            try:
                return super().run(*args)
            except _FittedError:
                continue


class _FitAndStop(literal_repq.Uniform):
    def _fit(self, values: torch.Tensor) -> None:
        super()._fit(values)
        raise _FittedError


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Return the least time of a few repetitions."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def main(checkpoint: str, folder: str) -> None:
    """Measure and print, row by row."""
    model = mixqvit.load_model(MODEL, checkpoint)
    pixels = mixqvit.load_images(folder, "calibration", model).pixels
    graph = mixqvit.trace(model.module, pixels[:1])
    calibration = mixqvit.calibrate(graph, pixels, bit_widths=(4,))
    quantized = mixqvit.quantize(calibration, 4)
    with torch.no_grad():
        one_pass = seconds(lambda: model.module(pixels), 5)
        graph_pass = seconds(lambda: graph(pixels), 5)
    print(f"{len(pixels)} images, {torch.get_num_threads()} threads; one timm pass takes {one_pass:.2f} s\n")
    print("| what | passes |\n| --- | --- |")

    def show(what: str, found: float) -> float:
        print(f"| {what} | {found / one_pass:.2f} |", flush=True)
        return found

    show("timm model, full precision, fused attention", one_pass)
    show("traced graph, full precision", graph_pass)
    show("quantized model, 4 bits", seconds(lambda: quantized(pixels), 5))
    show("error compensation at 4 bits", seconds(lambda: mixqvit.quantize(calibration, 4), 2))
    one = show(
        "calibrate mix-qvit for one bit-width", seconds(lambda: mixqvit.calibrate(graph, pixels, bit_widths=(4,)))
    )
    seven = show("calibrate mix-qvit for seven bit-widths", seconds(lambda: mixqvit.calibrate(graph, pixels)))
    repq = show(
        "calibrate repq-vit at 4 bits", seconds(lambda: mixqvit.calibrate(graph, pixels, "repq-vit", (4, 4)), 2)
    )
    single = show("literal RepQ-ViT, all in one pass", seconds(lambda: literal_repq.LiteralRepQ(graph, 4, 4, pixels)))
    literal_repq.Uniform = _FitAndStop
    literal = show(
        "literal RepQ-ViT, one pass per quantizer", seconds(lambda: _OnePassPerQuantizer(graph, 4, 4, pixels))
    )
    print(f"\nseven bit-widths / one: {seven / one:.2f}")
    print(f"literal / repq-vit: {literal / repq:.1f} (in one pass: {single / repq:.1f})")
    print(f"literal / mix-qvit for one bit-width: {literal / one:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
