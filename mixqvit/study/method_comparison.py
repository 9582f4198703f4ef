"""Which kind of layer importance predicts what quantization really costs? All of them side by side, at one budget."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

from scipy.stats import spearmanr

from mixqvit.allocation.budget import Allocation, Budget
from mixqvit.criteria.lrp_qvit import LRPQViT
from mixqvit.engines.progress import Progress
from mixqvit.errors import UnsupportedOperationError
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.quantization.evaluation_stage import Evaluated
from mixqvit.relevance.stages import AttributionScores, LayerImportance
from mixqvit.study.allocation import Allocations
from mixqvit.study.base import StudyBase
from mixqvit.study.composite import Composite, awaited
from mixqvit.study.evaluation import Evaluations
from mixqvit.study.records import MethodComparison, MethodResult
from mixqvit.study.relevance import Relevances
from mixqvit.study.sensitivity import Sensitivities
from mixqvit.tasks.evaluation import Evaluation

__all__ = ["compare_methods_steps", "rank_correlation"]

_PARTS_PER_METHOD = 4  # importance, its quality, two measured allocations


def compare_methods_steps(study: StudyBase, average_bits: float) -> Iterator[Progress]:
    """Compute every importance, the allocations it leads to, and what these measure.

    Every piece, and the result, is a `MethodComparison` so far. All that it is made of is saved by the study.

    Args:
        study: The open study.
        average_bits: The budget of all allocations, BitOps capped as usual.

    Raises:
        InfeasibleBudgetError, AllocationError: The budget is not possible.
    """
    budget = Budget(average_bits=average_bits)
    relevances, allocations, evaluations = Relevances(study), Allocations(study), Evaluations(study)
    sensitivity = yield from awaited(Sensitivities(study).steps())
    comparison = MethodComparison(average_bits, {}, {}, {}, {})
    references = {"sensitivity only": allocations.allocate(average_bits, gamma=0.0)}
    uniform = allocations.uniform_beside(budget, gamma=0.0)
    if uniform is not None:
        references["uniform"] = uniform
    methods = relevances.methods()
    whole = Composite("comparison", len(references) + _PARTS_PER_METHOD * len(methods), lambda: comparison)
    for name, allocation in references.items():
        measured = yield from whole.part(evaluations.steps(allocation), name, [Evaluated.name])
        comparison = replace(comparison, references={**comparison.references, name: (allocation, measured)})
    for method in methods:
        try:
            importance = yield from whole.part(relevances.steps(method), method, [LayerImportance.name])
        except UnsupportedOperationError as error:
            comparison = replace(comparison, refused={**comparison.refused, method: str(error)})
            whole.leave_out(_PARTS_PER_METHOD)
            continue
        quality = relevances.quality_steps(method)
        infidelity, max_sensitivity = yield from whole.part(quality, method, [AttributionScores.name])
        results: list[tuple[Allocation, Evaluation]] = []
        for allocation in (
            allocations.allocate(average_bits, importance=importance.mean, strategy=LRPQViT.name),
            allocations.allocate(average_bits, importance=importance.mean),
        ):
            measured = yield from whole.part(evaluations.steps(allocation), method, [Evaluated.name])
            results.append((allocation, measured))
        found = MethodResult(
            importance=importance.mean,
            images=len(next(iter(importance.shares.values()))),
            seconds=importance.seconds,
            correlation={
                bits: rank_correlation(importance.mean, {name: harm[bits] for name, harm in sensitivity.items()})
                for bits in BIT_WIDTHS
            },
            importance_only=results[0],
            with_sensitivity=results[1],
            infidelity=infidelity,
            max_sensitivity=max_sensitivity,
        )
        comparison = _with(comparison, method, found)
    yield whole.last()


def rank_correlation(first: dict[str, float], second: dict[str, float]) -> float:
    """Return Spearman's rank correlation over the layers, 0 where one of the two does not vary."""
    if len(set(first.values())) == 1 or len(set(second.values())) == 1:
        return 0.0
    return float(spearmanr([first[name] for name in first], [second[name] for name in first]).statistic)


def _with(comparison: MethodComparison, method: str, found: MethodResult) -> MethodComparison:
    methods: dict[str, MethodResult] = {**comparison.methods, method: found}
    agreement = {
        (one, other): rank_correlation(methods[one].importance, methods[other].importance)
        for one, other in permutations(methods, 2)
    }
    return replace(comparison, methods=methods, agreement=agreement)
