"""The options of every command."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from mixqvit.allocation.quantities import QUANTITIES
from mixqvit.allocation.request import Request
from mixqvit.commands import allocations, exports, library, reports, stages, training
from mixqvit.commands.explanations import EXPLANATIONS
from mixqvit.commands.options import add_allocation_file, add_earlier_name
from mixqvit.commands.paths import expanded, path_of
from mixqvit.commands.printing import Document
from mixqvit.criteria.registry import CRITERIA
from mixqvit.engines.choice import ENGINES, EngineChoice
from mixqvit.images.labels import LABEL_ORDERS
from mixqvit.images.sources.factory import details, forms
from mixqvit.models.sources.checkpoint_file import CheckpointFile
from mixqvit.models.sources.factory import forms as model_forms
from mixqvit.network.bits import FULL_PRECISION
from mixqvit.training.settings import TRAINING_METHODS, TrainingSettings

__all__ = ["BAD_INPUT", "parser"]

BAD_INPUT = 2

_FIRST_STEPS = """\
from a model to a report:
  python -m mixqvit analyze --model digits_vit --name digits
  python -m mixqvit allocate --model digits --average-bits 4 --output allocation.json
  python -m mixqvit evaluate --allocation allocation.json
  python -m mixqvit pack --allocation allocation.json --output model.safetensors
  python -m mixqvit export --allocation allocation.json --format onnx --output model.onnx
  python -m mixqvit report --model digits --allocation allocation.json --output report.html

Everything long is saved piece by piece: stop with Ctrl-C, run the same command again, and it goes on.
Results go to standard output (--json: one document, nothing else), progress to standard error: a bar on a
terminal, plain lines otherwise. `COMMAND --help` shows options and examples.

exit codes: 0 done, 2 something in the input is wrong (one line says what), 130 stopped by Ctrl-C, 141 the reader of
the output went away.
"""

_MODEL = "--model digits_vit"

# What follows the command's name.
_EXAMPLES = {
    "models": ["", "--json | jq -r '.models[].name'"],
    "analyze": [_MODEL, '--model deit_tiny_patch16_224.fb_in1k --images photos --name "my study"'],
    "study": ["list", 'export "my study" study.safetensors', "import study.safetensors"],
    "layers": [_MODEL, f"{_MODEL} --json | jq '[.layers[].macs] | add'"],
    "relevance": [_MODEL, f"{_MODEL} --method attnlrp"],
    "sensitivity": [_MODEL, f"{_MODEL} --engine processes --workers 2", f"{_MODEL} --json | jq '.harm.head'"],
    "allocate": [
        f"{_MODEL} --average-bits 4 --output allocation.json",
        f"{_MODEL} --size-mb 0.4 --pin head=8 --evaluate",
    ],
    "strategies": [f"{_MODEL} --average-bits 3"],
    "frontier": [_MODEL, f"{_MODEL} --json | jq '.points[] | [.budget, .predicted_harm]'"],
    "pack": [
        "--allocation allocation.json --output model.safetensors",
        f"{_MODEL} --bits 4 --output model.safetensors",
    ],
    "export": [
        "--allocation allocation.json --format onnx --output model.onnx --check",
        f"{_MODEL} --average-bits 4 --format torchao --output torchao.json",
    ],
    "report": [
        f"{_MODEL} --output report.html",
        f"{_MODEL} --allocation allocation.json --output report.html --comparisons",
    ],
    "evaluate": ["--allocation allocation.json", f"{_MODEL} --bits 4", "--packed model.safetensors"],
    "recipes": [f"{_MODEL} --bits 4"],
    "train": [f"{_MODEL} --bits 2", f"{_MODEL} --average-bits 2.5 --method ofq --output trained.safetensors"],
    "train-embedded": [_MODEL],
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = _Parser(
        "mixqvit",
        description="How few bits can each layer of a vision transformer live on, and what does it cost?",
        epilog=_FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.prog = "python -m mixqvit"
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], tuple[Document, str]], description: str
    ) -> argparse.ArgumentParser:
        examples = "\n".join(f"  python -m mixqvit {name} {rest}".rstrip() for rest in _EXAMPLES[name])
        explained = [EXPLANATIONS[name]] if name in EXPLANATIONS else []
        added = commands.add_parser(
            name,
            help=description,
            description=f"{description[0].upper()}{description[1:]}.",
            epilog="\n\n".join([*explained, f"examples:\n{examples}"]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        added.set_defaults(run=run, opened=None, said=())
        return added

    def study_command(
        name: str,
        run: Callable[[argparse.Namespace], tuple[Document, str]],
        description: str,
    ) -> argparse.ArgumentParser:
        added = command(name, run, description)
        _add_study(added)
        return added

    command("models", stages.models, "list the embedded models, saved studies and tested models of timm")
    analysis = study_command(
        "analyze", library.analyze, "compute a whole study, so that the dashboard opens it at once"
    )
    analysis.add_argument("--name", help="name in the dashboard and for --model (default: model and images)")
    analysis.add_argument("--average-bits", type=float, default=4.0, help="budget of the measured allocation")
    _add_saved_studies(command)
    study_command("layers", stages.layers, "show the table of quantized layers")
    relevance = study_command("relevance", stages.relevance, "compute layer importance by relevance propagation")
    _add_method(relevance)
    sensitivity = study_command("sensitivity", stages.sensitivity, "measure the harm of quantizing each layer alone")
    sensitivity.add_argument("--operands", choices=["both", "weights", "activations"], default="both")
    _add_harm(sensitivity)
    allocation = study_command("allocate", allocations.allocate, "find the best bits per layer under a budget")
    _add_budget(allocation)
    _add_strategy(allocation)
    allocation.add_argument("--output", type=path_of, metavar="FILE", help="write it as an allocation file, JSON")
    allocation.add_argument("--evaluate", action="store_true", help="measure the allocation and uniform bits beside it")
    comparison = study_command("strategies", allocations.strategies, "measure all allocation strategies in one budget")
    _add_budget(comparison)
    frontier = study_command("frontier", allocations.frontier, "solve every budget from 2 to 8 average bits")
    _add_budget(frontier, without="average_bits")
    _add_strategy(frontier)
    packing = study_command(
        "pack", allocations.pack, "write a quantized model as one file: uniform bits, a budget or an allocation file"
    )
    packing.add_argument("--bits", type=int, help="the same bits for every layer: 2 to 8, or 32 for full precision")
    _add_budget(packing)
    _add_strategy(packing)
    add_allocation_file(packing)
    packing.add_argument("--output", type=path_of, required=True, metavar="FILE", help="the safetensors file to write")
    exporting = study_command("export", exports.export, exports.DESCRIPTION)
    _add_budget(exporting)
    _add_strategy(exporting)
    exports.add_export(exporting)
    evaluation = study_command(
        "evaluate", allocations.evaluate, "measure uniform bits, an allocation file or a packed file"
    )
    evaluation.add_argument("--bits", type=int, help="2 to 8, or 32 for full precision")
    evaluation.add_argument(
        "--recipe", metavar="NAME", help="with --bits, the quantization recipe (default: mix-qvit; `recipes` lists all)"
    )
    add_allocation_file(evaluation, earlier=False)
    evaluation.add_argument(
        "--packed", type=path_of, metavar="FILE", help="what `pack` wrote; it names its model itself"
    )
    reports.add_report(
        study_command("report", reports.report, "write a study as one HTML page, with its tables in a zip beside it")
    )
    recipes = study_command("recipes", stages.recipes, "measure every recipe at the same bits, beside full precision")
    recipes.add_argument("--bits", type=int, required=True, help="2 to 8, for every layer")
    _add_training(
        study_command(
            "train", training.train, "train a quantized model at an allocation's bits, when post-training breaks"
        )
    )
    embedded = command(
        "train-embedded", training.train_embedded, "train an embedded model again and write its checkpoint and card"
    )
    embedded.add_argument("--model", required=True, help="a name that `models` lists")
    embedded.add_argument("--folder", type=path_of, help="where to write (default: assets)")
    embedded.add_argument("--epochs", type=int, help="fewer or more epochs than the model's own")
    return root


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Add what says how to train."""
    defaults = TrainingSettings()
    methods = list(TRAINING_METHODS)
    parser.add_argument(
        "--method", choices=methods, default=defaults.method, help=f"how to train (default: {defaults.method})"
    )
    add_earlier_name(parser, "--recipe", "method", choices=methods)
    parser.add_argument("--bits", type=int, help="the same bits for all layers; patch embedding and head keep 8")
    parser.add_argument(
        "--average-bits",
        type=float,
        help="mixed bits within model size and BitOps of uniform bits of this average; patch embedding and head keep 8",
    )
    add_allocation_file(parser, earlier=False)
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help=f"default: {defaults.epochs}")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the order of images and their augmentation")
    parser.add_argument("--batch", type=int, default=defaults.batch, help=f"images in a step ({defaults.batch})")
    parser.add_argument(
        "--learning-rate", type=float, help="its peak (default: 0.1 / channels of the last layer's input)"
    )
    parser.add_argument("--patience", type=int, metavar="EPOCHS", help="end after so many without a lower loss")
    parser.add_argument(
        "--training-images",
        type=expanded,
        metavar="SOURCE",
        help="as --images (default: those of the study that are left)",
    )
    saved = parser.add_mutually_exclusive_group()
    saved.add_argument("--resume", action="store_true", help="go on from the last saved epoch of the same training")
    saved.add_argument("--restart", action="store_true", help="forget the saved epochs and begin again")
    parser.add_argument("--output", type=path_of, metavar="FILE", help="write the trained model as one packed file")
    parser.add_argument("--keep", metavar="NAME", help="keep the trained weights as a study of this name")


def _add_study(parser: argparse.ArgumentParser) -> None:
    """Add what says which model and images are meant."""
    parser.add_argument("--model", help=f"a saved study, or {model_forms()}; see --checkpoint")
    parser.add_argument(
        "--checkpoint",
        type=expanded,
        metavar="FILE",
        help=f"{CheckpointFile.file_words}. {CheckpointFile.architecture_words}",
    )
    parser.add_argument(
        "--images",
        type=expanded,
        metavar="SOURCE",
        help=f"{forms()}. {details()}",
    )
    parser.add_argument(
        "--evaluation-images", type=int, metavar="N", help="measure on so many images (default: all, at most 1,000)"
    )
    parser.add_argument("--sampling-seed", type=int, metavar="SEED", help="which images are drawn (default: 0)")
    orders = "; ".join(f"{name}: {words}" for name, words in LABEL_ORDERS.items())
    parser.add_argument(
        "--label-order",
        choices=list(LABEL_ORDERS),
        help=f"what labels mean that name no classes: {orders} (default: refused where that is not certain)",
    )
    parser.add_argument(
        "--within-classes", action="store_true", help="top-1 among the classes that occur in the images only"
    )
    parser.add_argument(
        "--preprocessing",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change mean, std, interpolation, crop_pct or crop_mode, e.g. mean=0.5,0.5,0.5; may be repeated",
    )
    parser.add_argument(
        "--outliers", type=float, default=1.0, metavar="FACTOR", help="amplify outlier channels (default: off)"
    )
    engines = parser.add_argument_group("where sweeps and evaluations run")
    engines.add_argument(
        "--engine",
        choices=list(ENGINES),
        default=EngineChoice.name,
        help=f"{'; '.join(f'{name}: {words}' for name, words in ENGINES.items())} (default: {EngineChoice.name})",
    )
    engines.add_argument("--workers", type=int, metavar="N", help="how many (default: one per core or GPU)")
    engines.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of the Ray cluster, or auto; without it --engine ray starts one on this machine",
    )


def _add_saved_studies(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that move saved studies between machines."""
    description = "export, import, list or remove studies that `analyze` or the dashboard saved"
    actions = command("study", library.saved, description).add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )

    def action(name: str, description: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=description, description=description)
        added.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        return added

    action("list", "list the saved studies")
    exporting = action("export", "write a study with model, images and results as one file")
    exporting.add_argument("name", help="a saved study, or an embedded model")
    exporting.add_argument("file", type=path_of, help="the file to write")
    importing = action("import", "add the study in a file that `study export` wrote, perhaps on another machine")
    importing.add_argument("file", type=path_of, help="the file to read; it is checked, and copied")
    importing.add_argument("--name", help="another name for it here")
    removing = action("remove", "take a study off the list")
    removing.add_argument("name", help="a saved study")


def _add_budget(parser: argparse.ArgumentParser, without: str | None = None) -> None:
    """Add what is asked of an allocation, the strategy aside, and the ceiling on a quantity that the command varies."""
    for one in QUANTITIES.values():
        if one.name == without:
            parser.set_defaults(**{one.shown_name: None})
        else:
            option = f"--{one.shown_name.replace('_', '-')}"
            parser.add_argument(option, type=float, help=f"ceiling on {one.description}")
    defaults = Request()
    drawn = ", ".join(f"`{name}`" for name, criterion in CRITERIA.items() if criterion.has_seed)
    parser.add_argument(
        "--no-bitops-cap", action="store_true", help="let average bits alone leave BitOps free (default: as uniform)"
    )
    parser.add_argument(
        "--gamma", type=float, default=defaults.gamma, help="exponent of importance; 0 is sensitivity alone"
    )
    for option, meaning in (
        ("--pin", "fix a layer's bits, 4/8 for weights and input apart"),
        ("--at-least", "give a layer at least so many bits"),
        ("--at-most", "give a layer at most so many bits"),
    ):
        parser.add_argument(
            option, action="append", default=[], metavar="LAYER=BITS", help=f"{meaning}; may be repeated"
        )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND=BITS,BITS",
        help="bit-widths that layers of a kind may have, e.g. fc1=4,8; may be repeated",
    )
    parser.add_argument(
        "--independent", action="store_true", help="choose the bits of weights and activations independently"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help=f"of the strategy {drawn}")
    parser.set_defaults(strategy=defaults.strategy)
    _add_method(parser)
    _add_harm(parser)


def _add_strategy(parser: argparse.ArgumentParser) -> None:
    default = Request().strategy
    parser.add_argument(
        "--strategy", choices=list(CRITERIA), default=default, help=f"what to minimise (default: {default})"
    )


def _add_harm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric",
        default="kl",
        help="how harm is measured: kl (default), cross-entropy, top1-drop, mse or sqnr",
    )
    parser.add_argument(
        "--baseline", type=int, default=FULL_PRECISION, metavar="BITS", help="bits of all other layers (default: 32)"
    )


def _add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method",
        dest="importance",
        default="chefer",
        help="kind of layer importance: chefer (default), attnlrp, 'gradient x relevance', 'gradient x activation', "
        "conductance or 'integrated gradients'",
    )
