"""The command that writes a study as a report."""

import argparse

from mixqvit.commands.options import add_allocation_file
from mixqvit.commands.paths import path_of
from mixqvit.commands.printing import Document, table
from mixqvit.commands.studies import finish, study_of_allocation
from mixqvit.commands.studies import study as open_study
from mixqvit.errors import ReportError

__all__ = ["add_report", "report"]


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report` beside those of a study."""
    parser.add_argument("--output", type=path_of, required=True, metavar="FILE", help="the page, e.g. report.html")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--average-bits", type=float, default=4.0, help="budget of the allocation (default: 4)")
    add_allocation_file(chosen)
    parser.add_argument(
        "--comparisons", action="store_true", help="compare strategies and kinds of importance too, which takes longer"
    )


def report(options: argparse.Namespace) -> tuple[Document, str]:
    """Write the report of a study: one page, and its tables in a zip beside it."""
    from mixqvit.report.steps import report_steps

    if not options.output.resolve().parent.is_dir():
        raise ReportError(f"The folder of {options.output} does not exist; make it first.")
    bits = None
    if options.allocation is not None:
        study, bits = study_of_allocation(options, options.allocation)
    else:
        study = open_study(options)
    found = finish(report_steps(study, bits, options.average_bits, options.comparisons, options.model))
    page, tables = found.write(options.output)
    sizes = {str(path): path.stat().st_size for path in (page, tables)}
    document: Document = {"model": study.model.name, "files": sizes}
    rows = [(name, f"{size:,}") for name, size in sizes.items()]
    return document, table(("file", "bytes"), rows)
