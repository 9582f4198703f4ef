"""What relevance propagation returns, and what a layer's importance is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from mixqvit.errors import MixQViTError

__all__ = ["MEASURES", "LayerTotals", "Relevance", "merge"]

Totals = TypeVar("Totals", bound="LayerTotals")

MEASURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "share": lambda relevance: relevance.sum(1).abs(),
    "absolute": lambda relevance: relevance.abs().sum(1),
    "positive": lambda relevance: relevance.clamp(min=0).sum(1),
}
"""r_l(x) of METHOD.md, from the relevance `[N, elements]` at the output of layer l to `[N]`."""


@dataclass(frozen=True, kw_only=True)
class LayerTotals:
    """What an attribution method says about the layers, for N images.

    Attributes:
        totals: r_l(x) of METHOD.md by measure and layer, `[N]` each.
        measure: The measure that `shares` and `importance` use. `dataclasses.replace(totals, measure="absolute")`
            gives the same attribution under another one.
    """

    totals: Mapping[str, Mapping[str, Tensor]]
    measure: str = "share"

    @cached_property
    def shares(self) -> Mapping[str, Tensor]:
        """r_l(x) / Σ_k r_k(x) per image `[N]` by layer; 0 for all layers where nothing is attributed at all."""
        totals = self.totals[self.measure]
        whole = torch.stack(list(totals.values())).sum(0)
        return {name: (total / whole).masked_fill(whole == 0, 0) for name, total in totals.items()}

    @cached_property
    def importance(self) -> Mapping[str, float]:
        """Layer importance Ω_l, the mean of `shares` over the images, in network order."""
        return {name: float(share.mean()) for name, share in self.shares.items()}


@dataclass(frozen=True, kw_only=True)
class Relevance(LayerTotals):
    """The relevance of N images, each for its explained class.

    Attributes:
        outputs: Relevance at the output of each kept layer or node `[N, ...]`; `[N, windows, ...]` where the model
            works on windows (Swin).
        tokens: Relevance at the output of each block, summed over channels: `[N, H_t, W_t]` on the grid of patches
            without the class and distillation tokens, or `[N, tokens]` where there is no such grid.
        patches: Relevance at the output of the patch embedding, summed over channels, `[N, h, w]`; None without one.
        pixels: Relevance of the pixels, summed over colour channels, `[N, H, W]`.
        branches: By block and branch (`attention`, `mlp`), the share of the relevance at the residual sum that takes
            the branch, `[N]`; the rest takes the skip connection.
        targets: The explained classes `[N]`.
        start: Relevance per image at the logits `[N]`: 1.
        exits: Relevance per image `[N]` that left on the way, by reason (`mixqvit.relevance.step`).
    """

    outputs: Mapping[str, Tensor]
    tokens: Mapping[int, Tensor]
    patches: Tensor | None
    pixels: Tensor
    branches: Mapping[tuple[int, str], Tensor]
    targets: Tensor
    start: Tensor
    exits: Mapping[str, Tensor]

    @cached_property
    def leak(self) -> Tensor:
        """Relevance per image `[N]` that is neither at the pixels nor left at a stated exit.

        Rounding error at stabilizer 0; the published stabilizer costs a little more (METHOD.md).
        """
        return self.start - self.pixels.sum((1, 2)) - sum(self.exits.values())


def merge(parts: Sequence[Totals]) -> Totals:
    """Join the relevance, or the totals of another method, of several batches of images, in order.

    Args:
        parts: What `propagate_steps` or `importance_steps` yielded, all of it or a part.

    Returns:
        The same for all their images.

    Raises:
        MixQViTError: There is nothing to join, or the parts come from different models or settings.
    """
    if not parts:
        raise MixQViTError("There is no relevance to join: not one batch of images was finished.")
    first = parts[0]
    if any(_settings(part) != _settings(first) for part in parts):
        raise MixQViTError("Relevance of different models, kept layers or measures cannot be joined.")
    totals = {
        measure: {name: torch.cat([part.totals[measure][name] for part in parts]) for name in of_measure}
        for measure, of_measure in first.totals.items()
    }
    if not isinstance(first, Relevance):
        return replace(first, totals=totals)
    reasons = dict.fromkeys(reason for part in parts for reason in part.exits)
    return replace(
        first,
        outputs={name: torch.cat([part.outputs[name] for part in parts]) for name in first.outputs},
        tokens={block: torch.cat([part.tokens[block] for part in parts]) for block in first.tokens},
        patches=None if first.patches is None else torch.cat([part.patches for part in parts]),
        pixels=torch.cat([part.pixels for part in parts]),
        branches={name: torch.cat([part.branches[name] for part in parts]) for name in first.branches},
        targets=torch.cat([part.targets for part in parts]),
        totals=totals,
        start=torch.cat([part.start for part in parts]),
        exits={
            reason: torch.cat([part.exits.get(reason, torch.zeros_like(part.start)) for part in parts])
            for reason in reasons
        },
    )


def _settings(part: LayerTotals) -> tuple[object, ...]:
    kept = (list(part.outputs), list(part.tokens)) if isinstance(part, Relevance) else ()
    return (part.measure, list(part.totals[part.measure]), *kept)
