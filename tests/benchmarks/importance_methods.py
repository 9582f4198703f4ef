"""Print which importance predicts what quantization really costs (RESULTS.md, "Which importance ...").

`python -m tests.benchmarks.importance_methods` measures the embedded models; with `CHECKPOINT IMAGES` a DeiT-Tiny.
Results are saved in the cache folder, so a second run only prints.
"""

import sys
from itertools import product
from statistics import median

import mixqvit
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.relevance.result import MEASURES
from mixqvit.relevance.rules import RULE_SETS
from mixqvit.study.method_comparison import rank_correlation

AVERAGE_BITS = 3.0
ANALYSIS_IMAGES = 32  # of DeiT-Tiny: all of its calibration images


def main(arguments: list[str]) -> None:
    """Measure and print, model by model."""
    if arguments:
        checkpoint, folder = arguments
        model = mixqvit.load_model("deit_tiny_patch16_224", checkpoint)
        sources, images = [model], ANALYSIS_IMAGES
    else:
        sources, folder, images = (
            [model.name for model in mixqvit.list_models()],
            None,
            mixqvit.Settings().analysis_images,
        )
    _print_measures(sources, folder, images)
    print(
        "| model | importance | images | s / image | correlation with Λ | top-1 %, KL of Ω alone | top-1 %, KL of Ω·Λ "
        "| infidelity | max. sensitivity |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for source in sources:
        _print(mixqvit.Study(source, folder, mixqvit.Settings(analysis_images=images)))


def _print_measures(sources: list[mixqvit.Model | str], folder: str | None, images: int) -> None:
    """Print how well every measure of relevance orders the layers like the measured sensitivity."""
    print("| model | rule set | measure | correlation with Λ: median (range), 2 to 8 bits |\n| --- | --- | --- | --- |")
    for source in sources:
        sensitivity = mixqvit.Study(source, folder, mixqvit.Settings(analysis_images=images)).sensitivity()
        for rules, measure in product(RULE_SETS, MEASURES):
            settings = mixqvit.Settings(importance=rules, measure=measure, analysis_images=images)
            study = mixqvit.Study(source, folder, settings)
            importance = study.relevance().mean
            found = [
                rank_correlation(importance, {name: harms[bits] for name, harms in sensitivity.items()})
                for bits in BIT_WIDTHS
            ]
            print(f"| {study.model.name} | {rules} | {measure} | {_spread(found)} |", flush=True)
    print()


def _print(study: mixqvit.Study) -> None:
    for step in study.method_comparison_steps(AVERAGE_BITS):
        print(f"{study.model.name}: {step.done} of {step.total}, {step.doing}", end="\r", file=sys.stderr)
    found = step.result
    for name, (_, measured) in found.references.items():
        print(f"| {study.model.name} | none: {name} | | | | | {_measured(measured)} | | |")
    for name, result in found.methods.items():
        correlations = list(result.correlation.values())
        quality = ["" if value is None else f"{value:.2f}" for value in (result.infidelity, result.max_sensitivity)]
        print(
            f"| {study.model.name} | {name} | {result.images} | {result.seconds:.3f} "
            f"| {_spread(correlations)} "
            f"| {_measured(result.importance_only[1])} | {_measured(result.with_sensitivity[1])} "
            f"| {quality[0]} | {quality[1]} |",
            flush=True,
        )


def _spread(correlations: list[float]) -> str:
    return f"{median(correlations):.2f} ({min(correlations):.2f} to {max(correlations):.2f})"


def _measured(evaluation: mixqvit.Evaluation) -> str:
    low, high = evaluation.interval
    return f"{100 * evaluation.top1:.1f} ({100 * low:.1f} to {100 * high:.1f}), {evaluation.kl:.4f}"


if __name__ == "__main__":
    main(sys.argv[1:])
