"""Print what every recipe measures on a real model at uniform bits (RESULTS.md, "Recipes on DeiT-Tiny").

Run from the project's root: `python -m tests.benchmarks.real_model CHECKPOINT IMAGES`, with a DeiT-Tiny checkpoint and
a folder of ImageNet photographs with one sub-folder per class.
"""

import sys

import torch

import mixqvit
from mixqvit.quantization.recipes import Compensation

MODEL = "deit_tiny_patch16_224"
BITS = (8, 6, 4, 3)
COMPENSATIONS = {
    "without compensation": None,
    "without regression": Compensation(regression=False),
    "without rounding": Compensation(rounding=False),
    "without bias": Compensation(bias=False),
}


def main(checkpoint: str, folder: str) -> None:
    """Measure and print, row by row."""
    model = mixqvit.load_model(MODEL, checkpoint)
    calibration_images = mixqvit.load_images(folder, "calibration", model)
    images = mixqvit.load_images(folder, "evaluation", model)
    graph = mixqvit.trace(model.module, images.pixels[:1])
    with torch.no_grad():
        reference = torch.cat([graph(batch) for batch in images.pixels.split(64)])
    print("| recipe | bits | top-1 % (95 % interval) | agreement % | KL |")
    print("| --- | --- | --- | --- | --- |")

    def show(recipe: str, bits: str, predict) -> None:
        found = mixqvit.evaluate(predict, images.pixels, images.labels, reference)
        low, high = found.interval
        top1 = f"{100 * found.top1:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        print(f"| {recipe} | {bits} | {top1} | {100 * found.agreement:.1f} | {found.kl:.3f} |", flush=True)

    show("full precision", "32", graph)
    for recipe in ("mix-qvit", "adalog", "ptq4vit", "fq-vit", "min-max"):
        calibration = mixqvit.calibrate(graph, calibration_images.pixels, recipe, bit_widths=BITS)
        for bits in BITS:
            show(recipe, str(bits), mixqvit.quantize(calibration, bits))
    for bits in BITS:
        single = mixqvit.calibrate(graph, calibration_images.pixels, "repq-vit", (bits, bits))
        show("repq-vit", str(bits), mixqvit.quantize(single, bits))
    calibration = mixqvit.calibrate(graph, calibration_images.pixels, bit_widths=BITS)
    for name, parts in COMPENSATIONS.items():
        for bits in (4, 3):
            show(f"mix-qvit {name}", str(bits), mixqvit.quantize(calibration, bits, parts))


if __name__ == "__main__":
    main(*sys.argv[1:])
