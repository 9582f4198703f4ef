"""Print how long allocations take (RESULTS.md, "Speed: allocation"): `python -m tests.benchmarks.allocation`.

Medians and maxima over 15 budgets, from harms by layer to the checked allocation. Plain HiGHS is the same problem given
to `scipy.optimize.milp` at gap 0. Sensitivities are random: they fall by a factor of 2.5 to 6 per bit.
"""

import time

import numpy as np

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.exact import best_allocation, frontier_steps
from mixqvit.allocation.integer_program import solve_integer_program
from mixqvit.allocation.quadratic import best_pairwise_allocation
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.allocation.table import choice_table
from mixqvit.criteria.choices import independent_choices, tied_choices
from tests.allocation.problems import REST, sensitivities, table, transformer

AVERAGES = np.linspace(2.1, 7.7, 15).round(2)
FRONTIER = [Budget(average_bits=bits / 10) for bits in range(20, 81)]
SHAPES = {
    "38 layers, random sizes": table(38)[0],
    "38 layers, embedded model": transformer(6),
    "74 layers, random sizes": table(74)[0],
    "74 layers, ViT-B": transformer(12, 768, 197, 12, 768, 1000),
}


def seconds(work):
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def plain(layers, harms, budget):
    """Solve with HiGHS alone, and return the harm and whether it is proven."""
    chosen = choice_table(layers, harms, REST, Restrictions())
    amounts, rooms = chosen.limits(budget)
    found, proven = solve_integer_program(chosen.possible_harm, amounts, rooms, 60.0)
    return chosen.possible_harm[np.arange(len(layers)), found].sum(), proven


def single_budgets():
    for name, layers in SHAPES.items():
        harms = sensitivities(layers, 1)
        for ways, choices in (
            ("7", tied_choices(layers, harms)),
            ("49", independent_choices(layers, harms, sensitivities(layers, 2))),
        ):
            if ways == "49" and len(layers) == 38:
                continue
            old, new = [], []
            for average in AVERAGES:
                budget = Budget(average_bits=float(average))
                spent, (harm, proven) = seconds(lambda: plain(layers, choices, budget))  # noqa: B023
                old.append(spent)
                spent, found = seconds(lambda: best_allocation(layers, choices, budget, REST))  # noqa: B023
                new.append(spent)
                assert found.gap == 0.0
                assert not proven or abs(found.harm - harm) <= 1e-9 * harm
            milliseconds = (f"{value * 1e3:.0f}" for times in (old, new) for value in (np.median(times), max(times)))
            yield f"| {name} × {ways} choices | {' | '.join(milliseconds)} |"


def frontiers():
    for name, layers in SHAPES.items():
        choices = tied_choices(layers, sensitivities(layers, 1))
        spent, found = seconds(lambda: list(frontier_steps(layers, choices, REST, FRONTIER)))  # noqa: B023
        yield f"| {name} × 7 choices | {spent:.2f} | {max(one.gap for one in found)} |"


def pairwise():
    layers = SHAPES["38 layers, embedded model"]
    choices = tied_choices(layers, sensitivities(layers, 1))
    for name, strength, common in (("alike errors", 1.0, 0.8), ("unlike errors", 1.0, 0.0), ("noise only", 0.1, None)):
        random = np.random.default_rng(0)
        roots = random.normal(size=(len(layers), 40)) + (common or 0.0)
        alike = roots @ roots.T / np.outer(*[np.linalg.norm(roots, axis=1)] * 2)
        if common is None:
            alike = random.normal(size=alike.shape)
        pairs = {
            (one.name, other.name): {
                (bits, more): 2 * strength * alike[i, j] * (a * b) ** 0.5 * random.uniform(0.9, 1.1)
                for bits, a in choices[one.name].items()
                for more, b in choices[other.name].items()
            }
            for i, one in enumerate(layers)
            for j, other in enumerate(layers[i + 1 :], i + 1)
        }
        for average in (3.0, 4.0, 5.0):
            budget = Budget(average_bits=average)
            spent, found = seconds(lambda: best_pairwise_allocation(layers, choices, pairs, budget, REST))  # noqa: B023
            yield f"| {name}, {average} bits | {spent:.1f} | {100 * found.gap:.1f} % |"


def main() -> None:
    single, frontier, pair = list(single_budgets()), list(frontiers()), list(pairwise())
    print("| problem | HiGHS median, ms | maximum | ours median, ms | maximum |\n| --- | --- | --- | --- | --- |")
    print(*single, sep="\n")
    print("\n| frontier of 61 budgets | seconds | largest gap |\n| --- | --- | --- |")
    print(*frontier, sep="\n")
    print("\n| 38 × 7 choices with pairwise terms | seconds | gap |\n| --- | --- | --- |")
    print(*pair, sep="\n")


if __name__ == "__main__":
    main()
