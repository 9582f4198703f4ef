import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.costs import cost
from mixqvit.allocation.exact import allocate, best_allocation
from mixqvit.allocation.infeasible import smallest_value
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.allocation.table import choice_table
from mixqvit.criteria.choices import independent_choices, tied_choices
from mixqvit.errors import AllocationError, BitWidthError, InfeasibleBudgetError
from mixqvit.network.bits import BIT_WIDTHS, uniform
from tests.allocation.problems import REST, brute_force, fits, table

WIDTHS = st.sampled_from(BIT_WIDTHS)
UNRESTRICTED = Restrictions()
NAMES = st.sampled_from([f"layer{index}" for index in range(4)])
KINDS = st.sampled_from(["patch_embed", "qkv", "matmul1", "fc1"])


def obeys(restrictions):
    def allowed(layer, bits):
        bound = bits[:1] if layer.kind == "patch_embed" else bits
        pinned = restrictions.pinned.get(layer.name)
        return (
            all(width >= restrictions.at_least.get(layer.name, 2) for width in bound)
            and all(width <= restrictions.at_most.get(layer.name, 8) for width in bound)
            and (
                set(bound) == {pinned}
                if pinned is not None
                else all(width in restrictions.allowed.get(layer.kind, BIT_WIDTHS) for width in bound)
            )
        )

    return allowed


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    average_bits=st.floats(2.5, 6.5),
    pinned=st.dictionaries(NAMES, WIDTHS, max_size=1),
    allowed=st.dictionaries(KINDS, st.sets(WIDTHS, min_size=2), max_size=2),
    at_least=st.dictionaries(NAMES, st.sampled_from([2, 3, 4]), max_size=2),
    at_most=st.dictionaries(NAMES, st.sampled_from([4, 5, 6]), max_size=2),
    independent=st.booleans(),
)
def test_the_optimum_under_restrictions_is_that_of_brute_force(
    seed, average_bits, pinned, allowed, at_least, at_most, independent
):
    layers, harms = table(3 if independent else 4, seed)
    names = {one.name for one in layers}
    pinned, at_least, at_most = (
        {name: width for name, width in row.items() if name in names} for row in (pinned, at_least, at_most)
    )
    restrictions = Restrictions(pinned, {kind: tuple(row) for kind, row in allowed.items()}, at_least, at_most)
    choices = independent_choices(layers, harms, harms) if independent else tied_choices(layers, harms)
    budget = Budget(average_bits=average_bits)
    test = obeys(restrictions)
    if not all(any(test(one, bits) for bits in choices[one.name]) for one in layers):
        with pytest.raises(AllocationError, match="layer"):
            best_allocation(layers, choices, budget, REST, restrictions)
        return
    expected = brute_force(layers, choices, budget, test)
    if expected is None:
        with pytest.raises(InfeasibleBudgetError):
            best_allocation(layers, choices, budget, REST, restrictions)
        return
    found = best_allocation(layers, choices, budget, REST, restrictions)
    assert found.harm == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert all(test(one, found.bits[one.name]) for one in layers)
    assert fits(layers, found.bits, budget)


def test_pinned_layers_keep_their_bits():
    layers, harms = table(8)
    pinned = {"layer1": 8, "layer2": (2, 2), "layer3": 32, "layer0": 5}
    found = allocate(layers, harms, Budget(average_bits=7.0, cap_bitops=False), REST, pinned=pinned)
    assert found.bits["layer1"] == (8, 8)
    assert found.bits["layer2"] == (2, 2)
    assert found.bits["layer3"] == (32, 32)
    assert found.bits["layer0"] == (5, 8)  # the patch embedding's input keeps 8 bits


def test_full_precision_is_only_for_pinned_layers():
    layers, harms = table(4)
    choices = {name: row | {(32, 32): 0.0} for name, row in tied_choices(layers, harms).items()}
    found = best_allocation(layers, choices, Budget(average_bits=32.0, cap_bitops=False), REST)
    assert max(width for bits in found.bits.values() for width in bits) <= 8


@pytest.mark.parametrize(
    ("restrictions", "error", "words"),
    [
        (Restrictions(pinned={"nowhere": 4}), BitWidthError, "nowhere"),
        (Restrictions(at_least={"nowhere": 4}), BitWidthError, "nowhere"),
        (Restrictions(at_most={"nowhere": 4}), BitWidthError, "nowhere"),
        (Restrictions(allowed={"attention": (4,)}), AllocationError, "kinds are patch_embed"),
        (Restrictions(pinned={"layer1": 1}), BitWidthError, "1 bits"),
        (Restrictions(at_least={"layer1": 9}), BitWidthError, "9 bits"),
        (Restrictions(at_most={"layer1": 32}), BitWidthError, "32 bits"),
        (Restrictions(allowed={"qkv": (4, 1)}), BitWidthError, "qkv layers"),
        (Restrictions(allowed={"qkv": ()}), AllocationError, "layer layer1"),
        (Restrictions(at_least={"layer1": 6}, at_most={"layer1": 5}), AllocationError, "at least 6 and at most 5"),
        (Restrictions(allowed={"qkv": (2, 3)}, at_least={"layer1": 4}), AllocationError, "left for layer layer1"),
        (Restrictions(pinned={"layer1": 4}, at_least={"layer1": 5}), AllocationError, "pinned to 4 bits and"),
        (Restrictions(pinned={"layer1": 32}, at_most={"layer1": 5}), AllocationError, "at most 5"),
        (Restrictions(pinned={"layer1": (4, 5)}), AllocationError, "the choices are"),
    ],
)
def test_impossible_restrictions_are_refused_in_words(restrictions, error, words):
    layers, harms = table(4)
    with pytest.raises(error, match=words):
        best_allocation(layers, tied_choices(layers, harms), Budget(average_bits=4.0), REST, restrictions)


def message(layers, harms, budget, restrictions=UNRESTRICTED):
    with pytest.raises(InfeasibleBudgetError) as caught:
        best_allocation(layers, tied_choices(layers, harms), budget, REST, restrictions)
    return str(caught.value)


def feasible(layers, harms, budget, restrictions=UNRESTRICTED):
    try:
        return best_allocation(layers, tied_choices(layers, harms), budget, REST, restrictions) is not None
    except InfeasibleBudgetError:
        return False


def test_an_impossible_size_names_the_smallest_feasible_one():
    layers, harms = table(6)
    smallest = cost(layers, uniform(layers, 2), REST)
    assert "the smallest feasible value is 2." in message(layers, harms, Budget(average_bits=1.5))
    value = float(message(layers, harms, Budget(size_bytes=10)).split("value is ")[1].split(" MB")[0])
    assert round(value * 1e6) == smallest.size_bytes
    assert feasible(layers, harms, Budget(size_bytes=round(value * 1e6)))
    assert not feasible(layers, harms, Budget(size_bytes=round(value * 1e6) - 1))
    value = float(message(layers, harms, Budget(bitops=10.0)).split("value is ")[1].split(" G")[0])
    assert value * 1e9 == pytest.approx(smallest.bitops, abs=1000)
    assert feasible(layers, harms, Budget(bitops=value * 1e9))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    average_bits=st.floats(1.5, 6.0),
    cap=st.booleans(),
    pinned=st.dictionaries(NAMES, st.sampled_from([4, 6, 8, 32]), min_size=1, max_size=3),
    at_least=st.dictionaries(NAMES, st.sampled_from([3, 5]), max_size=2),
)
def test_the_average_that_is_named_is_feasible_and_the_restriction_to_blame_is_blamed(
    seed, average_bits, cap, pinned, at_least
):
    layers, harms = table(4, seed)
    at_least = {name: bits for name, bits in at_least.items() if pinned.get(name, 8) >= bits}
    restrictions = Restrictions(pinned=pinned, at_least=at_least)
    budget = Budget(average_bits=average_bits, cap_bitops=cap)
    if feasible(layers, harms, budget, restrictions):
        return
    words = message(layers, harms, budget, restrictions)
    value = float(re.search(r"smallest feasible value is ([0-9.]+)\.", words)[1])
    assert feasible(layers, harms, Budget(average_bits=value, cap_bitops=cap), restrictions)
    assert not feasible(layers, harms, Budget(average_bits=value - 2e-6, cap_bitops=cap), restrictions)
    for name in pinned:
        without = Restrictions({other: bits for other, bits in pinned.items() if other != name}, at_least=at_least)
        is_blamed = "To blame" in words and f"layer {name} pinned" in words
        assert is_blamed == feasible(layers, harms, budget, without)
    if not feasible(layers, harms, budget):
        assert "Even without any" in words
    elif "To blame" not in words:
        assert "No single restriction is to blame" in words


def test_every_sort_of_restriction_can_be_to_blame():
    layers, harms = table(4)
    budget = Budget(average_bits=2.5, cap_bitops=False)
    for restrictions, words in (
        (Restrictions(pinned={"layer1": 8, "layer0": 2}), "To blame is layer layer1 pinned to 8 bits: without"),
        (Restrictions(at_least={"layer1": 8}), "To blame is layer layer1 with at least 8 bits: without"),
        (Restrictions(allowed={"qkv": (7, 8)}), "To blame is qkv layers with 7, 8 bits only: without"),
    ):
        assert words in message(layers, harms, budget, restrictions)


def test_when_no_restriction_alone_is_to_blame_the_dearest_are_named_with_their_cost():
    layers, harms = table(4, seed=3)
    pinned = {"layer1": 8, "layer3": 8}
    words = message(layers, harms, Budget(average_bits=2.2, cap_bitops=False), Restrictions(pinned=pinned))
    parameters = sum(one.parameters for one in layers)
    saved = {one.name: one.parameters * 6 / parameters for one in layers if one.name in pinned}
    assert "No single restriction is to blame; those that cost most average bits are" in words
    for name, amount in saved.items():
        assert float(re.search(rf"{name} pinned to 8 bits \(([0-9.]+)\)", words)[1]) == pytest.approx(amount, abs=1e-5)
    assert words.index(max(saved, key=saved.get)) < words.index(min(saved, key=saved.get))


def test_several_ceilings_are_named_with_what_would_do():
    layers, harms = table(6)
    smallest = cost(layers, uniform(layers, 2), REST)
    words = message(layers, harms, Budget(average_bits=4.0, size_bytes=10))
    assert "the smallest feasible value for model size is" in words
    assert "for average bits is" not in words  # no average makes ten bytes possible
    words = message(layers, harms, Budget(average_bits=1.5, size_bytes=10, bitops=10.0))
    together = re.search(
        r"together are ([0-9.]+) for average bits and ([0-9.]+) MB for model size and ([0-9.]+) G for BitOps", words
    )
    assert float(together[1]) == 2.0
    assert float(together[2]) * 1e6 == pytest.approx(smallest.size_bytes)
    budget = Budget(2.0, round(float(together[2]) * 1e6), float(together[3]) * 1e9)
    assert feasible(layers, harms, budget)


def test_ceilings_that_exclude_each_other_name_what_each_would_have_to_be():
    """Little weight memory here means many BitOps: choices as nobody would measure them, but possible."""
    layers, _ = table(4, kinds=("qkv", "fc1"))
    harms = {one.name: {(2, 8): 1.0, (4, 2): 2.0} for one in layers}
    lowest = cost(layers, {one.name: (4, 2) for one in layers}, REST).bitops
    chosen = choice_table(layers, harms, REST, Restrictions())
    budget = Budget(average_bits=2.5, bitops=float(lowest), cap_bitops=False)
    assert chosen.best(budget) is None
    average = smallest_value(chosen, budget, "average_bits")
    assert average == 4.0
    bitops = smallest_value(chosen, budget, "bitops")
    assert chosen.best(Budget(average_bits=2.5, bitops=bitops, cap_bitops=False)) is not None
    assert chosen.best(Budget(average_bits=2.5, bitops=bitops - 1, cap_bitops=False)) is None
    with pytest.raises(InfeasibleBudgetError, match=r"for average bits is 4 or .* for BitOps is"):
        best_allocation(layers, harms, budget, REST)
