"""What the Overview page shows: the table of layers, sample images, and the results of three cards in words."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mixqvit.network.layers import Layer
from mixqvit.views.class_names import first_synonym
from mixqvit.views.grid import layer_frame
from mixqvit.views.numbers import NOTHING, interval_text, megabytes, percent

if TYPE_CHECKING:
    from mixqvit.allocation.budget import Allocation
    from mixqvit.tasks.evaluation import Evaluation
    from mixqvit.tasks.task import Example

__all__ = [
    "accuracy",
    "breaks_first",
    "caption",
    "four_bits_give",
    "layer_table",
    "matters_most",
]


def layer_table(layers: Sequence[Layer]) -> pd.DataFrame:
    """Return the table of quantized layers, one row per layer in network order; MACs in millions for one image."""
    return layer_frame(
        layers,
        {
            "parameters": {layer.name: layer.parameters for layer in layers},
            "MACs (M)": {layer.name: layer.macs / 1e6 for layer in layers},
            "input shape": {layer.name: _shape(layer.input_shape) for layer in layers},
            "output shape": {layer.name: _shape(layer.output_shape) for layer in layers},
        },
    )


def caption(example: "Example") -> str:
    """Return what stands below a small picture: its label in short or, without one, its name."""
    return example.name if example.label is None else first_synonym(example.label)


def accuracy(evaluation: "Evaluation") -> tuple[str, str]:
    """Return top-1 accuracy and its 95 % interval in words; agreement with full precision where there are no labels."""
    chosen = evaluation.accuracy
    if not evaluation.has_choice:
        return NOTHING, "one class: any bits are right"
    return percent(chosen.value(evaluation)), f"95 % interval {interval_text(chosen.interval(evaluation))}"


def matters_most(layers: Sequence[Layer], importance: Mapping[str, float], count: int = 3) -> str:
    """Say in Markdown which layers carry the largest share of relevance, and which block carries most."""
    best = sorted(importance, key=importance.__getitem__, reverse=True)[:count]
    lines = [f"{rank}. `{name}` {percent(importance[name])}" for rank, name in enumerate(best, start=1)]
    blocks: dict[int, float] = {}
    for layer in layers:
        if layer.block is not None:
            blocks[layer.block] = blocks.get(layer.block, 0.0) + importance[layer.name]
    first = "The most relevance flows through\n\n"
    if not blocks:
        return first + "\n".join(lines)
    top = max(blocks, key=blocks.__getitem__)
    share, equal = percent(blocks[top], 0), percent(1 / len(blocks), 0)
    return first + "\n".join(lines) + f"\n\nBlock {top} as a whole carries {share}; an equal share would be {equal}."


def breaks_first(sensitivity: Mapping[str, Mapping[int, float]], count: int = 3) -> str:
    """Say in Markdown which layers do the most harm when they alone get the fewest bits measured."""
    fewest = min(min(harms) for harms in sensitivity.values())
    worst = sorted(sensitivity, key=lambda name: sensitivity[name][fewest], reverse=True)
    lines = [f"{rank}. `{name}` {sensitivity[name][fewest]:.2g} nats" for rank, name in enumerate(worst[:count], 1)]
    typical = float(np.median([harms[fewest] for harms in sensitivity.values()]))
    return (
        f"Alone at {fewest} bits, the output moves farthest for\n\n"
        + "\n".join(lines)
        + f"\n\nThe median layer moves it by {typical:.2g} nats (KL divergence)."
    )


def four_bits_give(
    mixed: "Allocation",
    mixed_evaluation: "Evaluation",
    uniform_evaluation: "Evaluation | None",
    uniform_size_bytes: int,
    full_bytes: int,
) -> str:
    """Say in Markdown what the mixed allocation measures and costs, beside uniform bits and full precision."""
    value, interval = accuracy(mixed_evaluation)
    measure = mixed_evaluation.accuracy.in_sentence
    fraction = mixed.cost.size_bytes / full_bytes
    text = (
        f"**Mixed bits: {value}** {measure} ({interval}) at {megabytes(mixed.cost.size_bytes)}, "
        f"{percent(fraction, 0)} of the {megabytes(full_bytes)} in full precision.\n\n"
    )
    if uniform_evaluation is None:
        return text + "Uniform 4 bits: measuring …"
    value, interval = accuracy(uniform_evaluation)
    return text + f"Uniform 4 bits: {value} ({interval}) at {megabytes(uniform_size_bytes)}."


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(str(size) for size in shape)
