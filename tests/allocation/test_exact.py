from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixqvit.allocation import (
    Budget,
    allocate,
    choices,
    largest_uniform,
    monotone_envelope,
    predicted_harm,
)
from mixqvit.bits import BIT_WIDTHS, uniform
from mixqvit.costs import Storage, cost, uniform_bitops
from mixqvit.errors import AllocationError, BitWidthError, InfeasibleBudgetError
from mixqvit.layers import Layer

REST = Storage("mix-qvit", 400, 600)


def layer(index, kind="fc1", parameters=64, macs=1000):
    matmul = kind.startswith("matmul")
    return Layer(
        f"layer{index}",
        kind,
        0,
        0 if matmul else parameters,
        0 if matmul else 8,
        macs,
        (1, 8),
        (1, 8),
        f"n{index}",
        None,
    )


def table(count, seed=0, kinds=("patch_embed", "qkv", "matmul1", "fc1")):
    random = np.random.default_rng(seed)
    layers = [
        layer(index, kinds[index % len(kinds)], int(random.integers(1, 40)) * 8, int(random.integers(100, 5000)))
        for index in range(count)
    ]
    harms = {one.name: {bits: float(random.random() * 4.0**-bits) for bits in BIT_WIDTHS} for one in layers}
    return layers, harms


def brute_force(layers, harms, budget, importance=None, gamma=1.0, widths=BIT_WIDTHS):
    """Try every combination, with costs computed by their definition."""
    best = None
    options = [
        {bits: harm for bits, harm in choices(one, harms[one.name]).items() if bits[0] in widths} for one in layers
    ]
    for combination in product(*options):
        bits = {one.name: pair for one, pair in zip(layers, combination, strict=True)}
        costs = cost(layers, bits, REST)
        parameters = sum(one.parameters for one in layers)
        weight_bits = sum(one.parameters * bits[one.name][0] for one in layers)
        within = (
            (budget.average_bits is None or weight_bits <= budget.average_bits * parameters)
            and (budget.size_bytes is None or costs.size_bytes <= budget.size_bytes)
            and (budget.bitops is None or costs.bitops <= budget.bitops)
            and (
                budget.average_bits is None
                or not budget.cap_bitops
                or costs.bitops <= uniform_bitops(layers, budget.average_bits)
            )
        )
        if within:
            harm = predicted_harm(layers, bits, harms, importance, gamma)
            best = harm if best is None else min(best, harm)
    return best


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    average_bits=st.none() | st.floats(1.9, 4.6),
    size=st.none() | st.floats(0.25, 0.7),
    bitops=st.none() | st.floats(0.05, 0.5),
    cap=st.booleans(),
    gamma=st.sampled_from([0.0, 1.0, 0.5]),
)
def test_the_optimum_is_that_of_brute_force_and_no_ceiling_is_exceeded(seed, average_bits, size, bitops, cap, gamma):
    if average_bits is None and size is None and bitops is None:
        average_bits = 3.0
    layers, harms = table(4, seed)
    harms = {name: {bits: harm for bits, harm in row.items() if bits <= 6} for name, row in harms.items()}
    largest = cost(layers, uniform(layers, 6), REST)
    budget = Budget(
        average_bits,
        None if size is None else int(size * largest.size_bytes),
        None if bitops is None else bitops * largest.bitops,
        cap,
    )
    random = np.random.default_rng(seed + 1)
    importance = {one.name: float(random.random()) for one in layers}
    expected = brute_force(layers, harms, budget, importance, gamma, range(2, 7))
    if expected is None:
        with pytest.raises(InfeasibleBudgetError):
            allocate(layers, harms, budget, REST, importance, gamma)
        return
    found = allocate(layers, harms, budget, REST, importance, gamma)
    assert found.harm == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert found.harm == pytest.approx(predicted_harm(layers, found.bits, harms, importance, gamma))
    assert found.cost == cost(layers, found.bits, REST)
    if budget.average_bits is not None:
        assert found.cost.average_bits <= budget.average_bits + 1e-12
        if cap:
            assert found.cost.bitops <= uniform_bitops(layers, budget.average_bits)
    if budget.size_bytes is not None:
        assert found.cost.size_bytes <= budget.size_bytes
    if budget.bitops is not None:
        assert found.cost.bitops <= budget.bitops


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
    assert found.harm == pytest.approx(dynamic_programming(layers, harms, average_bits), rel=1e-5)


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


def test_predicted_harm_is_the_sum_over_layers_of_importance_to_the_gamma_times_sensitivity():
    layers = [layer(0), layer(1, "matmul1"), layer(2, "patch_embed")]
    harms = {"layer0": {2: 0.5, 3: 0.25}, "layer1": {2: 8.0, 3: 4.0}, "layer2": {2: 3.0, 3: 5.0}}
    importance = {"layer0": 0.5, "layer1": 0.25, "layer2": 0.125}
    bits = {"layer0": (2, 2), "layer1": (3, 3), "layer2": (3, 8)}
    # The patch embedding's curve rises; its envelope at 3 bits is the 3.0 measured at 2.
    assert predicted_harm(layers, bits, harms) == 0.5 + 4.0 + 3.0
    assert predicted_harm(layers, bits, harms, importance, 1.0) == 0.5 * 0.5 + 0.25 * 4.0 + 0.125 * 3.0
    assert predicted_harm(layers, bits, harms, importance, 2.0) == 0.25 * 0.5 + 0.0625 * 4.0 + 0.015625 * 3.0
    assert predicted_harm(layers, bits, harms, importance, 0.0) == predicted_harm(layers, bits, harms)


def test_pinned_layers_keep_their_bits():
    layers, harms = table(8)
    pinned = {"layer1": 8, "layer2": (2, 2), "layer3": 32, "layer0": 5}
    found = allocate(layers, harms, Budget(average_bits=7.0, cap_bitops=False), REST, pinned=pinned)
    assert found.bits["layer1"] == (8, 8)
    assert found.bits["layer2"] == (2, 2)
    assert found.bits["layer0"] == (5, 8)  # the patch embedding's input keeps 8 bits
    with pytest.raises(InfeasibleBudgetError, match="Pinned layers count too: layer1"):
        allocate(layers, harms, Budget(average_bits=2.0), REST, pinned={"layer1": 8})
    with pytest.raises(BitWidthError):
        allocate(layers, harms, Budget(average_bits=4.0), REST, pinned={"layer1": 1})


def test_an_impossible_budget_names_the_smallest_feasible_value_which_is_feasible():
    layers, harms = table(6)
    smallest = cost(layers, uniform(layers, 2), REST)
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible value is 2"):
        allocate(layers, harms, Budget(average_bits=1.5), REST)
    with pytest.raises(InfeasibleBudgetError) as caught:
        allocate(layers, harms, Budget(size_bytes=10), REST)
    value = float(str(caught.value).split("value is ")[1].split(" MB")[0])
    assert value * 1e6 == pytest.approx(smallest.size_bytes, abs=1)
    assert allocate(layers, harms, Budget(size_bytes=round(value * 1e6)), REST).cost.size_bytes == smallest.size_bytes


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


@pytest.mark.parametrize("gamma", [-1.0, float("nan"), float("inf")])
def test_unusable_exponents_are_refused(gamma):
    layers, harms = table(3)
    with pytest.raises(AllocationError, match="exponent of importance"):
        allocate(layers, harms, Budget(average_bits=4.0), REST, gamma=gamma)


def test_harm_curves_are_used_as_their_monotone_envelope():
    assert monotone_envelope({2: 1.0, 3: 0.2, 4: 0.5, 5: 0.1}) == {2: 1.0, 3: 0.2, 4: 0.2, 5: 0.1}


def test_no_uniform_setting_may_fit():
    layers, _ = table(4)
    assert largest_uniform(layers, Budget(size_bytes=10), REST, BIT_WIDTHS) is None
