"""What a study's comparisons hand out: plain records that need no torch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixqvit.allocation.budget import Allocation
    from mixqvit.tasks.evaluation import Evaluation

__all__ = [
    "FrontierPoint",
    "MethodComparison",
    "MethodResult",
    "StrategyComparison",
    "StrategyResult",
]


@dataclass(frozen=True)
class MethodResult:
    """What one kind of importance is worth for choosing bits.

    Attributes:
        importance: Ω by layer name.
        images: Images that Ω is a mean over.
        seconds: Computing time of Ω per image, measured once when it was computed.
        correlation: Spearman rank correlation of Ω with the sensitivity Λ over the layers, by bit-width.
        importance_only: The allocation that Ω alone leads to (Λ := 4^(−w) + 4^(−a), as LRP-QViT), and what it measures.
        with_sensitivity: The allocation that Ω · Λ leads to (Mix-QViT), and what it measures.
        infidelity: Captum's infidelity of the attribution of the pixels (Yeh et al. 2019), less is better; None where
            the method explains layers only.
        max_sensitivity: Captum's maximum sensitivity of that attribution to small changes of the image.
    """

    importance: dict[str, float]
    images: int
    seconds: float
    correlation: dict[int, float]
    importance_only: tuple["Allocation", "Evaluation"]
    with_sensitivity: tuple["Allocation", "Evaluation"]
    infidelity: float | None
    max_sensitivity: float | None


@dataclass(frozen=True)
class MethodComparison:
    """Kinds of importance side by side, at the same budget.

    Attributes:
        average_bits: The budget, with BitOps capped at those of uniform bits.
        methods: Finished results by method name.
        references: What allocations without importance measure: `sensitivity only` (γ = 0), and `uniform` at the
            largest uniform bit-width within the budget.
        agreement: Spearman rank correlation between the importances of two methods, both ways round.
        refused: Why a method does not apply to this model, by method name.
    """

    average_bits: float
    methods: dict[str, MethodResult]
    references: dict[str, tuple["Allocation", "Evaluation"]]
    agreement: dict[tuple[str, str], float]
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FrontierPoint:
    """The optimum of one budget.

    Attributes:
        average_bits: The budget.
        allocation: The best allocation within it, None where nothing fits.
    """

    average_bits: float
    allocation: "Allocation | None"


@dataclass(frozen=True)
class StrategyResult:
    """What one allocation strategy chooses within a budget, and what that measures.

    Attributes:
        allocation: The bits; their harm is what the strategy minimises, in its own unit.
        predicted_harm: Σ Λ of these bits: the same yardstick for all strategies.
        evaluation: On the evaluation images.
        score_seconds: Computing time of all that the strategy has to know, measured once when it was computed.
        solve_seconds: Time to solve for the bits, measured here and now.
    """

    allocation: "Allocation"
    predicted_harm: float
    evaluation: "Evaluation"
    score_seconds: float
    solve_seconds: float


@dataclass(frozen=True)
class StrategyComparison:
    """Allocation strategies side by side, within the same budget.

    Attributes:
        results: Finished results by strategy.
        refused: Why a strategy has none, by strategy.
    """

    results: dict[str, StrategyResult]
    refused: dict[str, str] = field(default_factory=dict)
