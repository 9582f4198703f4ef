"""Train the embedded models with quantizers: accuracy by method, bits and seed; where step sizes start.

RESULTS.md, "Quantization-aware training".

    python -m tests.benchmarks.training --store FOLDER [--models digits_swin] [--seeds 0 1 2]
    python -m tests.benchmarks.training --store FOLDER --initial

Everything is saved in the folder, so that an interrupted run goes on. Patch embedding and head have 8 bits and are
outside the average; `mixed` is the allocation of mix-qvit with model size and BitOps at most those of uniform bits of
that average.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from mixqvit.engines.progress import Progress
from mixqvit.models.cards import EMBEDDED
from mixqvit.network.bits import FULL_PRECISION, BitsPerLayer
from mixqvit.stages.store import Store
from mixqvit.study.study import Study
from mixqvit.tasks.evaluation import Evaluation, wilson_interval
from mixqvit.training import step_sizes
from mixqvit.training.settings import TRAINING_METHODS, TrainingSettings

SETTINGS = (("uniform", 2), ("mixed", 2.5), ("uniform", 3), ("mixed", 3))


def bits_of(study: Study, kind: str, average: float) -> BitsPerLayer:
    """Return the bits of a row of the table."""
    if kind == "uniform":
        return study.first_last_uniform(int(average))
    finish(study.score_steps())
    return study.allocate(study.first_last_request(average)).bits


def finish(steps: Iterator[Progress]) -> object:
    """Run a stage to its end."""
    *_, last = steps
    return last.result


def measured(found: Evaluation) -> str:
    """Write top-1 with its 95 % interval, and KL."""
    low, high = found.interval
    return f"{100 * found.top1:5.1f} ({100 * low:.1f} to {100 * high:.1f})  KL {found.kl:.4f}"


def table(name: str, seeds: list[int], epochs: int, store: Store) -> None:
    """Print accuracy, size and BitOps of every method at every setting."""
    study = Study(name, store=store)
    print(f"\n{name}: full precision {measured(study.evaluate(FULL_PRECISION))}", flush=True)
    for kind, average in SETTINGS:
        bits = bits_of(study, kind, average)
        print(f"{kind} {average}: post-training {measured(study.evaluate(bits))}", flush=True)
        for method in TRAINING_METHODS:
            found, seconds = [], []
            for seed in seeds:
                settings = TrainingSettings(method, epochs, seed)
                run = finish(study.training_steps(bits, settings))
                seconds.append(sum(epoch.seconds for epoch in run.epochs))
                found.append(finish(study.evaluate_trained_steps(bits, settings)))
            top1 = [100 * evaluation.top1 for evaluation in found]
            pooled = pool(found)
            costs = study.training.cost(bits, settings)
            print(
                f"  {method}: top-1 {' '.join(f'{value:.1f}' for value in top1)}, mean {statistics.mean(top1):.2f} "
                f"({pooled[0]:.2f} to {pooled[1]:.2f}), KL {statistics.mean(found_.kl for found_ in found):.4f}; "
                f"{costs.size_bytes / 1e3:.1f} kB, {costs.bitops / 1e6:.1f} M BitOps, "
                f"{statistics.mean(seconds):.0f} s on {torch.get_num_threads()} threads",
                flush=True,
            )


def pool(found: list[Evaluation]) -> tuple[float, float]:
    """Return a 95 % interval (Wilson) of mean top-1, in percent, as if all seeds had erred on the same images.

    They are measured on the same images, so that three seeds tell little more of other images than one does.
    """
    images = found[0].images
    correct = statistics.mean(evaluation.correct for evaluation in found)
    low, high = wilson_interval(correct, images)
    return 100 * low, 100 * high


def initial(name: str, seeds: list[int], epochs: int, store: Store) -> None:
    """Print what comes of step sizes that start as in the paper, and as fitted here."""

    def as_in_the_paper(values: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, int]:
        zero_point = fitted(values, bits, per_channel)[1]
        return step_sizes.paper_step(values, 2**bits - 1 - zero_point, per_channel), zero_point

    fitted = step_sizes.fitted_step
    for label, start in (("2 mean|v| / sqrt(Q_P)", as_in_the_paper), ("least squared error", fitted)):
        study = Study(name, store=Store(store.folder / label.replace("/", "over")))
        bits = study.first_last_uniform(2)
        with patch.object(step_sizes, "fitted_step", start):
            for seed in seeds:
                settings = TrainingSettings(epochs=epochs, seed=seed)
                run = finish(study.training_steps(bits, settings))
                found = finish(study.evaluate_trained_steps(bits, settings))
                losses = " ".join(f"{epoch.loss:.3f}" for epoch in run.epochs)
                print(f"{name}, uniform 2, seed {seed}, {label}: loss {losses}; {measured(found)}", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(EMBEDDED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--initial", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    for name in options.models:
        (initial if options.initial else table)(name, options.seeds, options.epochs, Store(options.store))
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
