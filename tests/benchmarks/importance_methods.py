"""Print the comparison of importance methods of the README: which predicts what quantization really costs?

`python -m tests.benchmarks.importance_methods` measures the embedded models; with `CHECKPOINT IMAGES` a DeiT-Tiny.
Results are saved in the cache folder, so a second run only prints.
"""

import sys
from statistics import median

import mixqvit

AVERAGE_BITS = 3.0
ANALYSIS_IMAGES = 32  # of DeiT-Tiny: all of its calibration images


def main(arguments: list[str]) -> None:
    """Measure and print, model by model."""
    print(
        "| model | importance | images | s / image | correlation with Λ | top-1 %, KL of Ω alone | top-1 %, KL of Ω·Λ "
        "| infidelity | max. sensitivity |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    if arguments:
        checkpoint, folder = arguments
        model = mixqvit.load_model("deit_tiny_patch16_224", checkpoint)
        settings = mixqvit.Settings(analysis_images=ANALYSIS_IMAGES)
        _print(mixqvit.Study(model, folder, settings))
    else:
        for model in mixqvit.list_models():
            _print(mixqvit.Study(model.name))


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
            f"| {median(correlations):.2f} ({min(correlations):.2f} to {max(correlations):.2f}) "
            f"| {_measured(result.importance_only[1])} | {_measured(result.with_sensitivity[1])} "
            f"| {quality[0]} | {quality[1]} |",
            flush=True,
        )


def _measured(evaluation: mixqvit.Evaluation) -> str:
    low, high = evaluation.interval
    return f"{100 * evaluation.top1:.1f} ({100 * low:.1f} to {100 * high:.1f}), {evaluation.kl:.4f}"


if __name__ == "__main__":
    main(sys.argv[1:])
