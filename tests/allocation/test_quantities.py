"""A quantity is one entry of the registry: budgets, solver, words, files and command line follow."""

import argparse
import json

import pytest

from mixqvit.allocation.budget import Budget, ceilings, is_within
from mixqvit.allocation.costs import bits_of_uniform_bitops, cost, uniform_bitops
from mixqvit.allocation.exact import best_allocation
from mixqvit.allocation.quantities import QUANTITIES, Quantity, spent
from mixqvit.allocation.request import Request
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.commands.parser import parser
from mixqvit.commands.studies import allocation_request
from mixqvit.criteria.choices import tied_choices
from mixqvit.errors import AllocationError, InfeasibleBudgetError
from mixqvit.network.bits import uniform
from tests.allocation.problems import REST, brute_force, every_combination, table

LATENCY = Quantity(
    "latency",
    "latency_us",
    "latency",
    "time of one image in microseconds",
    lambda layer, bits, storage: 7 + layer.macs * max(bits),
    range=(0.1, 1e6),
    step=0.1,
    unit=1e3,
    symbol="µs",
)
"""Made up: in nanoseconds, by the wider operand."""


@pytest.fixture
def latency(monkeypatch):
    monkeypatch.setitem(QUANTITIES, LATENCY.name, LATENCY)


def test_what_an_allocation_takes_is_its_cost():
    layers, _ = table(5)
    bits = uniform(layers, 5)
    costs = cost(layers, bits, REST)
    assert spent(layers, bits, REST) == {name: getattr(costs, name) for name in QUANTITIES}


def test_average_bits_cap_bitops_and_the_tighter_ceiling_counts():
    layers, _ = table(5)
    capped = uniform_bitops(layers, 3.5)
    assert ceilings(layers, REST, Budget(3.5)) == {"average_bits": 3.5, "bitops": capped}
    assert ceilings(layers, REST, Budget(3.5, bitops=2 * capped)) == {"average_bits": 3.5, "bitops": capped}
    assert ceilings(layers, REST, Budget(3.5, bitops=capped / 2)) == {"average_bits": 3.5, "bitops": capped / 2}
    assert ceilings(layers, REST, Budget(3.5, cap_bitops=False)) == {"average_bits": 3.5}
    assert bits_of_uniform_bitops(layers, capped) == pytest.approx(3.5)


def test_a_new_quantity_is_solved_for_within_its_ceiling(latency):
    layers, harms = table(4)
    choices = tied_choices(layers, harms)
    most = spent(layers, uniform(layers, 4), REST)["latency"] + 1
    found = best_allocation(layers, choices, Budget(latency=most), REST)
    assert spent(layers, found.bits, REST)["latency"] <= most
    assert is_within(layers, found.bits, REST, found.budget)
    allowed = [
        harm
        for bits, harm in every_combination(layers, choices, Budget())
        if spent(layers, bits, REST)["latency"] <= most
    ]
    assert found.harm == pytest.approx(min(allowed))
    assert found.harm > brute_force(layers, choices, Budget())


def test_a_new_quantity_is_named_where_nothing_fits(latency):
    layers, harms = table(4)
    choices = tied_choices(layers, harms)
    least = spent(layers, uniform(layers, 2), REST)["latency"]
    with pytest.raises(InfeasibleBudgetError, match=r"budget of 0\.1 µs for latency: the smallest feasible value is"):
        best_allocation(layers, choices, Budget(latency=100), REST)
    assert best_allocation(layers, choices, Budget(latency=least), REST).bits["layer1"] == (2, 2)
    with pytest.raises(InfeasibleBudgetError, match="To blame is layer layer1"):
        best_allocation(layers, choices, Budget(latency=least), REST, Restrictions(at_least={"layer1": 6}))
    with pytest.raises(AllocationError, match="average bits, model size, BitOps or latency"):
        best_allocation(layers, choices, Budget(), REST)


def test_a_new_quantity_is_stated_in_files_and_on_the_command_line(latency):
    request = Request().changed(latency=2500)
    assert request.budget.latency == 2500
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request
    options: argparse.Namespace = parser().parse_args(["allocate", "--model", "digits_vit", "--latency-us", "2.5"])
    assert allocation_request(options) == request
