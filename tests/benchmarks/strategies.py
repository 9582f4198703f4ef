"""Print what every allocation strategy measures within the same budgets (RESULTS.md, "Does the criterion matter?").

`python -m tests.benchmarks.strategies` measures the embedded models with three choices of calibration images (CLADO,
whose pairs take minutes, with one); with `CHECKPOINT IMAGES` a DeiT-Tiny with one. Results are saved in the cache
folder, so a second run only prints.
"""

import sys
from statistics import mean

import mixqvit
from mixqvit.criteria.registry import CRITERIA
from mixqvit.errors import CalibrationError
from mixqvit.study.records import StrategyResult

AVERAGE_BITS = (3.0, 4.0, 6.0)
SEEDS = (0, 1, 2)
ANALYSIS_IMAGES = 32  # of DeiT-Tiny: all of its calibration images


def main(arguments: list[str]) -> None:
    """Measure and print, model by model."""
    if arguments:
        checkpoint, folder = arguments
        settings = [mixqvit.Settings(analysis_images=ANALYSIS_IMAGES)]
        studies = [[mixqvit.Study(mixqvit.load_model("deit_tiny_patch16_224", checkpoint), folder, settings[0])]]
    else:
        settings = [mixqvit.Settings(calibration_seed=seed) for seed in SEEDS]
        studies = [
            [mixqvit.Study(model.name, settings=chosen) for chosen in settings] for model in mixqvit.list_models()
        ]
    print(
        "| model | budget | strategy | Σ Λ | size MB | BitOps G | top-1 % (95 % interval) | agreement % | KL "
        "| score s | solve ms | gap % |\n" + "| --- " * 12 + "|"
    )
    for same_model in studies:
        for average_bits in AVERAGE_BITS:
            _print(same_model, average_bits)


def _print(studies: list[mixqvit.Study], average_bits: float) -> None:
    found: dict[str, list[StrategyResult]] = {}
    for number, study in enumerate(studies):
        strategies = [name for name, one in CRITERIA.items() if not one.is_costly or number == 0]
        for step in study.compare_strategies_steps(strategies, average_bits=average_bits):
            print(f"{study.model.name} {average_bits}: {step.doing}", end="\033[K\r", file=sys.stderr)
        if step.result.refused:
            raise CalibrationError(str(step.result.refused))
        for name, result in step.result.results.items():
            found.setdefault(name, []).append(result)
    for name, results in found.items():
        cost, first = results[0].allocation.cost, results[0].evaluation
        low, high = first.interval
        kl = ", ".join(f"{result.evaluation.kl:.4f}" for result in results)
        print(
            f"| {studies[0].model.name} | {average_bits:g} | {name} "
            f"| {mean(result.predicted_harm for result in results):.2e} | {cost.size_bytes / 1e6:.3f} "
            f"| {cost.bitops / 1e9:.3f} | {100 * mean(result.evaluation.top1 for result in results):.1f} "
            f"({100 * low:.1f} to {100 * high:.1f}) | {100 * mean(r.evaluation.agreement for r in results):.1f} | {kl} "
            f"| {results[0].score_seconds:.1f} | {1000 * results[0].solve_seconds:.0f} "
            f"| {100 * max(result.allocation.gap for result in results):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
