"""What relevance hands out: plain records that need no torch."""

from dataclasses import dataclass

import numpy as np

__all__ = ["BranchShare", "ImageRelevance", "Importance"]


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
