"""What a study is set up with and what it hands out: plain records that need no torch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mixqvit.allocation.budget import Allocation
    from mixqvit.tasks.evaluation import Evaluation

__all__ = [
    "BranchShare",
    "FrontierPoint",
    "ImageRelevance",
    "Importance",
    "MethodComparison",
    "MethodResult",
    "Progress",
    "Settings",
    "StrategyComparison",
    "StrategyResult",
]


@dataclass(frozen=True)
class Settings:
    """What a study computes with. Every choice uses calibration images only; evaluation images are for measuring.

    Attributes:
        recipe: Quantization recipe; one that serves any bits.
        importance: How layer importance is computed, one of the study's `importance_methods`.
        measure: How what is attributed to a layer becomes one number: `share` |Σ R|, `absolute` Σ |R| or `positive`
            Σ max(R, 0) (METHOD.md, "Layer importance Ω"); None for the one that suits the method.
        metric: How harm is measured, one of `sensitivity.METRICS`; the allocation minimises it.
        baseline: Bit-width of all other layers while one is swept; 32 is full precision. With another baseline every
            Λ contains the harm of the baseline itself, and so does a predicted harm once for every layer; which
            allocation is best does not depend on it (γ = 0).
        calibration_images: Images that quantizers are fitted to.
        analysis_images: Calibration images that relevance and sensitivity are averaged over.
        evaluation_images: Evaluation images to measure on; None for all, of large sources a sample.
        calibration_seed: Which of the calibration images come first: another seed, another choice where there are
            more than are used.
        sampling_seed: Which images of a source are for calibration and which for evaluation.
        within_classes: Whether top-1 and agreement look only at the classes that occur among the images, such as ten of
            ImageNet's thousand; by default at all classes.
        outlier_factor: Amplification of outlier channels; 1 leaves the model as it is.
        outlier_channels: Channels of each LayerNorm that are amplified.
    """

    recipe: str = "mix-qvit"
    importance: str = "chefer"
    measure: str | None = None
    metric: str = "kl"
    baseline: int = 32
    calibration_images: int = 32
    analysis_images: int = 64
    evaluation_images: int | None = None
    calibration_seed: int = 0
    sampling_seed: int = 0
    within_classes: bool = False
    outlier_factor: float = 1.0
    outlier_channels: int = 2


@dataclass(frozen=True)
class Progress:
    """How far a long stage is. A stage that needs another one first reports that one's steps, without results.

    Attributes:
        done: Finished pieces, those found in the store included.
        total: All pieces.
        doing: What was finished last, in words.
        result: The finished piece, where it is of use by itself.
    """

    done: int
    total: int
    doing: str
    result: Any = None


@dataclass(frozen=True)
class BranchShare:
    """How much of the relevance at one residual sum takes the branch; the rest takes the skip connection.

    Attributes:
        block: Index of the transformer block.
        branch: `attention` or `mlp`.
        shares: The branch's share per image, 0 to 1 under the rules of Chefer et al.
    """

    block: int
    branch: str
    shares: list[float]


@dataclass(frozen=True)
class Importance:
    """Layer importance Ω.

    Attributes:
        mean: Ω by layer name, in network order; sums to 1.
        shares: r_l(x) / Σ r_k(x) of every image by layer name.
        flow: How relevance divides at the residual sums, in network order; empty for methods that are no relevance.
        seconds: Computing time per image, measured when it was computed.
    """

    mean: dict[str, float]
    shares: dict[str, list[float]]
    flow: tuple[BranchShare, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class ImageRelevance:
    """The relevance of one image.

    Attributes:
        image: The picture, `[H, W, C]`, 0 to 1.
        name: Its name.
        label: Index of its class, None without labels.
        predicted: Index of the predicted class.
        target: Index of the explained class.
        rules: The relevance rule set.
        probabilities: Of all classes, `[classes]`.
        pixels: Relevance of every pixel, `[H, W]`, summed over colour channels.
        tokens: Relevance of the patch tokens `[h, w]`, summed over channels, as it forms: after `patches` (the patch
            embedding), then after `block 0`, `block 1`, ... The grid of a hierarchical model shrinks on the way.
        heads: By block, relevance of every head's output at every patch token, `[heads, h, w]`.
        attribution: Rollout of gradient × relevance over patches, `[h, w]`; None without a class token.
        attribution_heads: By block, what the rollout reads of every head: max(0, ∂y/∂A ⊙ R_A) from the class token to
            the patches, `[heads, h, w]`; None without a class token.
        left: Relevance that left on the way to the pixels, by reason.
    """

    image: np.ndarray
    name: str
    label: int | None
    predicted: int
    target: int
    rules: str
    probabilities: np.ndarray
    pixels: np.ndarray
    tokens: dict[str, np.ndarray]
    heads: dict[int, np.ndarray]
    attribution: np.ndarray | None
    attribution_heads: dict[int, np.ndarray] | None
    left: dict[str, float]


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
