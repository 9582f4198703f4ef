"""What to say when nothing fits: the smallest feasible values, and the restriction that is to blame."""

from collections.abc import Iterator
from contextlib import suppress
from math import ceil

import numpy as np

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.quantities import QUANTITIES
from mixqvit.allocation.restrictions import Restrictions, single_restrictions
from mixqvit.allocation.solver import least_harm
from mixqvit.allocation.table import ChoiceTable
from mixqvit.errors import AllocationError

__all__ = ["smallest_value", "why_infeasible"]

_DIGITS = 6  # that are shown, rounded up where the value shall be feasible as it is shown
_STEPS = 10**_DIGITS
_NAMED = 5


def why_infeasible(table: ChoiceTable, budget: Budget, restrictions: Restrictions) -> str:
    """Return why nothing fits a budget, for people.

    Args:
        table: The choices that the restrictions leave.
        budget: The ceilings, which nothing fits.
        restrictions: The restrictions.
    """
    given = dict(budget.ceilings)
    asked = " and ".join(f"{_shown(name, ceiling)} for {QUANTITIES[name].title}" for name, ceiling in given.items())
    alone = {name: smallest_value(table, budget, name) for name in given}
    alone = {name: value for name, value in alone.items() if value is not None}
    if len(given) == 1:
        ((name, value),) = alone.items()
        smallest = f"the smallest feasible value is {_shown(name, value, True)}"
    elif alone:
        smallest = " or ".join(
            f"the smallest feasible value for {QUANTITIES[name].title} is {_shown(name, value, True)}"
            for name, value in alone.items()
        )
        smallest += " with the rest as it is"
    else:
        smallest = "no single ceiling is to blame; the smallest feasible values together are " + " and ".join(
            f"{_shown(name, value, True)} for {QUANTITIES[name].title}"
            for name, value in _together(table, budget).items()
        )
    return f"No allocation fits a budget of {asked}: {smallest}.{_blame(table, budget, restrictions, alone)}"


def smallest_value(table: ChoiceTable, budget: Budget, ceiling: str) -> float | None:
    """Return the smallest feasible value of one ceiling while the others stay; None if no value of it helps.

    Args:
        table: The choices that the restrictions leave.
        budget: The ceilings.
        ceiling: Name of the quantity; what else its number bounds, as average bits do BitOps, moves with it.
    """
    others = budget.changed(**{ceiling: None})
    found = []
    for one in budget.bounding(ceiling):
        least = _least(table, table.amounts[one.bounds], others)
        if least is None:
            return None
        found.append(one.value(table.layers, table.storage, least))
    return found[0] if len(found) == 1 else _raised_until_feasible(table, budget, ceiling, max(found))


def _least(table: ChoiceTable, amounts: np.ndarray, budget: Budget) -> float | None:
    """Return the least sum of amounts within a budget."""
    values = np.where(table.possible, amounts, np.inf)
    solution = least_harm(values, *table.limits(budget))
    return None if solution is None else float(values[np.arange(len(values)), solution.chosen].sum())


def _raised_until_feasible(table: ChoiceTable, budget: Budget, ceiling: str, least: float) -> float:
    """Return the least value of a ceiling from `least` on with which the budget can be met, to the digits shown.

    With a value large enough it can be, as something fits the other ceilings.
    """
    unit = QUANTITIES[ceiling].unit

    def value(steps: int) -> float:
        return steps / _STEPS * unit

    def fits(steps: int) -> bool:
        return table.best(budget.changed(**{ceiling: value(steps)})) is not None

    low = ceil(least / unit * _STEPS - 1e-6)
    if fits(low):
        return value(low)
    step = 1
    while not fits(low + step):
        step *= 2
    high = low + step
    low += step // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return value(high)


def _together(table: ChoiceTable, budget: Budget) -> dict[str, float]:
    """Return values that are feasible together, each the smallest after those before it were raised."""
    found: dict[str, float] = {}
    raised = Budget(cap_bitops=budget.cap_bitops)
    for name, value in budget.ceilings:
        least = smallest_value(table, raised.changed(**{name: value}), name)
        found[name] = max(value, _rounded_up(name, least)) if least is not None else value
        raised = raised.changed(**{name: found[name]})
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
            title = QUANTITIES[name].title
            return f" No single restriction is to blame; those that cost most {title} are {_listed(dearest)}."
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
    unit = QUANTITIES[name].unit
    return ceil(value / unit * _STEPS - 1e-6) / _STEPS * unit


def _shown(name: str, value: float, round_up: bool = False) -> str:
    number, _, symbol = (
        QUANTITIES[name].written(_rounded_up(name, value) if round_up else value, _DIGITS).partition(" ")
    )
    return " ".join(filter(None, (number.rstrip("0").rstrip("."), symbol)))
