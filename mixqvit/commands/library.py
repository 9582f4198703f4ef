"""Commands around saved studies: compute one as a whole, list, export, import and remove them."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.request import Request
from mixqvit.commands.printing import Document, measured_columns, table
from mixqvit.commands.studies import description_of, finish, opened
from mixqvit.commands.studies import study as open_study
from mixqvit.criteria.registry import WITHOUT_IMPORTANCE
from mixqvit.errors import StudyFileError, UnsupportedOperationError
from mixqvit.files.documents import measurement
from mixqvit.stages.store import Store
from mixqvit.study.library import default_name, find_study, forget_study, free_name, keep_study, known_studies

__all__ = ["analyze", "saved"]


def analyze(options: argparse.Namespace) -> tuple[Document, str]:
    """Compute all that the dashboard shows of a study at first, and keep the study under a name."""
    description = description_of(options)
    study = open_study(options)
    store = study.store
    known = options.model if options.model in known_studies(store) else None
    name = options.name or known or free_name(store, default_name(description, study.model.name), description)
    if find_study(store, name) != description:
        name = keep_study(store, name, description)
    expected = study.estimate()
    print(f"{name}: {expected or 'not estimated on a GPU'}; stop and start again as you like.", file=sys.stderr)
    finish(study.evaluate_steps(32))
    request = Request(Budget(average_bits=options.average_bits))
    try:
        finish(study.relevance_steps())
    except UnsupportedOperationError as error:
        print(f"{error} Bits are chosen by sensitivity alone.", file=sys.stderr)
        request = replace(request, strategy=WITHOUT_IMPORTANCE)
    finish(study.sensitivity_steps())
    allocation = study.allocate(request)
    uniform = study.uniform_beside(request.budget, *request.yardstick)
    measured = {"full precision": study.evaluate(32), "mixed": finish(study.evaluate_steps(allocation))}
    if uniform is not None:
        measured["uniform"] = finish(study.evaluate_steps(uniform))
    document = {"study": name, "model": study.model.name, "average_bits": options.average_bits}
    document |= {"images": asdict(study.image_sets.sample)}
    document["measured"] = {title: measurement(found) for title, found in measured.items()}
    rows = [(title, *measured_columns(found)) for title, found in document["measured"].items()]
    text = table(("", "top-1", "agreement", "KL"), rows)
    return document, f"{text}\n{_how_to_open(name)}"


def saved(options: argparse.Namespace) -> tuple[Document, str]:
    """Run one of the actions on saved studies."""
    actions: dict[str, Callable[[argparse.Namespace], tuple[Document, str]]] = {
        "list": _list,
        "export": _export,
        "import": _import,
        "remove": _remove,
    }
    return actions[options.action](options)


def _list(options: argparse.Namespace) -> tuple[Document, str]:
    studies = {name: asdict(description) for name, description in known_studies(Store()).items()}
    rows = [(name, row["model"] or row["checkpoint"], row["images"] or "") for name, row in studies.items()]
    return {"studies": studies}, table(("study", "model", "images"), rows)


def _export(options: argparse.Namespace) -> tuple[Document, str]:
    from mixqvit.files.open_studies import open_study_steps
    from mixqvit.files.study_file import write_study_file_steps

    store = Store()
    description = find_study(store, options.name)
    if description is None:
        raise StudyFileError(
            f"There is no saved study {options.name!r}; `study list` shows those that there are, `analyze` makes one."
        )
    study = opened(finish(open_study_steps(description)), options)
    count = finish(write_study_file_steps(study, options.name, options.file))
    size = options.file.stat().st_size
    document = {"study": options.name, "file": str(options.file), "bytes": size, "results": count}
    return document, f"{options.file}: {options.name} with {count} results, {size / 1e6:.1f} MB"


def _import(options: argparse.Namespace) -> tuple[Document, str]:
    from mixqvit.files.study_import import import_study_file

    name, study, count = import_study_file(Store(), options.file, options.name)
    opened(study, options)
    document: dict[str, Any] = {"study": name, "model": study.model.name, "results": count}
    return document, f"{count} results of {study.model.name}, {_how_to_open(name)}"


def _remove(options: argparse.Namespace) -> tuple[Document, str]:
    forget_study(Store(), options.name)
    return {"removed": options.name}, f"{options.name} is off the list; what was computed stays in the cache."


def _how_to_open(name: str) -> str:
    return f'saved as "{name}": choose it in the dashboard, or use it as --model "{name}"'
