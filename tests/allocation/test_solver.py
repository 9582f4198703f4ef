import numpy as np
import pytest

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.costs import cost
from mixqvit.allocation.duality import dual
from mixqvit.allocation.enumeration import Best, enumerate_choices
from mixqvit.allocation.integer_program import solve_integer_program
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.allocation.solver import least_harm
from mixqvit.allocation.table import choice_table
from mixqvit.criteria.choices import independent_choices, tied_choices
from mixqvit.network.bits import uniform
from tests.allocation.problems import REST, sensitivities, transformer

AVERAGES = (2.2, 3.05, 4.4, 5.3, 6.7)


def problem(seed, budget, independent=False, depth=6):
    layers = transformer(depth)
    harms = sensitivities(layers, seed)
    choices = (
        independent_choices(layers, harms, sensitivities(layers, seed + 100))
        if independent
        else tied_choices(layers, harms)
    )
    table = choice_table(layers, choices, REST, Restrictions())
    return table.possible_harm, *table.limits(budget)


def total(harm, chosen):
    return harm[np.arange(len(harm)), chosen].sum()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("average_bits", AVERAGES)
def test_the_optimum_is_that_of_the_plain_integer_program(seed, average_bits):
    harm, amounts, rooms = problem(seed, Budget(average_bits=average_bits))
    found = least_harm(harm, amounts, rooms)
    chosen, proven = solve_integer_program(harm, amounts, rooms)
    assert proven
    assert found.gap == 0.0
    assert total(harm, found.chosen) == pytest.approx(total(harm, chosen), rel=1e-9)
    assert (amounts[:, np.arange(len(harm)), found.chosen].sum(axis=1) <= rooms).all()


@pytest.mark.parametrize("average_bits", (2.6, 4.1))
def test_the_optimum_with_three_ceilings_and_49_choices_is_that_of_the_plain_integer_program(average_bits):
    layers = transformer(3)
    largest = cost(layers, uniform(layers, 8), REST)
    budget = Budget(average_bits, int(largest.size_bytes * average_bits / 8), largest.bitops * average_bits**2 / 80)
    harm, amounts, rooms = problem(1, budget, independent=True, depth=3)
    assert harm.shape[1] >= 49
    assert len(rooms) == 3
    chosen, proven = solve_integer_program(harm, amounts, rooms)
    assert proven
    assert total(harm, least_harm(harm, amounts, rooms).chosen) == pytest.approx(total(harm, chosen), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("average_bits", (2.7, 4.4))
def test_the_integer_program_finishes_what_is_too_much_to_enumerate(seed, average_bits):
    harm, amounts, rooms = problem(seed, Budget(average_bits=average_bits))
    enumerated = least_harm(harm, amounts, rooms)
    finished = least_harm(harm, amounts, rooms, most_work=0)
    assert finished.gap == 0.0
    assert total(harm, finished.chosen) == pytest.approx(total(harm, enumerated.chosen), rel=1e-9)


def test_enumeration_alone_finds_the_optimum_from_nothing():
    """Without bounds from elsewhere, without a first allocation, and without any choice dropped."""
    harm, amounts, rooms = problem(5, Budget(average_bits=3.3), depth=1)
    best = Best()
    assert enumerate_choices(harm, amounts, rooms, np.zeros((1, 2)), best, 0.0, 10**6)
    assert total(harm, best.chosen) == pytest.approx(total(harm, least_harm(harm, amounts, rooms).chosen), rel=1e-12)
    assert not enumerate_choices(harm, amounts, rooms, np.zeros((1, 2)), Best(), 0.0, 5)


@pytest.mark.parametrize("average_bits", AVERAGES)
def test_every_price_bounds_the_optimum_from_below_and_the_best_is_near(average_bits):
    harm, amounts, rooms = problem(2, Budget(average_bits=average_bits))
    found = dual(harm, amounts / rooms[:, None, None], np.ones(len(rooms)))
    optimum = total(harm, least_harm(harm, amounts, rooms).chosen)
    assert (found.bounds <= optimum * (1 + 1e-12)).all()
    assert found.bounds[0] >= 0.8 * optimum
    assert (found.prices >= 0).all()


def test_what_only_just_fits_is_found_and_what_does_not_is_refused():
    harm, amounts, _ = problem(0, Budget(average_bits=4.0))
    least = np.where(np.isfinite(harm), amounts, np.inf).min(axis=2).sum(axis=1)
    found = least_harm(harm, amounts, least)
    assert found.chosen.tolist() == [0] * len(harm)
    assert least_harm(harm, amounts, least - np.array([1.0, 0.0])) is None
    assert solve_integer_program(harm, amounts, least - np.array([1e6, 0.0])) == (None, True)


def test_ceilings_that_exclude_each_other_are_noticed():
    """Each ceiling can be met alone: the first choice takes much of one, the second of the other."""
    harm = np.array([[0.0, 1.0]] * 6)
    amounts = np.array([[[1.0, 9.0]] * 6, [[9.0, 1.0]] * 6])
    assert least_harm(harm, amounts, np.array([20.0, 20.0])) is None
    found = least_harm(harm, amounts, np.array([30.0, 30.0]))
    assert found.chosen.sum() == 3


def test_harms_proportional_to_amounts_are_solved_in_bounded_time():
    """Then every allocation that fills the room alike is as good as any other, and bounds tell nothing apart."""
    harm, amounts, rooms = problem(0, Budget(average_bits=4.5))
    finite = np.isfinite(harm)
    proportional = np.where(finite, amounts[0].max() * 9 - amounts[0], np.inf)
    found = least_harm(proportional, amounts, rooms)
    assert found.gap == 0.0
    filled = amounts[0][np.arange(len(harm)), found.chosen].sum()
    assert rooms[0] - filled <= 0.001 * rooms[0]
