"""From options of the command line to an open study, and its stages run to their end."""

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mixqvit.errors import AllocationError, BitWidthError, ModelError

if TYPE_CHECKING:
    from mixqvit.study import Progress, Study

__all__ = ["allocation_request", "finish", "has_ceiling", "study"]


def study(options: argparse.Namespace) -> "Study":
    """Open the study that the options name."""
    from mixqvit.study import Settings, Study
    from mixqvit.zoo import load_model

    if not options.model:
        raise ModelError("Say which model it is, e.g. --model digits_vit; `models` lists those that are embedded.")
    model = load_model(options.model, options.checkpoint)
    settings = Settings(
        importance=getattr(options, "method", Settings().importance),
        metric=getattr(options, "metric", Settings().metric),
        baseline=getattr(options, "baseline", Settings().baseline),
        outlier_factor=options.outliers,
    )
    return Study(model, options.images, settings)


def has_ceiling(options: argparse.Namespace) -> bool:
    """Return whether the options give a budget."""
    return any(value is not None for value in (options.average_bits, options.size_mb, options.bitops_g))


def allocation_request(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of `Study.allocate` that the options ask for."""
    if options.size_mb is not None and not 0 < options.size_mb < 1e12:
        raise AllocationError(f"The budget for model size must be a positive number, not {options.size_mb}.")
    return {
        "average_bits": options.average_bits,
        "size_bytes": None if options.size_mb is None else round(options.size_mb * 1e6),
        "bitops": None if options.bitops_g is None else options.bitops_g * 1e9,
        "cap_bitops": not options.no_bitops_cap,
        "gamma": options.gamma,
        "pinned": _bits_by_name(options.pin, "--pin", "head=8"),
        "strategy": options.strategy,
        "allowed": dict(_widths(text) for text in options.allow),
        "at_least": _bits_by_name(options.at_least, "--at-least", "head=4"),
        "at_most": _bits_by_name(options.at_most, "--at-most", "head=6"),
        "tied": not options.independent,
        "seed": options.seed,
    }


def _bits_by_name(texts: list[str], option: str, example: str) -> dict[str, int]:
    found = {}
    for text in texts:
        name, _, bits = text.rpartition("=")
        if not name or not bits.isdecimal():
            raise BitWidthError(f"{option} is written LAYER=BITS, e.g. {example}, not {text!r}.")
        found[name] = int(bits)
    return found


def _widths(text: str) -> tuple[str, tuple[int, ...]]:
    kind, _, widths = text.partition("=")
    parts = widths.split(",")
    if not kind or not all(part.isdecimal() for part in parts):
        raise BitWidthError(f"--allow is written KIND=BITS,BITS, e.g. fc1=4,8, not {text!r}.")
    return kind, tuple(int(part) for part in parts)


def finish(steps: "Iterator[Progress]") -> Any:
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
