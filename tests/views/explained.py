"""Hand-made results that the tests of the Relevance page's figures draw."""

import numpy as np

from mixqvit.relevance.records import ImageRelevance


def explained(target: int = 2, scale: float = 1.0, class_token: bool = True, **changes) -> ImageRelevance:
    """A picture of 4 x 6 pixels with 2 x 3 patches, two blocks and two heads."""
    pixels = np.zeros((4, 6))
    pixels[1, 2], pixels[3, 5] = 0.5 * scale, -0.75 * scale
    patches = np.array([[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]]) * scale
    heads = np.stack([patches, -3 * patches])
    found = {
        "image": np.linspace(0, 1, 24).reshape(4, 6, 1),
        "name": "digit 0001",
        "label": 1,
        "predicted": 2,
        "target": target,
        "rules": "chefer",
        "probabilities": np.array([0.1, 0.2, 0.7]),
        "pixels": pixels,
        "tokens": {"patches": patches, "block 0": 2 * patches, "block 1": 0 * patches},
        "heads": {0: heads, 1: 2 * heads},
        "attribution": patches if class_token else None,
        "attribution_heads": {0: np.abs(heads), 1: 4 * np.abs(heads)} if class_token else None,
        "left": {"class token": 0.25, "zero output": 0.001, "position embedding": 0.5},
    }
    return ImageRelevance(**found | changes)
