"""Print the memory that stages take (RESULTS.md, "Memory: large models").

`python -m tests.benchmarks.large_models IMAGES [MODEL ...]`.

Every stage runs in a process of its own, so that its peak is its own, on models of the full size with random weights:
32 calibration images, the same 32 for analysis, 16 for evaluation. A stage of which only a part is run says so; what
memory it takes does not depend on how much of it is run. So that the table takes minutes, quantizers that are not
fitted in the stage itself are fitted for 4 bits on two of the images.
IMAGES is a folder of photographs with one sub-folder per class, named by WordNet ids.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import safetensors.torch
import timm
import torch

import mixqvit
from mixqvit.criteria.hessian import HessianTraces
from mixqvit.criteria.loss_change import loss_change_steps
from mixqvit.criteria.pairwise import block_pairs, pair_steps
from mixqvit.criteria.perturbation import squared_perturbations
from mixqvit.criteria.sensitivity.sweep import sensitivity_steps
from mixqvit.packing.model import packed
from mixqvit.quantization.calibration import Calibration, calibrate, calibrate_steps
from mixqvit.quantization.model import quantize
from mixqvit.quantization.saving import from_tensors, to_tensors
from mixqvit.stages import runner
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study

MODELS = ("deit_base_patch16_224", "swin_base_patch4_window7_224")
SETTINGS = Settings(calibration_images=32, analysis_images=32, evaluation_images=16)
BITS = 4
EVERY = 16
"""The sweep measures one layer in so many."""

FITTED = "fitted"
"""The first stage, not in the table: quantizers that the others use."""

_GIGA = 2**30


def _first(steps: Iterator[object], count: int = 1) -> None:
    for _ in islice(steps, count):
        pass


def _calibration(study: Study) -> None:
    in_first_blocks = sum(layer.block in (None, 0, 1) for layer in study.layers[: len(study.layers) // 2])
    _first(calibrate_steps(study.graph, study.calibration_pixels), in_first_blocks)


def _sweep(study: Study) -> None:
    chosen = {layer.name for layer in study.layers[::EVERY]}
    images = study.analysis_images
    wanted = lambda name: (BITS,) if name in chosen else ()  # noqa: E731
    list(sensitivity_steps(study.calibration(), images.pixels, images.labels, bit_widths=(BITS,), wanted=wanted))


def _loss_changes(study: Study) -> None:
    bits_of = lambda layer: [(BITS, 8 if layer.kind == "patch_embed" else BITS)]  # noqa: E731
    _first(loss_change_steps(study.calibration(), study.analysis_images.pixels, bits_of))


def _pairs(study: Study) -> None:
    pairs = block_pairs(study.layers)[:2]
    list(pair_steps(study.calibration(), study.analysis_images.pixels[:8], pairs, (BITS,) * 5))


def _relevance(method: str) -> Callable[[Study], None]:
    return lambda study: _first(step for step in study.relevance_steps(method) if step.done)


STAGES: Mapping[str, Callable[[Study], object]] = {
    "opened": lambda study: study.graph,
    "full precision": lambda study: study.evaluations.reference(),
    "calibration for 2 to 8 bits, first two blocks": _calibration,
    f"sweep at {BITS} bits, one layer in {EVERY}": _sweep,
    f"allocation of {BITS} bits measured": lambda study: study.evaluate(BITS),
    "packed": lambda study: packed(quantize(study.calibration(), BITS, compensation=None), study.model),
    "relevance, chefer, first batch": _relevance("chefer"),
    "relevance, attnlrp, first batch": _relevance("attnlrp"),
    "gradient x relevance, first batch": _relevance("gradient x relevance"),
    "gradient x activation, first batch": _relevance("gradient x activation"),
    "one image explained": lambda study: study.image_relevance(0),
    "perturbations": lambda study: list(
        squared_perturbations(study.calibration(), study.analysis_images.pixels, (BITS,))
    ),
    "loss changes, first batch": _loss_changes,
    "pairs, first two": _pairs,
    "Hessian traces, first batch": lambda study: _first(
        step for step in runner.steps(study, HessianTraces()) if step.done
    ),
    "channels of all LayerNorms": lambda study: study.channels.statistics(),
}


def stage(name: str, model: str, checkpoint: str, images: str, folder: str) -> None:
    """Run one stage and print its seconds and the peak of the process in GiB."""
    study = Study(mixqvit.load_model(model, checkpoint), images, SETTINGS, mixqvit.Store(folder))
    if name == FITTED:
        found = calibrate(study.graph, study.calibration_pixels[:2], bit_widths=(BITS,))
        for layer, piece in found.layers.items():
            study.store.put_tensors(FITTED, layer, *to_tensors(piece))
        return
    names = [layer.name for layer in study.layers]
    layers = {layer: from_tensors(layer, *study.store.tensors(FITTED, layer)) for layer in names}
    found = Calibration(study.graph, study.settings.recipe, layers, study.calibration_pixels)
    study.memory["calibration"] = found
    started = time.perf_counter()
    STAGES[name](study)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{seconds:.0f} | {peak / _GIGA:.1f}")


def main(images: str, *models: str) -> None:
    """Measure and print, row by row."""
    print("| model | stage | seconds | peak GiB |\n| --- | --- | --- | --- |", flush=True)
    for model in models or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "random.safetensors"
            torch.manual_seed(0)
            safetensors.torch.save_file(timm.create_model(model).state_dict(), checkpoint)
            for name in (FITTED, *STAGES):
                command = [sys.executable, "-m", __spec__.name, "--stage", name, model, checkpoint, images, folder]
                done = subprocess.run(command, capture_output=True, text=True)
                found = done.stdout.strip() if done.returncode == 0 else f"{done.stderr.strip().splitlines()[-1:]} |"
                print(f"| {model} | {name} | {found} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--stage":
        stage(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
