"""Measure sweeps and evaluations of DeiT-Tiny on every engine (RESULTS.md, "Engines").

Speed-up of two workers, start, overhead per cell.

Run from the project's root, with the real model of the reference data beside it:
`OMP_NUM_THREADS=1 python -m tests.benchmarks.engines`.
"""

import argparse
import pickle
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from mixqvit import Settings, Store, Study
from mixqvit.criteria.sensitivity.stage import sweep_worker
from mixqvit.engines.processes import Processes
from mixqvit.engines.ray_cluster import RayCluster
from mixqvit.engines.this_process import ThisProcess
from mixqvit.files.open_studies import open_study
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.quantization.evaluation_stage import PART_IMAGES, EvaluationPart, FullPrecision, evaluator
from mixqvit.study.library import StudyDescription


def no_work(number: int) -> list[int]:
    return [number]


def nothing():
    """Build a worker that does nothing: what is left is overhead."""
    return no_work


def opened(model: str, images: int) -> Study:
    settings = Settings(recipe="min-max", calibration_images=4, analysis_images=images, evaluation_images=images)
    store = Store(tempfile.mkdtemp())
    if model != "deit_tiny":
        return Study(model, settings=settings, store=store)
    real = Path(__file__).resolve().parents[3] / "shared" / "real"
    checkpoint, photographs = real / "deit_tiny_patch16_224.safetensors", real / "imagenet_sample"
    description = StudyDescription("deit_tiny_patch16_224", str(checkpoint), str(photographs), {}, {})
    return open_study(description, settings, store)


def timed(engine, work, tasks) -> tuple[float, float, int]:
    """Return seconds until the first piece, all seconds, pieces."""
    started = time.perf_counter()
    first, pieces = 0.0, 0
    for _ in engine.results(work, tasks):
        pieces += 1
        first = first or time.perf_counter() - started
    return first, time.perf_counter() - started, pieces


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="deit_tiny", choices=["deit_tiny", "digits_vit", "digits_swin"])
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = opened(options.model, options.images)
    study.calibration()
    images = study.analysis_images
    tasks = [(layer.name, BIT_WIDTHS) for layer in study.layers]
    engines = {
        "this process, 1 thread": ThisProcess(),
        "processes, 1 worker": Processes(1),
        "processes, 2 workers": Processes(2),
        "Ray, 1 worker": RayCluster(workers=1),
        "Ray, 2 workers": RayCluster(workers=2),
    }
    print(f"{options.model}, sweep on {len(images.pixels)} images, {len(tasks)} layers x {len(BIT_WIDTHS)} widths")
    print("engine                    first s   all s  cells  ms a cell  against 1 worker  empty task ms")
    alone = {}
    sent = 0
    list(RayCluster(workers=1).results(nothing, [0]))  # the cluster itself starts once
    for name, engine in engines.items():
        there = study.with_engine(engine)
        calibration = there._worker_calibration()
        sent = sent if engine.is_here else len(pickle.dumps(calibration))
        pixels = there._sent(images.pixels)
        work = partial(sweep_worker, calibration, pixels, images.labels, "both", FULL_PRECISION)
        first, seconds, cells = timed(engine, work, tasks)
        begun, empty, count = timed(engine, nothing, range(300))
        kind = name.split(",")[0]
        alone.setdefault(kind, seconds)
        print(
            f"{name:24} {first:8.1f} {seconds:7.1f} {cells:6} {1e3 * seconds / cells:10.1f} "
            f"{alone[kind] / seconds:17.2f} {1e3 * (empty - begun) / (count - 1):14.2f}",
            flush=True,
        )
    print(f"sent to every worker: {sent / 1e6:.1f} MB")
    reference = study.result(FullPrecision())
    part = EvaluationPart(
        study.resolved(4), range(len(study.evaluation_images)), study.evaluation_images.pixels.clone(), reference, None
    )
    started = time.perf_counter()
    measure = evaluator(lambda: study.calibration())
    list(measure(part))
    list(measure(part))
    first = time.perf_counter() - started
    started = time.perf_counter()
    list(measure(part))
    each = (time.perf_counter() - started) / len(part.pixels)
    print(f"evaluation: {each * 1e3:.1f} ms an image on one thread, {first:.1f} s for two parts with quantization")
    megabytes = part.pixels[:1].nbytes / 1e6
    print(f"sent for an image: {megabytes:.3f} MB, for a part of {PART_IMAGES}: {PART_IMAGES * megabytes:.0f} MB")


if __name__ == "__main__":
    main()
