"""Full precision, post-training quantization and trained models side by side: table, figure and a sentence."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from mixqvit.allocation.costs import Cost
from mixqvit.network.layers import Layer
from mixqvit.tasks.evaluation import AGREEMENT, Accuracy, Evaluation
from mixqvit.training.settings import TRAINING_METHODS, TrainingRun
from mixqvit.views.accuracy import accuracy_columns
from mixqvit.views.numbers import billions, interval_text, megabytes, nats, percent
from mixqvit.views.style import finish
from mixqvit.views.training import COLOURS

__all__ = ["Setting", "bits_words", "is_uniform", "setting_figure", "setting_frame", "setting_words"]

_TRAINED = dict(zip(TRAINING_METHODS, (COLOURS["trained"], "#009e73"), strict=True))
_SYMBOLS = {"uniform": "square", "mixed": "circle"}
_LINES = COLOURS["full precision"]
_HEIGHT = 420  # pixels


@dataclass(frozen=True)
class Setting:
    """One row: a model, what it costs and what was measured of it.

    Attributes:
        bits: What identifies its bits: rows with the same ones are connected.
        allocation: `uniform` or `mixed`; empty for full precision.
        average_bits: Weight bits over the layers between the first and the last one.
        cost: Its cost; None where the method cannot serve the model.
        evaluation: On all evaluation images; None where it is not measured.
        run: Of a trained model; None for the others.
        source: Where its training images are from; None for the study's own.
        is_shown: Whether it is what the controls say.
    """

    bits: str
    allocation: str
    average_bits: float
    cost: Cost | None
    evaluation: Evaluation | None
    run: TrainingRun | None = None
    source: str | None = None
    is_shown: bool = False

    @property
    def stage(self) -> str:
        """`full precision`, `post-training`, or `trained`."""
        return "full precision" if not self.allocation else "post-training" if self.run is None else "trained"

    @property
    def title(self) -> str:
        """Its name, such as `mixed 2.50 bits, lsq`."""
        if not self.allocation:
            return "full precision"
        bits = f"{self.average_bits:.0f}" if self.allocation == "uniform" else f"{self.average_bits:.2f}"
        return f"{self.allocation} {bits} bits, {'post-training' if self.run is None else self.run.settings.method}"


def is_uniform(layers: Sequence[Layer], bits: Mapping[str, tuple[int, int]]) -> bool:
    """Return whether all layers between the first and the last one have the same bits."""
    return len({bits[layer.name] for layer in layers if layer.kind not in ("patch_embed", "head")}) <= 1


def bits_words(layers: Sequence[Layer], bits: Mapping[str, tuple[int, int]]) -> str:
    """Say how many layers between the first and the last one have which bits."""
    counts = Counter(bits[layer.name][0] for layer in layers if layer.kind not in ("patch_embed", "head"))
    return "Layers by bits: " + ", ".join(f"{counts[width]} at {width}" for width in sorted(counts)) + "."


def setting_frame(settings: Sequence[Setting]) -> pd.DataFrame:
    """Return the table: accuracies in percent, sizes in megabytes, BitOps in billions; empty where not measured."""
    rows = []
    for found in settings:
        measured = {} if found.evaluation is None else accuracy_columns(found.evaluation)
        run, cost = found.run, found.cost
        rows.append(
            {
                "model": found.title,
                **measured,
                "KL (nats)": found.evaluation and found.evaluation.kl,
                "size (MB)": cost and cost.size_bytes / 1e6,
                "BitOps (G)": cost and cost.bitops / 1e9,
                "average bits": found.average_bits,
                "epochs": run and _epochs(run),
                "seed": run and run.settings.seed,
                "batch": run and run.settings.batch,
                "learning rate": run and (run.settings.learning_rate or "automatic"),
                "training images": run and (found.source or "own"),
                "minutes": run and sum(epoch.seconds for epoch in run.epochs) / 60,
                "shown": found.is_shown,
            }
        )
    return pd.DataFrame(rows)


def _epochs(run: TrainingRun) -> str:
    count = len(run.epochs)
    return f"{count}" if run.finished else f"{count} of {run.settings.epochs}"


def setting_figure(settings: Sequence[Setting], accuracy: Accuracy) -> go.Figure:
    """Draw accuracy with its 95 % interval against model size; full precision, far to the right, is a line.

    Args:
        settings: The rows of the table.
        accuracy: What stands for accuracy.
    """
    drawn = [found for found in settings if found.evaluation is not None and found.cost is not None]
    figure = go.Figure()
    _add_gains(figure, drawn, accuracy)
    for title, colour, symbol in dict.fromkeys(_look(found) for found in drawn if found.allocation):
        chosen = [found for found in drawn if found.allocation and _look(found) == (title, colour, symbol)]
        values = [100 * accuracy.value(found.evaluation) for found in chosen]
        ends = [accuracy.interval(found.evaluation) for found in chosen]
        figure.add_scatter(
            x=[found.cost.size_bytes / 1e6 for found in chosen],
            y=values,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [100 * high - value for value, (_, high) in zip(values, ends, strict=True)],
                "arrayminus": [value - 100 * low for value, (low, _) in zip(values, ends, strict=True)],
                "color": colour,
                "thickness": 1.2,
            },
            name=title,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}},
            text=[_hover(found, accuracy) for found in chosen],
            hovertemplate="%{text}<extra></extra>",
        )
    shown = [found for found in drawn if found.is_shown and found.run is not None]
    if shown:
        figure.add_scatter(
            x=[found.cost.size_bytes / 1e6 for found in shown],
            y=[100 * accuracy.value(found.evaluation) for found in shown],
            name="shown above",
            mode="markers",
            marker={"symbol": "circle-open", "size": 21, "color": "#d55e00", "line": {"width": 2.5}},
            hoverinfo="skip",
        )
    _add_full_precision(figure, drawn, accuracy)
    finish(figure, _HEIGHT, margin={"l": 10, "r": 10, "t": 80, "b": 10}, showlegend=True)
    figure.update_xaxes(title="model size (MB)", range=_size_range(drawn))
    figure.update_yaxes(title=f"{accuracy.in_sentence} (%)")
    return figure


def _size_range(drawn: Sequence[Setting]) -> list[float] | None:
    """Return the ends of the axis, at least a tenth of the size apart, so that small differences look small."""
    sizes = [found.cost.size_bytes / 1e6 for found in drawn if found.allocation]
    if not sizes:
        return None
    room = max(0.1 * (max(sizes) - min(sizes)), 0.05 * max(sizes))
    return [min(sizes) - room, max(sizes) + room]


def _look(found: Setting) -> tuple[str, str, str]:
    """Return title in the legend, colour and symbol: open for post-training, filled for trained."""
    symbol = _SYMBOLS[found.allocation]
    if found.run is None:
        return f"post-training, {found.allocation}", COLOURS["post-training"], f"{symbol}-open"
    method = found.run.settings.method
    return f"{method}, {found.allocation}", _TRAINED[method], symbol


def _add_gains(figure: go.Figure, drawn: Sequence[Setting], accuracy: Accuracy) -> None:
    """Connect post-training with what was trained at the same bits."""
    x: list[float | None] = []
    y: list[float | None] = []
    posts = {found.bits: found for found in drawn if found.stage == "post-training"}
    for found in drawn:
        if found.stage == "trained" and found.bits in posts:
            for end in (posts[found.bits], found):
                x.append(end.cost.size_bytes / 1e6)
                y.append(100 * accuracy.value(end.evaluation))
            x.append(None)
            y.append(None)
    if x:
        figure.add_scatter(
            x=x,
            y=y,
            name="gained by training",
            mode="lines",
            line={"color": _LINES, "width": 1, "dash": "dot"},
            hoverinfo="skip",
        )


def _add_full_precision(figure: go.Figure, drawn: Sequence[Setting], accuracy: Accuracy) -> None:
    for found in drawn:
        if found.stage == "full precision" and found.evaluation.has_choice:
            low, high = accuracy.interval(found.evaluation)
            level = 100 * accuracy.value(found.evaluation)
            figure.add_hrect(100 * low, 100 * high, fillcolor=_LINES, opacity=0.15, line_width=0)
            figure.add_hline(
                level,
                line={"dash": "dash", "width": 1.5, "color": _LINES},
                annotation_text=f"full precision {level:.1f} %, {megabytes(found.cost.size_bytes)}",
                annotation_position="bottom right",
            )


def _hover(found: Setting, accuracy: Accuracy) -> str:
    measured = found.evaluation
    ends = interval_text(accuracy.interval(measured))
    agreement = "" if accuracy is AGREEMENT else f"{AGREEMENT.word} {percent(measured.agreement)}, "
    trained = ""
    if found.run is not None:
        trained = f"<br>{len(found.run.epochs)} epochs, seed {found.run.settings.seed}"
    return (
        f"<b>{found.title}</b><br>{accuracy.word} {percent(accuracy.value(measured))}, 95 % interval "
        f"{ends}<br>{agreement}KL divergence {nats(measured.kl)}<br>"
        f"{megabytes(found.cost.size_bytes)}, {billions(found.cost.bitops)} BitOps, {found.average_bits:.2f} average "
        f"bits{trained}"
    )


def setting_words(settings: Sequence[Setting], accuracy: Accuracy) -> str:
    """Say what training at the bits shown gains over post-training, and whether the intervals tell them apart."""
    shown = [found for found in settings if found.is_shown and found.evaluation is not None]
    trained = next((found for found in shown if found.stage == "trained"), None)
    post = next((found for found in shown if found.stage == "post-training"), None)
    if trained is None or post is None or not post.evaluation.has_choice:
        return ""
    values = [accuracy.value(found.evaluation) for found in (post, trained)]
    (low, high), (post_low, post_high) = (accuracy.interval(found.evaluation) for found in (trained, post))
    words = (
        f"**{trained.title}**: {accuracy.word} {percent(values[1])}, post-training quantization at the same bits "
        f"{percent(values[0])}."
    )
    if low > post_high:
        return words + " Training gains more than chance explains: the 95 % intervals do not meet."
    if high < post_low:
        return words + " Training loses here: the 95 % intervals do not meet."
    return words + " The 95 % intervals overlap: these images do not tell the two apart."
