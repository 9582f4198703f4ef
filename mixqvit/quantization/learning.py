"""What any training of a quantized model has: a loss that needs no labels, and a learning rate that ends at zero."""

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["distillation_loss", "learning_rate_factor"]


def distillation_loss(logits: Tensor, reference: Tensor) -> Tensor:
    """Return KL(full precision ‖ quantized) of every image, `[B]`, in nats; zero where the two are equal.

    Soft labels at temperature 1 (Hinton et al. 2015, arXiv 1503.02531), as OFQ trains (arXiv 2302.02210, section 5.1).

    Args:
        logits: Of the quantized model, `[B, classes]`.
        reference: Of the full-precision model on the same images, `[B, classes]`.
    """
    own, wanted = (
        functional.log_softmax(values, dim=1, dtype=torch.promote_types(values.dtype, torch.float32))
        for values in (logits, reference)
    )
    return functional.kl_div(own, wanted, log_target=True, reduction="none").sum(dim=1)


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak at a step, from 0: a linear rise over `warmup` steps, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
