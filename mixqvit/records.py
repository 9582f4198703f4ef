"""What a study is set up with and what it hands out: plain records that need no torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["ImageRelevance", "Importance", "Progress", "Settings"]


@dataclass(frozen=True)
class Settings:
    """What a study computes with. Every choice uses calibration images only; evaluation images are for measuring.

    Attributes:
        recipe: Quantization recipe; one that serves any bits.
        rules: Relevance rule set.
        measure: How a layer's relevance becomes one number (METHOD.md, "Layer importance Ω").
        calibration_images: Images that quantizers are fitted to.
        analysis_images: Calibration images that relevance and sensitivity are averaged over.
        evaluation_images: Evaluation images to measure on; None for all.
        outlier_factor: Amplification of outlier channels; 1 leaves the model as it is.
        outlier_channels: Channels of each LayerNorm that are amplified.
    """

    recipe: str = "mix-qvit"
    rules: str = "chefer"
    measure: str = "share"
    calibration_images: int = 32
    analysis_images: int = 64
    evaluation_images: int | None = None
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
class Importance:
    """Layer importance Ω.

    Attributes:
        mean: Ω by layer name, in network order; sums to 1.
        shares: r_l(x) / Σ r_k(x) of every image by layer name.
    """

    mean: dict[str, float]
    shares: dict[str, list[float]]


@dataclass(frozen=True)
class ImageRelevance:
    """The relevance of one image.

    Attributes:
        image: The picture, `[H, W, C]`, 0 to 1.
        name: Its name.
        label: Index of its class, None without labels.
        predicted: Index of the predicted class.
        target: Index of the explained class.
        probabilities: Of all classes, `[classes]`.
        pixels: Relevance of every pixel, `[H, W]`, summed over colour channels.
        attribution: Rollout of gradient × relevance over patches, `[h, w]`; None without a class token.
    """

    image: np.ndarray
    name: str
    label: int | None
    predicted: int
    target: int
    probabilities: np.ndarray
    pixels: np.ndarray
    attribution: np.ndarray | None
