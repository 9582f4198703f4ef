"""What a report shows: sections of words, figures and tables, made of what a study has computed."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly
import plotly.graph_objects as go

from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, is_tied
from mixqvit.report.findings import Findings
from mixqvit.views import (
    accuracy,
    allocation_strip,
    budget,
    flips,
    frontier,
    importance_methods,
    outlier_errors,
    outliers,
    overview,
    quantizers,
    relevance,
    sensitivity,
    strategies,
    studies,
)
from mixqvit.views import training as training_figures
from mixqvit.views.allocation_words import LayerFacts

if TYPE_CHECKING:
    from mixqvit.study.study import Study
    from mixqvit.tasks.evaluation import Evaluation

__all__ = ["Figure", "Section", "sections"]

FLIP_ROWS = 200
"""Rows of a table that are shown; the file beside the report has all."""


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture.

    Attributes:
        title: What it shows.
        picture: Of plotly.
        words: How to read it.
    """

    title: str
    picture: go.Figure
    words: str = ""


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a report.

    Attributes:
        title: Its heading.
        words: Paragraphs.
        figures: Its pictures.
        tables: Its tables by title.
    """

    title: str
    words: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def sections(study: "Study", found: Findings) -> list[Section]:
    """Return all sections of a report; what was not computed is said where it belongs."""
    parts = [
        _overview(study),
        _measured(study, found),
        _allocation(study, found),
        _importance(study, found),
        _sensitivity(study, found),
        _frontier(study, found),
        _flips(study, found),
        _outliers(study),
        _recipes(study),
        _strategies(found),
        _methods(study, found),
        _trainings(study),
        _settings(study, found),
    ]
    return [part for part in parts if part is not None]


def _overview(study: "Study") -> Section:
    facts = studies.facts(study.model, study.image_sets, study.machine)
    # Without the device, whose free memory is another one every time.
    rows = pd.DataFrame([fact[:3] for fact in facts if fact[0] != "Device"], columns=["what", "value", "more"])
    sample = study.image_sets.sample
    return Section(
        "The study",
        (
            f"{study.model.name}, {study.graph.parameters:,} parameters, {study.graph.macs:,} multiply-accumulates.",
            f"Measured on {sample.how}.",
            *(f"**Warning:** {note.text}" if note.is_warning else note.text for note in study.notes),
        ),
        tables={
            "Facts": rows,
            "Preprocessing": studies.preprocessing_frame(study.model.preprocessing),
            "Quantized layers": overview.layer_table(study.layers),
        },
    )


def _measured(study: "Study", found: Findings) -> Section:
    kind = study.task.accuracy(study.evaluation_images.labels is not None)
    frame = pd.DataFrame(
        [
            {
                "setting": name,
                **accuracy.accuracy_columns(evaluation),
                "KL (nats)": evaluation.kl,
                "images": evaluation.images,
                "average bits": found.costs[name].average_bits,
                "size (bytes)": found.costs[name].size_bytes,
                "BitOps": found.costs[name].bitops,
            }
            for name, evaluation in found.measured.items()
        ]
    )
    return Section(
        "What it costs and what it measures",
        (
            f"{kind.title} on {len(study.evaluation_images)} evaluation images that no choice has seen, with 95 % "
            "intervals. Quantization is simulated: the bits are real, the arithmetic is floating-point.",
        ),
        tables={"Settings side by side": frame},
    )


def _allocation(study: "Study", found: Findings) -> Section:
    importance = None if found.importance is None else found.importance.mean
    facts = LayerFacts(found.bits, None, importance, study.sensitivity(), study.task.metric(study.metric))
    tied = all(is_tied(layer, found.bits[layer.name]) for layer in study.layers)
    return Section(
        "Bits of every layer",
        (found.how,),
        (
            Figure(
                "The allocation over the network",
                allocation_strip.allocation_strip(study.layers, facts, tied),
                "One cell per layer, first to last; hover for what it costs.",
            ),
            Figure("The allocation by block and kind", budget.bits_grid(study.layers, facts)),
        ),
        {"Bits": budget.allocation_frame(study.layers, facts)},
    )


def _importance(study: "Study", found: Findings) -> Section:
    title = "Which layers matter: importance Ω"
    if found.importance is None:
        return Section(title, (f"There is none: {found.refused} Bits were chosen by sensitivity alone.",))
    importance = found.importance
    pictures = [
        Figure("Importance by block and kind", relevance.importance_grid(study.layers, importance)),
        Figure(
            "Importance with its spread over the images",
            relevance.importance_bars(study.layers, importance, largest_first=False),
        ),
    ]
    tables = {"Importance": relevance.importance_frame(study.layers, importance)}
    if importance.flow:
        words = relevance.flow_words(importance.flow)
        pictures.append(Figure("Branches and skip connections", relevance.flow_figure(importance.flow), words))
        tables["Flow"] = relevance.flow_frame(importance.flow)
    words = overview.matters_most(study.layers, importance.mean)
    return Section(title, (words, study.importance_methods[study.settings.importance]), tuple(pictures), tables)


def _sensitivity(study: "Study", found: Findings) -> Section:
    harms, intervals, metric = study.sensitivity(), study.sensitivity_intervals(), study.task.metric(study.metric)
    curves = sensitivity.harm_curves(study.layers, harms, metric, logarithmic=True)
    pictures = [Figure("Harm against bits", curves, "One curve per layer, as measured; hover for its name.")]
    for bits in BIT_WIDTHS[:3]:
        grid = sensitivity.harm_grid(study.layers, harms, metric, bits, True, intervals)
        words = sensitivity.first_to_break(study.layers, harms, metric, bits, 5)
        pictures.append(Figure(f"Harm at {bits} bits", grid, words))
    if found.importance is not None:
        scatter = importance_methods.scatter_figure(study.layers, found.importance.mean, harms, 4, None)
        pictures.append(Figure("Importance against sensitivity at 4 bits", scatter))
    return Section(
        "Which layers break first: sensitivity Λ",
        (
            "Each layer quantized alone, all others in full precision or at the baseline of the settings. "
            f"{metric.description}",
        ),
        tuple(pictures),
        {"Sensitivity": sensitivity.long_frame(study.layers, harms, metric, intervals)},
    )


def _frontier(study: "Study", found: Findings) -> Section | None:
    if not found.frontier:
        return None

    def point(name: str, bits: Any, evaluation: "Evaluation | None", at: float | None = None) -> frontier.Point:
        shown = study.allocation(study.resolved(bits), found.request.yardstick[0])
        return frontier.Point(name, shown.cost, shown.harm, evaluation, at)

    curve = [
        point("mixed", one.allocation, None, one.average_bits) for one in found.frontier if one.allocation is not None
    ]
    uniforms = [point("uniform", bits, study.saved_evaluation(bits)) for bits in BIT_WIDTHS]
    current = point("mixed", found.bits, found.measured["mixed"])
    full = found.measured["full precision"]
    has_labels = study.evaluation_images.labels is not None
    pictures = [
        Figure(
            f"Frontier, with {measure} below",
            frontier.frontier_figure(curve, [*uniforms, current], current, full, measure),
        )
        for measure in frontier.measures(has_labels)
    ]
    words = frontier.frontier_words(uniforms, current)
    frame = frontier.frontier_frame(curve, [*uniforms, current])
    return Section("Every budget", tuple(filter(None, (words,))), tuple(pictures), {"Frontier": frame})


def _flips(study: "Study", found: Findings) -> Section | None:
    other = next((name for name in found.measured if name.startswith("uniform")), None)
    if other is None:
        return None
    images = study.evaluation_images
    has_labels = images.labels is not None
    kinds = flips.flip_kinds(has_labels)
    first, second = found.measured["mixed"], found.measured[other]
    expected = images.labels.tolist() if has_labels else study.evaluations.reference()
    changed = flips.flips(expected, first, second, kinds)
    return Section(
        f"Which images change: mixed against {other}",
        (flips.flip_words(changed, kinds, len(images)),),
        (Figure("KL of every image", flips.kl_figure(images.names, changed, first, second, kinds)),),
        {"Images that change": flips.flip_frame(images.names, images.class_names, changed, has_labels)},
    )


def _outliers(study: "Study") -> Section:
    statistics, layers = study.channels.statistics(), study.channels.layers
    title = "Outlier channels after LayerNorm"
    if not layers:
        return Section(title, ("No quantized layer of this model reads a LayerNorm.",))
    frame = outliers.overview_frame(layers, statistics)
    pictures = [
        Figure(f"{measure[0].upper()}{measure[1:]}", outliers.overview_grid(layers, statistics, measure))
        for measure in outliers.MEASURES
    ]
    widest = frame.sort_values(outliers.MEASURES[0], ascending=False).iloc[0]["layer"]
    ranges = study.channels.ranges(widest, 4)
    order = outliers.ORDERS[1]
    channel = int(outliers.channel_order(ranges.statistics, order)[0])
    pictures += [
        Figure(
            f"Channels of {widest} with the grid they get at 4 bits",
            outliers.range_figure(ranges, "clipped", order, channel),
            outliers.outlier_words(ranges),
        ),
        Figure(
            f"Error of every channel of {widest}",
            outlier_errors.error_figure(ranges, outlier_errors.ERRORS[0], order, channel),
        ),
    ]
    tables = {"Outliers by layer": frame, f"Channels of {widest}": outliers.channel_frame(ranges)}
    return Section(title, (outliers.recurring_words(statistics),), tuple(pictures), tables)


def _recipes(study: "Study") -> Section:
    saved = {bits: study.quantizers.saved_recipes(bits) for bits in BIT_WIDTHS}
    saved = {bits: rows for bits, rows in saved.items() if len(rows) > 2}
    title = "Quantization recipes"
    if not saved:
        return Section(title, (f"Not compared yet: `python -m mixqvit recipes --model {study.model.name} --bits 4`.",))
    default = study.settings.recipe
    pictures = tuple(
        Figure(
            f"All recipes at {bits} bits",
            quantizers.recipe_figure(rows, list(study.quantizers.recipes()), bits, default),
            quantizers.recipe_words(rows, bits, default),
        )
        for bits, rows in saved.items()
    )
    words = study.quantizers.recipes()
    tables = {f"Recipes at {bits} bits": quantizers.recipe_frame(rows, words) for bits, rows in saved.items()}
    return Section(title, (), pictures, tables)


def _strategies(found: Findings) -> Section:
    title = "Allocation strategies"
    if found.strategies is None:
        return Section(title, ("Not compared here: `report --comparisons` measures them, which takes longer.",))
    comparison = found.strategies
    has_labels = next(iter(comparison.results.values())).evaluation.correct is not None
    pictures = tuple(
        Figure(measure, strategies.strategy_figure(comparison, measure, found.request.strategy))
        for measure in strategies.measures(has_labels)
    )
    words = (_within(found), strategies.strategy_words(comparison, found.request.strategy))
    refused = tuple(f"{name}: {reason}" for name, reason in comparison.refused.items())
    return Section(title, words + refused, pictures, {"Strategies": strategies.strategy_frame(comparison)})


def _methods(study: "Study", found: Findings) -> Section:
    title = "Kinds of importance"
    if found.methods is None:
        return Section(title, ("Not compared here: `report --comparisons` measures them, which takes longer.",))
    comparison = found.methods
    pictures = (
        Figure("What every allocation measures", importance_methods.outcome_figure(comparison)),
        Figure("Rank correlations at 4 bits", importance_methods.agreement_figure(comparison, 4)),
    )
    tables = {
        "Kinds of importance": importance_methods.methods_frame(comparison, 4),
        "Their allocations": importance_methods.outcome_frame(comparison),
    }
    words = (_within(found), importance_methods.comparison_words(comparison, 4, len(study.layers)))
    return Section(title, words, pictures, tables)


def _within(found: Findings) -> str:
    return f"Within {found.request.budget.average_bits:g} average bits and the BitOps of uniform bits."


def _trainings(study: "Study") -> Section:
    title = "Quantization-aware training"
    saved = study.training.all()
    if not saved:
        words = f"None is saved: `python -m mixqvit train --model {study.model.name} --average-bits 2.5` makes one."
        return Section(title, (words,))
    pictures, tables = [], {}
    for number, one in enumerate(saved, 1):
        name = f"{number}: {one.settings.method}, {one.average_bits:.2f} bits, seed {one.settings.seed}"
        curves = training_figures.loss_curves(one.run, one.settings, study.saved_evaluation(one.bits))
        pictures.append(Figure(f"Training {name}", curves, training_figures.run_words(one.run)))
        tables[f"Training {name}"] = training_figures.curve_frame(one.run)
    return Section(title, (), tuple(pictures), tables)


def _settings(study: "Study", found: Findings) -> Section:
    settings = asdict(study.settings)
    rows = pd.DataFrame([(name, str(value)) for name, value in settings.items()], columns=["setting", "value"])
    request = pd.DataFrame([(name, str(value)) for name, value in found.asked.items()], columns=["of", "value"])
    versions = {**study.made_with, "python": platform.python_version(), "plotly": plotly.__version__}
    versions |= {
        "pandas": pd.__version__,
        "system": platform.platform(),
        "device": study.device.type,
        "cores": str(os.cpu_count()),
    }
    made = pd.DataFrame(list(versions.items()), columns=["of", "version"])
    prints = {
        "model": study.graph.fingerprint,
        "calibration images": study.calibration_images.fingerprint,
        "evaluation images": study.evaluation_images.fingerprint,
    }
    marks = pd.DataFrame(list(prints.items()), columns=["of", "SHA-256"])
    return Section(
        "Settings, seeds and versions",
        (f"{FULL_PRECISION} bits mean full precision.",),
        tables={"Settings": rows, "Allocation request": request, "Versions": made, "Fingerprints": marks},
    )
