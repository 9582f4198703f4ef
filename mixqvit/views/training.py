"""Figures of the Training page: loss and accuracy by epoch, beside full precision and post-training quantization."""

import pandas as pd
import plotly.graph_objects as go

from mixqvit.tasks.evaluation import TOP1, Accuracy, Evaluation
from mixqvit.training.settings import TrainingEpoch, TrainingRun, TrainingSettings
from mixqvit.views.numbers import computing_time, counted, interval_text, nats, percent
from mixqvit.views.style import finish

__all__ = ["COLOURS", "accuracy_curves", "curve_frame", "loss_curves", "run_words"]

COLOURS = {"full precision": "#7f8a92", "post-training": "#e69f00", "trained": "#0072b2", "training images": "#56b4e9"}
"""Of lines and markers on this page."""

_HEIGHT = 380  # pixels
_MOST_TICKS = 12  # epochs that each get a tick of their own
_SHADE = "rgba(204, 121, 167, 0.16)"


def loss_curves(run: TrainingRun | None, settings: TrainingSettings, post: Evaluation | None) -> go.Figure:
    """Draw the loss of every finished epoch on a logarithmic scale, on training and on calibration images.

    Args:
        run: The finished epochs; None before the first.
        settings: What is trained, for the length of the axis and the annealing.
        post: Post-training quantization at the same bits; its KL divergence is a line.
    """
    figure = _frame(settings)
    epochs = () if run is None else run.epochs
    if post is not None:
        words = f"KL divergence {nats(post.kl, 4)}, on {post.images} evaluation images"
        _add_level(figure, settings, "post-training", post.kl, words)
    hovers = [_hover(epoch) for epoch in epochs]
    _add_curve(figure, "training images", epochs, [epoch.loss for epoch in epochs], hovers)
    losses = [epoch.validation_loss for epoch in epochs]
    _add_curve(figure, "calibration images", epochs, losses, hovers)
    _add_kept(figure, run, losses)
    figure.update_yaxes(title="loss: KL divergence (nats)", type="log", exponentformat="power", dtick="D2")
    if not epochs and post is None:
        figure.update_yaxes(range=[-2, 1])
    return figure


def accuracy_curves(
    run: TrainingRun | None,
    settings: TrainingSettings,
    accuracy: Accuracy,
    full: Evaluation | None,
    post: Evaluation | None,
) -> go.Figure:
    """Draw accuracy on the evaluation images after every epoch, and agreement on the training images during it.

    Args:
        run: The finished epochs; None before the first.
        settings: What is trained, for the length of the axis and the annealing.
        accuracy: What stands for accuracy on the evaluation images.
        full: Full precision, a line.
        post: Post-training quantization at the same bits, a line.
    """
    figure = _frame(settings)
    for name, found in (("full precision", full), ("post-training", post)):
        if found is not None:
            _add_level(figure, settings, name, 100 * accuracy.value(found), _level_words(found, accuracy))
    epochs = () if run is None else run.epochs
    hovers = [_hover(epoch) for epoch in epochs]
    agreements = [100 * epoch.train_agreement for epoch in epochs]
    _add_curve(figure, "training images (agreement)", epochs, agreements, hovers)
    values = [100 * getattr(epoch, accuracy.field) for epoch in epochs]
    _add_curve(figure, "evaluation images", epochs, values, hovers)
    _add_kept(figure, run, values)
    figure.update_yaxes(title=f"{accuracy.in_sentence} (%)")
    if full is None and post is None and not epochs:
        figure.update_yaxes(range=[0, 100])
    return figure


def _frame(settings: TrainingSettings) -> go.Figure:
    figure = finish(go.Figure(), _HEIGHT, margin={"l": 10, "r": 10, "t": 84, "b": 10}, showlegend=True)
    last = settings.epochs
    if last <= _MOST_TICKS:
        figure.update_xaxes(dtick=1)
    figure.update_xaxes(title="epoch", range=[0.4, last + 0.6], tickformat="d")
    if settings.annealing_epochs:
        figure.add_vrect(
            last - settings.annealing_epochs + 0.5,
            last + 0.5,
            fillcolor=_SHADE,
            line_width=0,
            layer="below",
            annotation_text="annealing",
            annotation_position="bottom right",
        )
    return figure


def _add_level(figure: go.Figure, settings: TrainingSettings, name: str, level: float, hover: str) -> None:
    """A trace and not a shape, which would have neither hover nor an entry in the legend."""
    ends = (0.4, settings.epochs + 0.6)
    figure.add_scatter(
        x=ends,
        y=(level, level),
        name=name,
        mode="lines",
        line={"color": COLOURS[name], "width": 2, "dash": "dash" if name == "full precision" else "dot"},
        hovertemplate=f"<b>{name}</b><br>{hover}<extra></extra>",
    )


def _add_curve(
    figure: go.Figure, name: str, epochs: tuple[TrainingEpoch, ...], values: list[float], hovers: list[str]
) -> None:
    is_training = name.startswith("training images")
    colour = COLOURS["training images" if is_training else "trained"]
    figure.add_scatter(
        x=[epoch.epoch for epoch in epochs],
        y=values,
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 1.5 if is_training else 2.5},
        marker={"symbol": "diamond" if is_training else "circle", "size": 7 if is_training else 9},
        text=hovers,
        hovertemplate="%{text}<extra></extra>",
    )


def _add_kept(figure: go.Figure, run: TrainingRun | None, values: list[float]) -> None:
    if run is None or not run.best:
        return
    figure.add_scatter(
        x=[run.best],
        y=[values[run.best - 1]],
        name="kept",
        mode="markers",
        marker={"symbol": "star-open", "size": 19, "color": "#d55e00", "line": {"width": 2}},
        hoverinfo="skip",
    )


def _level_words(evaluation: Evaluation, accuracy: Accuracy) -> str:
    ends = interval_text(accuracy.interval(evaluation))
    return (
        f"{accuracy.word} {percent(accuracy.value(evaluation))}, 95 % interval {ends}<br>"
        f"KL divergence {nats(evaluation.kl, 4)}, on {evaluation.images} evaluation images"
    )


def _hover(epoch: TrainingEpoch) -> str:
    top1 = "" if epoch.top1 is None else f"{TOP1.word} {percent(epoch.top1)}, "
    frozen = "" if epoch.trained_weights == 1 else f"<br>{percent(epoch.trained_weights, 2)} of the weights moved"
    return (
        f"<b>epoch {epoch.epoch}</b>, {computing_time(epoch.seconds)}<br>"
        f"loss {epoch.loss:.4g} nats on training, {epoch.validation_loss:.4g} on calibration images<br>"
        f"{top1}agreement {percent(epoch.agreement)} on evaluation images<br>"
        f"agreement {percent(epoch.train_agreement)} on training images, changed at random<br>"
        f"learning rate {epoch.learning_rate:.2g}{frozen}"
    )


def curve_frame(run: TrainingRun | None) -> pd.DataFrame:
    """Return the finished epochs as a table: fractions from 0 to 1, losses in nats, times in seconds."""
    return pd.DataFrame(
        [
            {
                "epoch": epoch.epoch,
                "loss (nats)": epoch.loss,
                "validation loss (nats)": epoch.validation_loss,
                "agreement on training images": epoch.train_agreement,
                "top-1": epoch.top1,
                "agreement": epoch.agreement,
                "learning rate": epoch.learning_rate,
                "trained weights": epoch.trained_weights,
                "seconds": epoch.seconds,
                "kept": epoch.epoch == run.best,
            }
            for epoch in (() if run is None else run.epochs)
        ]
    )


def run_words(run: TrainingRun) -> str:
    """Say how far a training is, which weights are kept, why it ended, and how long it took."""
    kept = run.epochs[run.best - 1]
    seconds = sum(epoch.seconds for epoch in run.epochs)
    count, total = len(run.epochs), run.settings.epochs
    if run.stopped_early:
        stopped = counted(run.settings.patience, "epoch")
        state = f"Ended early after {count} of {total} epochs: no smaller validation loss for {stopped}."
    elif run.finished:
        state = f"Finished after {counted(total, 'epoch')}."
    else:
        state = f"{count} of {counted(total, 'epoch')} {'is' if count == 1 else 'are'} trained and saved."
    return (
        f"{state} ★ The weights of epoch {run.best} are kept: its loss on the calibration images, "
        f"{kept.validation_loss:.3g} nats, is the smallest. {computing_time(seconds)} of computing on "
        f"{run.images:,} training images, {computing_time(seconds / count)} an epoch."
    )
