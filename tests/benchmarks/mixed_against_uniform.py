"""Print what mixed and uniform bits measure on every embedded model (RESULTS.md, "Mixed beside uniform bits").

Run from the project's root: `python -m tests.benchmarks.mixed_against_uniform`.
"""

import mixqvit
from mixqvit.allocation.budget import Allocation
from mixqvit.study.study import Study
from mixqvit.tasks.evaluation import Evaluation

BUDGETS = (3, 4)
COLUMNS = ("model", "bits", "size MB", "BitOps G", "predicted harm", "top-1 % (95 % interval)", "agreement %", "KL")


def main() -> None:
    """Measure and print, row by row."""
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * len(COLUMNS))
    for model in mixqvit.list_models():
        study = Study(model.name)
        show(model.name, "full precision", None, study.evaluate(32))
        for bits in range(2, 9):
            uniform = study.uniform(bits)
            show(model.name, f"uniform {bits}", uniform, study.evaluate(uniform))
            if bits in BUDGETS:
                mixed = study.allocate(average_bits=float(bits))
                assert mixed.harm <= uniform.harm
                assert mixed.cost.size_bytes <= uniform.cost.size_bytes
                assert mixed.cost.bitops <= uniform.cost.bitops
                show(model.name, f"mixed, average {bits}", mixed, study.evaluate(mixed))


def show(model: str, bits: str, allocation: Allocation | None, measured: Evaluation) -> None:
    """Print one row."""
    low, high = measured.interval
    costs = ("", "", "")
    if allocation is not None:
        cost = allocation.cost
        costs = (f"{cost.size_bytes / 1e6:.3f}", f"{cost.bitops / 1e9:.3f}", f"{allocation.harm:.2e}")
    top1 = f"{100 * measured.top1:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    print(
        "| " + " | ".join((model, bits, *costs, top1, f"{100 * measured.agreement:.1f}", f"{measured.kl:.4f}")) + " |"
    )


if __name__ == "__main__":
    main()
