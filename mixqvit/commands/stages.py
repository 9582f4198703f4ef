"""Commands that show one stage: models, layers, relevance, sensitivity, recipes, training."""

import argparse
from dataclasses import asdict

from mixqvit.commands.printing import Document, measured_columns, percent, table
from mixqvit.commands.studies import finish
from mixqvit.commands.studies import study as open_study
from mixqvit.files.documents import measurement
from mixqvit.models.cards import list_models
from mixqvit.models.catalogue import CATALOGUE
from mixqvit.stages.store import Store
from mixqvit.study.library import known_studies

__all__ = ["layers", "models", "recipes", "relevance", "sensitivity"]


def models(options: argparse.Namespace) -> tuple[Document, str]:
    """List the embedded models, the saved studies, and the models of timm that were tested."""
    embedded, saved = list_models(), known_studies(Store())
    document = {
        "models": [asdict(model) for model in embedded],
        "studies": {name: asdict(description) for name, description in saved.items()},
        "timm": [asdict(entry) for entry in CATALOGUE],
    }
    columns = ("name", "parameters", "top-1", "what it is")
    rows = [(model.name, f"{model.parameters:,}", percent(model.top1), model.description) for model in embedded]
    for name, description in saved.items():
        rows.append((name, "", "", f"saved study of {description.model or description.checkpoint}"))
    for entry in CATALOGUE:
        published = "" if entry.published_top1 is None else f"{100 * entry.published_top1:.2f} %"
        words = entry.family if entry.classes else f"{entry.family}, without a classifier"
        rows.append((entry.name, f"{entry.parameters:,}", published, f"{words}, {entry.input_size[1]} pixels, timm"))
    return document, table(columns, rows)


def layers(options: argparse.Namespace) -> tuple[Document, str]:
    """Show the table of quantized layers."""
    study = open_study(options)
    layers = [asdict(layer) for layer in study.layers]
    rows = [
        (layer.name, layer.kind, "" if layer.block is None else layer.block, f"{layer.parameters:,}", f"{layer.macs:,}")
        for layer in study.layers
    ]
    document = {"model": study.model.name, "parameters": study.graph.parameters, "macs": study.graph.macs}
    text = table(("layer", "kind", "block", "weights", "MACs"), rows)
    return document | {
        "layers": layers
    }, f"{text}\n{study.graph.macs / 1e6:.2f} M MACs, {study.graph.parameters:,} parameters"


def relevance(options: argparse.Namespace) -> tuple[Document, str]:
    """Compute layer importance."""
    study = open_study(options)
    importance = finish(study.relevance_steps())
    rows = [(name, f"{value:.4f}") for name, value in importance.mean.items()]
    document = {"model": study.model.name, "method": options.importance, "measure": study.measure()}
    document |= {"images": len(next(iter(importance.shares.values()))), "seconds_per_image": importance.seconds}
    return document | {"importance": importance.mean}, table(("layer", "importance"), rows)


def sensitivity(options: argparse.Namespace) -> tuple[Document, str]:
    """Measure the harm of quantizing each layer alone."""
    study = open_study(options)
    harms = finish(study.sensitivity_steps(options.operands))
    intervals = study.sensitivity_intervals(options.operands)
    widths = list(next(iter(harms.values())))
    rows = [(name, *(f"{row[bits]:.2e}" for bits in widths)) for name, row in harms.items()]
    document = {"model": study.model.name, "metric": options.metric, "description": study.metrics[options.metric]}
    document |= {"operands": options.operands, "baseline": options.baseline}
    harm, spread = (
        {name: {str(bits): value for bits, value in row.items()} for name, row in found.items()}
        for found in (harms, intervals)
    )
    return document | {"harm": harm, "interval_95": spread or None}, table(
        ("layer", *(f"{bits} bits" for bits in widths)), rows
    )


def recipes(options: argparse.Namespace) -> tuple[Document, str]:
    """Measure every quantization recipe at the same bits."""
    study = open_study(options)
    measured = {name: measurement(found) for name, found in finish(study.quantizers.recipe_steps(options.bits)).items()}
    rows = [(name, *measured_columns(found), found["images"]) for name, found in measured.items()]
    document = {"model": study.model.name, "bits": options.bits, "descriptions": study.quantizers.recipes()}
    document |= {"recipes": measured}
    return document, table((f"W{options.bits}A{options.bits}", "top-1", "agreement", "KL", "images"), rows)
