"""What a study computes with, free of torch."""

from dataclasses import dataclass

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """What a study computes with. Every choice uses calibration images only; evaluation images are for measuring.

    Attributes:
        recipe: Quantization recipe; one that serves any bits.
        importance: How layer importance is computed, one of the study's `importance_methods`.
        measure: How what is attributed to a layer becomes one number: `share` |Σ R|, `absolute` Σ |R| or `positive`
            Σ max(R, 0) (METHOD.md, "Layer importance Ω"); None for the one that suits the method.
        metric: How harm is measured, one of the task's metrics (`Study.metrics`); the allocation minimises it.
        baseline: Bit-width of all other layers while one is swept; 32 is full precision. With another baseline every
            Λ contains the harm of the baseline itself, and so does a predicted harm once for every layer; which
            allocation is best does not depend on it (γ = 0).
        calibration_images: Images that quantizers are fitted to.
        analysis_images: Calibration images that relevance and sensitivity are averaged over.
        evaluation_images: Evaluation images to measure on; None for all, of large sources a sample.
        calibration_seed: Which of the calibration images come first: another seed, another choice where there are
            more than are used.
        sampling_seed: Which images of a source are for calibration and which for evaluation.
        label_order: What labels mean that are no names of the model's classes, one of `labels.LABEL_ORDERS`; None where
            that is certain, otherwise such images are refused.
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
    label_order: str | None = None
    within_classes: bool = False
    outlier_factor: float = 1.0
    outlier_channels: int = 2
