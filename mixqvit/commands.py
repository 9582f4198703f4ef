"""What the command line does: every command returns a document, printed as JSON or as plain tables."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from mixqvit.cards import list_models
from mixqvit.errors import AllocationError, BitWidthError, CalibrationError, MixQViTError, ModelError

if TYPE_CHECKING:
    from mixqvit.allocation import Allocation
    from mixqvit.evaluation import Evaluation
    from mixqvit.study import Progress, Study

__all__ = ["main"]

Document = dict[str, Any]
BAD_INPUT = 2
INTERRUPTED = 130

_SIZE_PARTS = {
    "weight_bytes": "weight codes",
    "scale_bytes": "scales and zero points",
    "full_precision_bytes": "full precision (float32)",
    "container_bytes": "header and table of bits",
}


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0, 2 for bad input, 130 when interrupted.

    Args:
        arguments: The command line without the program's name.
    """
    options = _parser().parse_args(arguments)
    with _clean_standard_output(options.json) as output:
        try:
            document, text = options.run(options)
        except MixQViTError as error:
            print(f"mixqvit {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
            return BAD_INPUT
        except KeyboardInterrupt:
            kept = "nothing was written" if options.command == "train-embedded" else "what was finished is saved"
            print(f"Stopped; {kept}.", file=sys.stderr)
            return INTERRUPTED
        print(json.dumps(document, indent=2) if options.json else text, file=output)
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("mixqvit", description="How few bits can each layer of a vision transformer live on?")
    parser.prog = "python -m mixqvit"
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], tuple[Document, str]], description: str):
        added = commands.add_parser(name, help=description, description=description)
        added.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        added.set_defaults(run=run)
        return added

    def study_command(
        name: str,
        run: Callable[[argparse.Namespace], tuple[Document, str]],
        description: str,
        model_required: bool = True,
    ):
        added = command(name, run, description)
        added.add_argument(
            "--model", required=model_required, help="a name that `models` lists, or any timm model name"
        )
        added.add_argument("--checkpoint", help="local weights (.safetensors, .pth) for a timm model name")
        added.add_argument("--images", help="digits, or a folder with one sub-folder per class")
        added.add_argument(
            "--outliers", type=float, default=1.0, metavar="FACTOR", help="amplify outlier channels (default: off)"
        )
        return added

    command("models", _models, "list the embedded models")
    study_command("layers", _layers, "show the table of quantized layers")
    relevance = study_command("relevance", _relevance, "compute layer importance by relevance propagation")
    _add_method(relevance)
    sensitivity = study_command("sensitivity", _sensitivity, "measure the harm of quantizing each layer alone")
    sensitivity.add_argument("--operands", choices=["both", "weights", "activations"], default="both")
    allocation = study_command("allocate", _allocate, "find the best bits per layer under a budget")
    _add_budget(allocation)
    _add_method(allocation)
    allocation.add_argument("--evaluate", action="store_true", help="measure the allocation and uniform bits beside it")
    packing = study_command("pack", _pack, "write a quantized model as one file, at uniform bits or under a budget")
    packing.add_argument("--bits", type=int, help="the same bits for every layer: 2 to 8, or 32 for full precision")
    _add_budget(packing)
    _add_method(packing)
    packing.add_argument("--output", type=Path, required=True, metavar="FILE", help="the safetensors file to write")
    evaluation = study_command(
        "evaluate", _evaluate, "measure accuracy at uniform bits or of a packed file", model_required=False
    )
    evaluation.add_argument("--bits", type=int, help="2 to 8, or 32 for full precision")
    evaluation.add_argument("--recipe", metavar="NAME", help="how to quantize (default: mix-qvit); `recipes` lists all")
    evaluation.add_argument("--packed", type=Path, metavar="FILE", help="what `pack` wrote; it names its model itself")
    recipes = study_command("recipes", _recipes, "measure every recipe at the same bits, beside full precision")
    recipes.add_argument("--bits", type=int, required=True, help="2 to 8, for every layer")
    training = command("train-embedded", _train, "train an embedded model again and write its checkpoint and card")
    training.add_argument("--model", required=True, help="a name that `models` lists")
    training.add_argument("--folder", type=Path, help="where to write (default: assets)")
    training.add_argument("--epochs", type=int, help="fewer or more epochs than the model's recipe")
    return parser


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--average-bits", type=float, help="ceiling on weight bits, averaged over weights")
    parser.add_argument("--size-mb", type=float, help="ceiling on the size of the packed file in MB (10^6 bytes)")
    parser.add_argument("--bitops-g", type=float, help="ceiling on BitOps for one image, in G (10^9)")
    parser.add_argument(
        "--no-bitops-cap", action="store_true", help="let average bits alone leave BitOps free (default: as uniform)"
    )
    parser.add_argument("--gamma", type=float, default=1.0, help="exponent of importance; 0 is sensitivity alone")
    parser.add_argument(
        "--pin", action="append", default=[], metavar="LAYER=BITS", help="fix a layer's bits; may be repeated"
    )


def _add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method",
        default="chefer",
        help="kind of layer importance: chefer (default), attnlrp, 'gradient x relevance', 'gradient x activation', "
        "conductance or 'integrated gradients'",
    )


@contextmanager
def _clean_standard_output(only_document: bool) -> Iterator[TextIO]:
    """Yield where to print; libraries that write to standard output themselves land on standard error meanwhile."""
    if not only_document:
        yield sys.stdout
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(saved, "w", closefd=False) as output:
            yield output
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _models(options: argparse.Namespace) -> tuple[Document, str]:
    models = [asdict(model) for model in list_models()]
    rows = [
        (model["name"], f"{model['parameters']:,}", _percent(model["top1"]), model["description"]) for model in models
    ]
    return {"models": models}, _table(("model", "parameters", "top-1", "what it is"), rows)


def _layers(options: argparse.Namespace) -> tuple[Document, str]:
    study = _study(options)
    layers = [asdict(layer) for layer in study.layers]
    rows = [
        (layer.name, layer.kind, "" if layer.block is None else layer.block, f"{layer.parameters:,}", f"{layer.macs:,}")
        for layer in study.layers
    ]
    document = {"model": study.model.name, "parameters": study.graph.parameters, "macs": study.graph.macs}
    text = _table(("layer", "kind", "block", "weights", "MACs"), rows)
    return document | {
        "layers": layers
    }, f"{text}\n{study.graph.macs / 1e6:.2f} M MACs, {study.graph.parameters:,} parameters"


def _relevance(options: argparse.Namespace) -> tuple[Document, str]:
    study = _study(options)
    importance = _finish(study.relevance_steps())
    rows = [(name, f"{value:.4f}") for name, value in importance.mean.items()]
    document = {"model": study.model.name, "method": options.method, "measure": study.measure()}
    document |= {"images": len(next(iter(importance.shares.values()))), "seconds_per_image": importance.seconds}
    return document | {"importance": importance.mean}, _table(("layer", "importance"), rows)


def _sensitivity(options: argparse.Namespace) -> tuple[Document, str]:
    study = _study(options)
    harms = _finish(study.sensitivity_steps(options.operands))
    widths = list(next(iter(harms.values())))
    rows = [(name, *(f"{row[bits]:.2e}" for bits in widths)) for name, row in harms.items()]
    document = {"model": study.model.name, "metric": "KL divergence, nats per image", "operands": options.operands}
    harm = {name: {str(bits): value for bits, value in row.items()} for name, row in harms.items()}
    return document | {"harm": harm}, _table(("layer", *(f"{bits} bits" for bits in widths)), rows)


def _allocate(options: argparse.Namespace) -> tuple[Document, str]:
    study = _study(options)
    pinned = _pinned(options)
    allocation = _allocation(study, options)
    beside = study.uniform_beside(allocation.budget, options.gamma)
    document: Document = {"model": study.model.name, "settings": asdict(study.settings)}
    document |= {"budget": asdict(allocation.budget), "gamma": options.gamma, "pinned": pinned}
    document |= {"allocation": _describe(study, allocation, options.evaluate)}
    document["uniform"] = None if beside is None else _describe(study, beside, options.evaluate)
    bits = [(name, *pair) for name, pair in allocation.bits.items()]
    summary = [_summary("mixed", document["allocation"])]
    if beside is not None:
        summary.append(_summary(f"uniform {min(pair[0] for pair in beside.bits.values())}", document["uniform"]))
    columns = ("", "predicted harm", "size MB", "BitOps G", "average bits", "top-1", "agreement", "KL")
    return document, f"{_table(('layer', 'weight bits', 'activation bits'), bits)}\n\n{_table(columns, summary)}"


def _allocation(study: "Study", options: argparse.Namespace) -> "Allocation":
    """Return the best allocation within the budget on the command line."""
    pinned = _pinned(options)
    if options.size_mb is not None and not math.isfinite(options.size_mb):
        raise AllocationError(f"The budget for model size must be a positive number, not {options.size_mb}.")
    _finish(study.relevance_steps())
    _finish(study.sensitivity_steps())
    return study.allocate(
        options.average_bits,
        None if options.size_mb is None else round(options.size_mb * 1e6),
        None if options.bitops_g is None else options.bitops_g * 1e9,
        not options.no_bitops_cap,
        options.gamma,
        pinned,
    )


def _pack(options: argparse.Namespace) -> tuple[Document, str]:
    budget = (options.average_bits, options.size_mb, options.bitops_g)
    has_budget = any(value is not None for value in budget) or bool(options.pin)
    if (options.bits is None) != has_budget:
        raise AllocationError("Give --bits for uniform bits, or a budget such as --average-bits; one of the two.")
    study = _study(options)
    bits = study.resolved(options.bits if options.bits is not None else _allocation(study, options))
    _finish(study.calibration_steps())
    found = study.pack(bits, options.output)
    size = {name: getattr(found, name) for name in (*_SIZE_PARTS, "size_bytes")}
    document = {"model": study.model.name, "settings": asdict(study.settings), "file": str(options.output)}
    document |= {"bits": {name: list(pair) for name, pair in bits.items()}, "size": size}
    rows = [
        (_SIZE_PARTS.get(name, options.output), f"{count:,}", _percent(count / found.size_bytes))
        for name, count in size.items()
    ]
    return document, _table(("part", "bytes", "share"), rows)


def _evaluate(options: argparse.Namespace) -> tuple[Document, str]:
    if (options.bits is None) == (options.packed is None):
        raise BitWidthError("Give --bits, or --packed with a file that `pack` wrote; one of the two.")
    if options.packed is None:
        study = _study(options)
        recipe = options.recipe or study.settings.recipe
        steps, what = study.evaluate_steps(options.bits, recipe), {"bits": options.bits, "recipe": recipe}
    else:
        if options.recipe is not None:
            raise CalibrationError("--recipe goes with --bits; a packed file is quantized already.")
        from mixqvit.packing import packed_source

        options.model = options.model or packed_source(options.packed).model
        study = _study(options)
        steps, what = study.evaluate_packed_steps(options.packed), {"packed": str(options.packed)}
    measured = _measurement(_finish(steps))
    rows = [(*what.values(), *_measured_columns(measured), measured["images"])]
    document = {"model": study.model.name, **what, "measured": measured}
    return document, _table((*what, "top-1", "agreement", "KL", "images"), rows)


def _recipes(options: argparse.Namespace) -> tuple[Document, str]:
    study = _study(options)
    measured = {name: _measurement(found) for name, found in _finish(study.recipe_steps(options.bits)).items()}
    rows = [(name, *_measured_columns(found), found["images"]) for name, found in measured.items()]
    document = {"model": study.model.name, "bits": options.bits, "descriptions": study.recipes, "recipes": measured}
    return document, _table((f"W{options.bits}A{options.bits}", "top-1", "agreement", "KL", "images"), rows)


def _train(options: argparse.Namespace) -> tuple[Document, str]:
    from mixqvit.training import train_embedded

    epochs = []
    for epoch in train_embedded(options.model, options.folder, options.epochs):
        epochs.append(asdict(epoch))
        print(", ".join(f"{key} {value}" for key, value in epochs[-1].items()), file=sys.stderr)
    return {"model": options.model, "epochs": epochs}, f"{options.model} is trained; its card states the accuracy."


def _study(options: argparse.Namespace) -> "Study":
    from mixqvit.study import Settings, Study
    from mixqvit.zoo import load_model

    if not options.model:
        raise ModelError("Say which model it is, e.g. --model digits_vit; `models` lists those that are embedded.")
    model = load_model(options.model, options.checkpoint)
    importance = getattr(options, "method", Settings().importance)
    return Study(model, options.images, Settings(importance=importance, outlier_factor=options.outliers))


def _pinned(options: argparse.Namespace) -> dict[str, int]:
    return dict(_pin(text) for text in options.pin)


def _pin(text: str) -> tuple[str, int]:
    name, _, bits = text.rpartition("=")
    if not name or not bits.isdecimal():
        raise BitWidthError(f"A pin is written LAYER=BITS, e.g. head=8, not {text!r}.")
    return name, int(bits)


def _finish(steps: "Iterator[Progress]") -> Any:
    """Run a stage to its end with a progress bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    result = None
    with tqdm(disable=None, file=sys.stderr, bar_format="{l_bar}{bar}| {elapsed} < {remaining} {postfix}") as bar:
        for step in steps:
            bar.total = step.total
            bar.set_postfix_str(step.doing, refresh=False)
            bar.update(step.done - bar.n)
            result = step.result
    return result


def _describe(study: "Study", allocation: "Allocation", measure: bool) -> Document:
    costs = allocation.cost
    document: Document = {
        "bits": {name: list(pair) for name, pair in allocation.bits.items()},
        "predicted_harm": allocation.harm,
        "cost": asdict(costs) | {"size_bytes": costs.size_bytes},
    }
    if measure:
        document["measured"] = _measurement(_finish(study.evaluate_steps(allocation)))
    return document


def _measurement(evaluation: "Evaluation") -> Document:
    return {
        "images": evaluation.images,
        "top1": evaluation.top1,
        "top1_interval_95": evaluation.interval,
        "agreement": evaluation.agreement,
        "agreement_interval_95": evaluation.agreement_interval,
        "kl": evaluation.kl,
    }


def _measured_columns(measured: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if measured is None:
        return "", "", ""
    top1 = _percent(measured["top1"])
    if measured["top1"] is not None:
        low, high = measured["top1_interval_95"]
        top1 += f" ({100 * low:.1f} to {100 * high:.1f})"
    return top1, _percent(measured["agreement"]), f"{measured['kl']:.4f}"


def _summary(name: str, described: Mapping[str, Any]) -> tuple[str, ...]:
    costs = described["cost"]
    return (
        name,
        f"{described['predicted_harm']:.3e}",
        f"{costs['size_bytes'] / 1e6:.3f}",
        f"{costs['bitops'] / 1e9:.4f}",
        f"{costs['average_bits']:.3f}",
        *_measured_columns(described.get("measured")),
    )


def _percent(fraction: float | None) -> str:
    return "unlabelled" if fraction is None else f"{100 * fraction:.1f} %"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
