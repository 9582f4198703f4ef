"""What the command line does: every command returns a document, printed as JSON or as plain tables."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from mixqvit.commands.parser import BAD_INPUT, parser
from mixqvit.commands.studies import say_notes
from mixqvit.errors import MixQViTError
from mixqvit.files.documents import finite

__all__ = ["main"]

INTERRUPTED = 130
NOBODY_READS = 141


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0, 2 for bad input, 130 when interrupted, 141 where nobody reads on.

    Args:
        arguments: The command line without the program's name.
    """
    options = parser().parse_args(arguments)
    with _clean_standard_output(options.json) as output:
        try:
            document, text = options.run(options)
            if options.opened is not None:
                say_notes(options)
                notes = [note.text for note in options.opened.notes]
                document["notes"] = [*notes, *document.get("notes", ())]
        except MixQViTError as error:
            print(f"mixqvit {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
            return BAD_INPUT
        except KeyboardInterrupt:
            kept = "nothing was written" if options.command == "train-embedded" else "what was finished is saved"
            print(f"Stopped; {kept}.", file=sys.stderr)
            return INTERRUPTED
        if os.environ.get("RANK", "0") == "0":  # of processes that were launched together, one speaks
            try:
                print(json.dumps(finite(document), indent=2) if options.json else text, file=output, flush=True)
            except BrokenPipeError:  # `| head` has seen enough
                return _nobody_reads(output)
    return 0


def _nobody_reads(output: TextIO) -> int:
    # Python flushes standard output once more at its end, which must not fail.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output.fileno())
    return NOBODY_READS


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
