"""What to say when nothing fits: the smallest feasible values, and the restriction that is to blame."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from math import ceil, sqrt

import numpy as np

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.restrictions import Restrictions, single_restrictions
from mixqvit.allocation.solver import least_harm
from mixqvit.allocation.table import ChoiceTable
from mixqvit.errors import AllocationError
from mixqvit.network.bits import PATCH_EMBED_INPUT_BITS

__all__ = ["smallest_value", "why_infeasible"]

CEILINGS = {"average_bits": "average bits", "size_bytes": "model size", "bitops": "BitOps"}
_UNITS = {"average_bits": (1.0, ""), "size_bytes": (1e6, " MB"), "bitops": (1e9, " G")}
_DIGITS = 1e6  # six digits are shown, rounded up where the value shall be feasible as it is shown
_NAMED = 5
_HALVINGS = 30


def why_infeasible(table: ChoiceTable, budget: Budget, restrictions: Restrictions) -> str:
    """Return why nothing fits a budget, for people.

    Args:
        table: The choices that the restrictions leave.
        budget: The ceilings, which nothing fits.
        restrictions: The restrictions.
    """
    given = [name for name in CEILINGS if getattr(budget, name) is not None]
    asked = " and ".join(f"{_shown(name, getattr(budget, name))} for {CEILINGS[name]}" for name in given)
    alone = {name: smallest_value(table, budget, name) for name in given}
    alone = {name: value for name, value in alone.items() if value is not None}
    if len(given) == 1:
        smallest = f"the smallest feasible value is {_shown(given[0], alone[given[0]], True)}"
    elif alone:
        smallest = " or ".join(
            f"the smallest feasible value for {CEILINGS[name]} is {_shown(name, value, True)}"
            for name, value in alone.items()
        )
        smallest += " with the rest as it is"
    else:
        smallest = "no single ceiling is to blame; the smallest feasible values together are " + " and ".join(
            f"{_shown(name, value, True)} for {CEILINGS[name]}"
            for name, value in _together(table, budget, given).items()
        )
    return f"No allocation fits a budget of {asked}: {smallest}.{_blame(table, budget, restrictions, alone)}"


def smallest_value(table: ChoiceTable, budget: Budget, ceiling: str) -> float | None:
    """Return the smallest feasible value of one ceiling while the others stay; None if no value of it helps.

    Args:
        table: The choices that the restrictions leave.
        budget: The ceilings.
        ceiling: `average_bits`, `size_bytes` or `bitops`; average bits with their cap on BitOps, if the budget has it.
    """
    others = replace(budget, **{ceiling: None})
    if ceiling == "size_bytes":
        codes = _least(table, table.size_bytes, others)
        return None if codes is None else codes + table.storage.full_precision_bytes + table.storage.container_bytes
    if ceiling == "bitops":
        found = _least(table, table.bitops, others)
        found = None if found is None else found + table.storage.full_precision_bitops
        cap = replace(budget, bitops=None)
        return found if found is None or table.best(replace(cap, bitops=max(found, 1.0))) else None
    weight_bits = _least(table, table.weight_bits, others)
    if weight_bits is None:
        return None
    average = weight_bits / sum(layer.parameters for layer in table.layers)
    if not budget.cap_bitops:
        return average
    average = max(average, _uniform_bits(table, _least(table, table.bitops, others)))
    return _raised_until_feasible(table, budget, average)


def _least(table: ChoiceTable, amounts: np.ndarray, budget: Budget) -> float | None:
    """Return the least sum of amounts within the other ceilings."""
    values = np.where(table.possible, amounts, np.inf)
    solution = least_harm(values, *table.limits(budget))
    return None if solution is None else float(values[np.arange(len(values)), solution.chosen].sum())


def _uniform_bits(table: ChoiceTable, bitops: float) -> float:
    """Return the uniform bits, which may be fractional, that take so many BitOps."""
    linear = sum(layer.macs * PATCH_EMBED_INPUT_BITS for layer in table.layers if layer.kind == "patch_embed")
    square = sum(layer.macs for layer in table.layers if layer.kind != "patch_embed")
    if square == 0:
        return bitops / linear if linear else 0.0
    return (sqrt(linear**2 + 4.0 * square * bitops) - linear) / (2.0 * square)


def _raised_until_feasible(table: ChoiceTable, budget: Budget, average: float) -> float | None:
    """Return the least average bits from `average` on with which the budget can be met, to the digits shown."""

    def fits(units: int) -> bool:
        return table.best(replace(budget, average_bits=units / _DIGITS)) is not None

    low = ceil(average * _DIGITS - 1e-6)
    if fits(low):
        return low / _DIGITS
    step = 1
    while not fits(low + step):
        step *= 2
        if low + step > 64 * _DIGITS:
            return None
    high = low + step
    low += step // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high / _DIGITS


def _together(table: ChoiceTable, budget: Budget, given: list[str]) -> dict[str, float]:
    """Return values that are feasible together, each the smallest after those before it were raised."""
    found = {}
    raised = Budget(cap_bitops=budget.cap_bitops)
    for name in given:
        value = getattr(budget, name)
        least = smallest_value(table, replace(raised, **{name: value}), name)
        value = max(value, _rounded_up(name, least)) if least is not None else value
        found[name] = value
        raised = replace(raised, **{name: value})
    return found


def _blame(table: ChoiceTable, budget: Budget, restrictions: Restrictions, alone: dict[str, float]) -> str:
    single = list(single_restrictions(restrictions))
    if not single:
        return ""
    without_any = table.restricted(Restrictions())
    if without_any.best(budget) is None:
        return " Even without any pinned layer or other restriction nothing fits."
    freed = dict(_freed(table, single))
    guilty = [words for words, others in freed.items() if others.best(budget) is not None]
    if guilty:
        return f" To blame is {_listed(guilty, ', and so is ')}: without it the budget can be met."
    for name, value in alone.items():
        saved = {words: value - (smallest_value(others, budget, name) or value) for words, others in freed.items()}
        most = sorted((words for words in saved if saved[words] > 0), key=lambda words: -saved[words])
        if most:
            dearest = [f"{words} ({_shown(name, saved[words])})" for words in most]
            return f" No single restriction is to blame; those that cost most {CEILINGS[name]} are {_listed(dearest)}."
    return " No single restriction is to blame, but all of them together."


def _freed(table: ChoiceTable, single: list[tuple[str, Restrictions]]) -> Iterator[tuple[str, ChoiceTable]]:
    """Yield the table without each restriction; one that hides a contradiction of the others cannot be lifted alone."""
    for words, others in single:
        with suppress(AllocationError):
            yield words, table.restricted(others)


def _listed(words: list[str], between: str = ", ") -> str:
    more = len(words) - _NAMED
    return between.join(words[:_NAMED]) + (f"{between}{more} more" if more > 0 else "")


def _rounded_up(name: str, value: float) -> float:
    per_unit = _UNITS[name][0]
    return ceil(value / per_unit * _DIGITS - 1e-6) / _DIGITS * per_unit


def _shown(name: str, value: float, round_up: bool = False) -> str:
    per_unit, unit = _UNITS[name]
    value = _rounded_up(name, value) if round_up else value
    return f"{value / per_unit:.6f}".rstrip("0").rstrip(".") + unit
