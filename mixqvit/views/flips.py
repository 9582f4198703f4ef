"""Two allocations against each other: layer by layer, and image by image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from mixqvit.network.bits import Bits
from mixqvit.network.layers import Layer
from mixqvit.views.allocation_words import bits_text, mark
from mixqvit.views.class_names import shortened
from mixqvit.views.style import finish

if TYPE_CHECKING:
    from mixqvit.tasks.evaluation import Evaluation

__all__ = [
    "Flip",
    "FlipKinds",
    "difference_frame",
    "flip_caption",
    "flip_frame",
    "flip_hover",
    "flip_kinds",
    "flip_words",
    "flips",
    "kl_figure",
]

_COLOURS = ("#d55e00", "#0072b2", "#e69f00")
_SYMBOLS = ("triangle-down", "triangle-up", "diamond")
_SAME = "#9aa3a9"
_LEAST_KL = 1e-8  # nats; what a logarithmic scale shows of none
_HEIGHT = 400  # pixels


@dataclass(frozen=True)
class FlipKinds:
    """The three ways in which the predicted class of an image can differ between A and B.

    Attributes:
        worse: Right with A, wrong with B; without labels: A agrees with full precision, B does not.
        better: The other way round.
        other: Neither is right, in two ways.
    """

    worse: str
    better: str
    other: str

    def names(self) -> tuple[str, str, str]:
        """Return all three."""
        return self.worse, self.better, self.other


def flip_kinds(has_labels: bool) -> FlipKinds:
    """Return what flips are called: by the labels, or by the full-precision model where there are none."""
    if has_labels:
        return FlipKinds("right → wrong", "wrong → right", "wrong → wrong otherwise")
    return FlipKinds("agreed → differs", "differed → agrees", "differs otherwise")


@dataclass(frozen=True)
class Flip:
    """An image whose predicted class differs between two allocations.

    Attributes:
        index: Which evaluation image.
        kind: One of `FlipKinds`.
        expected: Its label; without labels the class predicted in full precision.
        first: Class predicted with A.
        second: Class predicted with B.
        first_kl: KL(full precision ‖ A), nats.
        second_kl: KL(full precision ‖ B), nats.
    """

    index: int
    kind: str
    expected: int
    first: int
    second: int
    first_kl: float
    second_kl: float


def flips(expected: Sequence[int], first: "Evaluation", second: "Evaluation", kinds: FlipKinds) -> list[Flip]:
    """Return the images that flip, those whose KL changes most first.

    Args:
        expected: Label of every image; without labels its class in full precision.
        first: Measured with A, on all images.
        second: Measured with B, on all images.
        kinds: What flips are called.
    """
    found = []
    rows = zip(expected, first.predicted, second.predicted, first.image_kl, second.image_kl, strict=True)
    for index, (truth, a, b, a_kl, b_kl) in enumerate(rows):
        if a != b:
            kind = kinds.worse if a == truth else kinds.better if b == truth else kinds.other
            found.append(Flip(index, kind, truth, a, b, a_kl, b_kl))
    return sorted(found, key=lambda flip: abs(flip.second_kl - flip.first_kl), reverse=True)


def flip_words(found: Sequence[Flip], kinds: FlipKinds, images: int) -> str:
    """Say how many images flip, and in which way."""
    if not found:
        return f"None of the {images} evaluation images changes its predicted class from A to B."
    counts = {kind: sum(flip.kind == kind for flip in found) for kind in kinds.names()}
    named = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{len(found)} of {images} evaluation images change their predicted class from A to B: {named}."


def flip_caption(flip: Flip, name: str, class_names: Sequence[str], has_labels: bool) -> str:
    """Return what stands below the picture of a flip, in Markdown, with short names of the classes."""
    expected, first, second = (shortened(class_names[index]) for index in (flip.expected, flip.first, flip.second))
    return (
        f"{PurePosixPath(name).name}  \n{_expected(has_labels)} **{expected}**  \nA {first} → B {second}  \n"
        f"KL {flip.first_kl:.2g} → {flip.second_kl:.2g}"
    )


def flip_hover(flip: Flip, class_names: Sequence[str], has_labels: bool) -> str | None:
    """Return the whole names of a flip's classes in Markdown; None where the caption has them all."""
    named = {_expected(has_labels): flip.expected, "A": flip.first, "B": flip.second}
    if all(shortened(class_names[index]) == class_names[index] for index in named.values()):
        return None
    return "  \n".join(f"{what}: {class_names[index]}" for what, index in named.items())


def _expected(has_labels: bool) -> str:
    return "label" if has_labels else "full precision"


def kl_figure(
    names: Sequence[str], found: Sequence[Flip], first: "Evaluation", second: "Evaluation", kinds: FlipKinds
) -> go.Figure:
    """Draw the KL of every image with B against that with A; flips in colours and markers of their own.

    Args:
        names: Name of every image.
        found: The flips.
        first: Measured with A.
        second: Measured with B.
        kinds: What flips are called.
    """
    flipped = {flip.index: flip.kind for flip in found}
    figure = go.Figure()
    groups = [("same class", _SAME, "circle"), *zip(kinds.names(), _COLOURS, _SYMBOLS, strict=True)]
    for title, colour, symbol in groups:
        chosen = [index for index in range(len(names)) if flipped.get(index, "same class") == title]
        pairs = [(first.image_kl[index], second.image_kl[index]) for index in chosen]
        figure.add_scatter(
            x=[max(a, _LEAST_KL) for a, _ in pairs],
            y=[max(b, _LEAST_KL) for _, b in pairs],
            text=[
                f"<b>{names[index]}</b><br>A: {a:.3g} nats<br>B: {b:.3g} nats<br>{title}"
                for index, (a, b) in zip(chosen, pairs, strict=True)
            ],
            name=f"{title} ({len(chosen)})",
            mode="markers",
            marker={
                "color": colour,
                "symbol": symbol,
                "size": 5 if title == "same class" else 11,
                "opacity": 0.6 if title == "same class" else 1.0,
            },
            hovertemplate="%{text}<extra></extra>",
        )
    ends = [max(kl, _LEAST_KL) for kl in (*first.image_kl, *second.image_kl)] or [_LEAST_KL, 1.0]
    figure.add_scatter(
        x=[min(ends), max(ends)],
        y=[min(ends), max(ends)],
        mode="lines",
        line={"dash": "dot", "color": _SAME, "width": 1},
        name="equal",
        hoverinfo="skip",
        showlegend=False,
    )
    finish(figure, _HEIGHT, margin={"l": 10, "r": 10, "t": 60, "b": 10})
    figure.update_xaxes(type="log", title="KL with A (nats)", exponentformat="power", dtick=1)
    figure.update_yaxes(type="log", title="KL with B (nats)", exponentformat="power", dtick=1)
    return figure


def flip_frame(
    names: Sequence[str], class_names: Sequence[str], found: Sequence[Flip], has_labels: bool
) -> pd.DataFrame:
    """Return the flips as a table; KL in nats."""
    expected = _expected(has_labels)
    return pd.DataFrame(
        [
            {
                "image": names[flip.index],
                "flip": flip.kind,
                expected: class_names[flip.expected],
                "A": class_names[flip.first],
                "B": class_names[flip.second],
                "KL with A": flip.first_kl,
                "KL with B": flip.second_kl,
            }
            for flip in found
        ],
        columns=["image", "flip", expected, "A", "B", "KL with A", "KL with B"],
    )


def difference_frame(
    layers: Sequence[Layer], first: Mapping[str, Bits], second: Mapping[str, Bits], changed_only: bool = False
) -> pd.DataFrame:
    """Return both allocations side by side, a row per layer: bits, and how B differs from A."""
    shown = [layer for layer in layers if not changed_only or first[layer.name] != second[layer.name]]
    return pd.DataFrame(
        {
            "layer": [layer.name for layer in shown],
            "A": [bits_text(layer, first[layer.name]) for layer in shown],
            "B": [bits_text(layer, second[layer.name]) for layer in shown],
            "B has": [mark(first[layer.name], second[layer.name]) or "=" for layer in shown],
        }
    )
