"""What any training of a quantized model has: a learning rate that ends at zero."""

import math

__all__ = ["learning_rate_factor"]


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak at a step, from 0: a linear rise over `warmup` steps, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
