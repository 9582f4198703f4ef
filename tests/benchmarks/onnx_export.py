"""Measure the ONNX exports in onnxruntime: file size, agreement, time (RESULTS.md, "ONNX in onnxruntime").

Run from the project's root; DeiT-Tiny is measured too where the reference data lies beside it:
`OMP_NUM_THREADS=1 python -m tests.benchmarks.onnx_export`.
"""

import argparse
import tempfile
from pathlib import Path

import torch

import mixqvit
from mixqvit.files.export.onnx_check import check_onnx
from mixqvit.files.export.onnx_model import exported_full_precision, exported_onnx
from mixqvit.images.image_sets import ImageSets
from mixqvit.models.model import Model

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
DEIT_TINY = "deit_tiny_patch16_224"


def images_of(model: Model) -> ImageSets:
    """Return the digits, or the photographs for DeiT-Tiny."""
    return mixqvit.load_image_sets(str(REAL / "imagenet_sample") if model.name == DEIT_TINY else "digits", model)


def measure(model: Model, bits: list[int], images: int) -> None:
    """Print a row of the table for every setting."""
    sets = images_of(model)
    pixels = sets.evaluation.pixels[:images]
    graph = mixqvit.trace(model.module, pixels[:1])
    calibration = mixqvit.calibrate(graph, sets.calibration.pixels[:32], "mix-qvit")
    full = len(exported_full_precision(graph, model.name))
    for width in bits:
        quantized = mixqvit.quantize(calibration, width)
        content = exported_onnx(quantized, model.name).content
        found = check_onnx(content, quantized, pixels)
        with tempfile.TemporaryDirectory() as folder:
            mixqvit.pack(quantized, Path(folder) / "packed.safetensors", model)
            size = (Path(folder) / "packed.safetensors").stat().st_size
        print(
            f"| {model.name} | {width} | {len(content):,} | {size:,} | {full:,} | "
            f"{round(found.agreement * found.images)} of {found.images} | {found.correlation:.6f} | "
            f"{found.seconds / found.full_precision_seconds:.1f} |",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | bits | ONNX, bytes | packed, bytes | full-precision ONNX | same top-1 | correlation | time |")
    for name in ("digits_vit", "digits_deit", "digits_swin"):
        measure(mixqvit.load_model(name), [8, 4, 3, 2], options.images)
    checkpoint = REAL / f"{DEIT_TINY}.safetensors"
    if checkpoint.exists():
        measure(mixqvit.load_model(DEIT_TINY, str(checkpoint)), [8, 6, 4], options.images)


if __name__ == "__main__":
    main()
