"""How results are printed: fractions, tables, measurements."""

import sys
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

__all__ = ["Document", "measured_columns", "notice", "percent", "table"]

Document = dict[str, Any]

_NOTHING = "–"


def notice(text: str) -> None:
    """Say in one line on standard error what a person should know; the command goes on."""
    print(text, file=sys.stderr)


def measured_columns(measured: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """Return top-1 with its interval, agreement and KL as texts; empty where nothing was measured."""
    if measured is None:
        return "", "", ""
    top1 = percent(measured["top1"])
    if measured["top1"] is not None and not isnan(measured["top1"]):
        low, high = measured["top1_interval_95"]
        top1 += f" ({100 * low:.1f} to {100 * high:.1f})"
    return top1, percent(measured["agreement"]), _NOTHING if isnan(measured["kl"]) else f"{measured['kl']:.4f}"


def percent(fraction: float | None) -> str:
    """Write a fraction; one that means nothing, NaN, as a dash."""
    if fraction is None:
        return "unlabelled"
    return _NOTHING if isnan(fraction) else f"{100 * fraction:.1f} %"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a plain table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
