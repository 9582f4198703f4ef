from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixqvit.allocation.budget import Budget, largest_uniform
from mixqvit.allocation.costs import cost
from mixqvit.allocation.exact import allocate, best_allocation, frontier_steps
from mixqvit.allocation.quantities import weight_bits_ceiling
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.allocation.table import choice_table
from mixqvit.criteria.choices import independent_choices, monotone_envelope, predicted_harm, tied_choices, weighted
from mixqvit.errors import AllocationError, InfeasibleBudgetError
from mixqvit.network.bits import BIT_WIDTHS, uniform
from tests.allocation.problems import REST, brute_force, fits, layer, sensitivities, table, transformer


def budgets(layers, average_bits, size, bitops, cap):
    """Return a budget from fractions of the cost of 6 bits."""
    largest = cost(layers, uniform(layers, 6), REST)
    return Budget(
        average_bits,
        None if size is None else int(size * largest.size_bytes),
        None if bitops is None else bitops * largest.bitops,
        cap,
    )


CEILINGS = {
    "average_bits": st.none() | st.floats(1.9, 4.6) | st.sampled_from([2.0, 3.0, 4.0]),
    "size": st.none() | st.floats(0.25, 0.9),
    "bitops": st.none() | st.floats(0.05, 0.5),
    "cap": st.booleans(),
}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.sampled_from([0.0, 1.0, 0.5]), **CEILINGS)
def test_the_optimum_is_that_of_brute_force_and_no_ceiling_is_exceeded(seed, gamma, average_bits, size, bitops, cap):
    if average_bits is None and size is None and bitops is None:
        average_bits = 3.0
    layers, harms = table(4, seed)
    harms = {name: {bits: harm for bits, harm in row.items() if bits <= 6} for name, row in harms.items()}
    budget = budgets(layers, average_bits, size, bitops, cap)
    random = np.random.default_rng(seed + 1)
    importance = {one.name: float(random.random()) for one in layers}
    expected = brute_force(layers, weighted(tied_choices(layers, harms), importance, gamma), budget)
    if expected is None:
        with pytest.raises(InfeasibleBudgetError):
            allocate(layers, harms, budget, REST, importance, gamma)
        return
    found = allocate(layers, harms, budget, REST, importance, gamma)
    assert found.gap == 0.0
    assert found.harm == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert found.harm == pytest.approx(predicted_harm(layers, found.bits, harms, importance, gamma))
    assert found.cost == cost(layers, found.bits, REST)
    assert fits(layers, found.bits, budget)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), **CEILINGS)
def test_the_optimum_of_independent_bits_is_that_of_brute_force(seed, average_bits, size, bitops, cap):
    if average_bits is None and size is None and bitops is None:
        average_bits = 3.0
    layers, weights = table(3, seed, ("patch_embed", "qkv", "matmul2"))
    _, inputs = table(3, seed + 1)
    budget = budgets(layers, average_bits, size, bitops, cap)
    harms = independent_choices(layers, weights, inputs)
    assert [len(harms[one.name]) for one in layers] == [7, 49, 7]
    expected = brute_force(layers, harms, budget)
    if expected is None:
        with pytest.raises(InfeasibleBudgetError):
            best_allocation(layers, harms, budget, REST)
        return
    found = best_allocation(layers, harms, budget, REST)
    assert found.harm == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert fits(layers, found.bits, budget)


def dynamic_programming(layers, harms, average_bits):
    """Least harm within an average, by exact recursion over the weight bits spent (all layers of one size)."""
    room = int(average_bits * len(layers))
    best = {0: 0.0}
    for one in layers:
        envelope = monotone_envelope(harms[one.name])
        following = {}
        for spent, harm in best.items():
            for bits, added in envelope.items():
                total = spent + bits
                if total <= room and harm + added < following.get(total, float("inf")):
                    following[total] = harm + added
        best = following
    return min(best.values())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("average_bits", [3.0, 4.5, 7.0])
def test_the_optimum_is_exact_when_harms_span_many_orders_of_magnitude(seed, average_bits):
    random = np.random.default_rng(seed)
    layers = [layer(index) for index in range(40)]
    harms = {one.name: {bits: float(10 ** random.uniform(-1, 1) * 8.0**-bits) for bits in BIT_WIDTHS} for one in layers}
    harms["layer7"][2] = 1.0
    found = allocate(layers, harms, Budget(average_bits=average_bits, cap_bitops=False), REST)
    assert found.harm == pytest.approx(dynamic_programming(layers, harms, average_bits), rel=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_harms_from_1e_minus_12_to_10_are_told_apart(seed):
    random = np.random.default_rng(seed)
    layers = [layer(index) for index in range(30)]
    falling = -np.sort(-(10.0 ** random.uniform(-12, 1, (len(layers), len(BIT_WIDTHS)))))
    harms = {one.name: dict(zip(BIT_WIDTHS, row, strict=True)) for one, row in zip(layers, falling, strict=True)}
    for average_bits in (3.0, 5.0, 7.5):
        found = allocate(layers, harms, Budget(average_bits=average_bits, cap_bitops=False), REST)
        assert found.harm == pytest.approx(dynamic_programming(layers, harms, average_bits), rel=1e-10)


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_an_average_of_whole_bits_is_never_worse_than_uniform_at_its_cost(bits):
    layers, harms = table(20, seed=bits)
    beside = cost(layers, uniform(layers, bits), REST)
    found = allocate(layers, harms, Budget(average_bits=float(bits)), REST)
    assert found.harm <= predicted_harm(layers, uniform(layers, bits), harms) * (1 + 1e-9)
    assert found.cost.size_bytes <= beside.size_bytes
    assert found.cost.bitops <= beside.bitops
    assert largest_uniform(layers, Budget(average_bits=float(bits)), REST, BIT_WIDTHS) == bits


def test_equal_ceilings_are_met_exactly():
    """A ceiling equal to a cost admits that cost: nothing is lost to tolerances."""
    layers, harms = table(12, seed=5)
    exact = cost(layers, uniform(layers, 3), REST)
    flat = {name: {3: row[3]} for name, row in harms.items()}
    found = allocate(layers, flat, Budget(3.0, exact.size_bytes, exact.bitops), REST)
    assert found.cost == exact
    for tighter in (Budget(size_bytes=exact.size_bytes - 1), Budget(bitops=exact.bitops - 1), Budget(2.999)):
        with pytest.raises(InfeasibleBudgetError):
            allocate(layers, flat, tighter, REST)


@pytest.mark.parametrize("seed", range(8))
def test_the_costs_of_an_optimum_are_a_budget_that_admits_it(seed):
    """Averages such as 3.1 bits are no exact numbers; what an allocation reports must still be within it."""
    layers, harms = table(9, seed)
    found = allocate(layers, harms, Budget(average_bits=3.1 + seed / 10), REST)
    again = Budget(found.cost.average_bits, found.cost.size_bytes, found.cost.bitops, cap_bitops=False)
    assert allocate(layers, harms, again, REST).harm == pytest.approx(found.harm, rel=1e-12)


@given(parameters=st.integers(1, 10**9), share=st.floats(2.0, 8.0))
def test_an_average_admits_exactly_the_weight_bits_whose_reported_average_is_within_it(parameters, share):
    layers = [layer(0, parameters=parameters)]
    weight_bits = int(share * parameters)
    assert weight_bits_ceiling(layers, weight_bits / parameters) == weight_bits
    assert weight_bits_ceiling(layers, share) / parameters <= share


def test_a_larger_budget_never_predicts_more_harm():
    layers, harms = table(15, seed=2)
    found = [allocate(layers, harms, Budget(average_bits=bits / 4), REST).harm for bits in range(8, 33)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(found))


def test_importance_moves_bits_to_the_layers_that_matter():
    layers = [layer(index) for index in range(6)]
    harms = {one.name: {bits: 4.0**-bits for bits in BIT_WIDTHS} for one in layers}
    importance = {one.name: 0.01 for one in layers} | {"layer3": 0.95}
    found = allocate(layers, harms, Budget(average_bits=4.0), REST, importance)
    assert found.bits["layer3"][0] == max(bits[0] for bits in found.bits.values())
    assert found.bits["layer3"][0] > min(bits[0] for bits in found.bits.values())


@pytest.mark.parametrize(
    "budget",
    [
        *(Budget(), Budget(average_bits=0.0), Budget(size_bytes=-1), Budget(bitops=float("nan"))),
        *(Budget(average_bits=float("inf")), Budget(bitops=float("inf"))),
    ],
)
def test_unusable_budgets_are_refused(budget):
    layers, harms = table(3)
    with pytest.raises(AllocationError):
        allocate(layers, harms, budget, REST)
    with pytest.raises(AllocationError):
        next(frontier_steps(layers, tied_choices(layers, harms), REST, [budget]))


@pytest.mark.parametrize("gamma", [-1.0, float("nan"), float("inf")])
def test_unusable_exponents_are_refused(gamma):
    layers, harms = table(3)
    with pytest.raises(AllocationError, match="exponent of importance"):
        allocate(layers, harms, Budget(average_bits=4.0), REST, gamma=gamma)


@pytest.mark.parametrize("value", [-0.1, float("nan"), None])
def test_unusable_importances_are_refused(value):
    layers, harms = table(3)
    importance = {one.name: 1.0 for one in layers} | {"layer1": value}
    with pytest.raises(AllocationError, match="importance of layer layer1"):
        allocate(layers, harms, Budget(average_bits=4.0), REST, importance)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_harms_that_are_no_numbers_are_refused_with_their_layer(value):
    layers, harms = table(3)
    harms["layer1"] = {2: value}
    with pytest.raises(AllocationError, match="layer1"):
        allocate(layers, harms, Budget(average_bits=4.0), REST)
    with pytest.raises(AllocationError, match="layer1"):
        best_allocation(layers, {"layer0": {(2, 2): 1.0}}, Budget(average_bits=4.0), REST)


def test_no_uniform_setting_may_fit():
    layers, _ = table(4)
    assert largest_uniform(layers, Budget(size_bytes=10), REST, BIT_WIDTHS) is None


def test_the_frontier_is_every_single_optimum():
    layers = transformer(4)
    harms = tied_choices(layers, sensitivities(layers, 3))
    restrictions = Restrictions(pinned={"head": 8}, at_least={"blocks.1.qkv": 4})
    wanted = [Budget(average_bits=bits / 10) for bits in range(18, 82, 4)]
    found = list(frontier_steps(layers, harms, REST, wanted, restrictions))
    assert found[0] is None
    assert found[-1] is not None
    for budget, one in zip(wanted, found, strict=True):
        try:
            expected = best_allocation(layers, harms, budget, REST, restrictions)
        except InfeasibleBudgetError:
            expected = None
        assert one == expected
    feasible = [one.harm for one in found if one is not None]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(feasible))


def test_a_solver_that_exceeds_a_ceiling_would_be_noticed():
    layers, harms = table(4)
    chosen = choice_table(layers, tied_choices(layers, harms), REST, Restrictions())
    with pytest.raises(AllocationError, match="exceeds"):
        chosen.allocation([6, 6, 6, 6], 0.0, Budget(average_bits=3.0), 0.0)
