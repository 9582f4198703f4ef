import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixqvit.allocation import quadratic
from mixqvit.allocation.budget import Budget
from mixqvit.allocation.convexity import convex_split
from mixqvit.allocation.exact import best_allocation
from mixqvit.allocation.local_search import improved, quadratic_harm
from mixqvit.allocation.quadratic import _matrix, _Search, best_pairwise_allocation, pairwise_harm
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.allocation.solver import least_harm
from mixqvit.allocation.table import choice_table
from mixqvit.criteria.choices import independent_choices, tied_choices
from mixqvit.errors import AllocationError, InfeasibleBudgetError
from tests.allocation.problems import REST, every_combination, fits, sensitivities, table, transformer


def problem(seed, count=4, strength=0.3, widths=range(2, 6)):
    """Return layers, harms of their choices, and random pairwise terms relative to those harms."""
    layers, harms = table(count, seed)
    choices = tied_choices(
        layers, {name: {bits: row[bits] + 4.0**-bits / 4 for bits in widths} for name, row in harms.items()}
    )
    random = np.random.default_rng(seed)
    pairs = {
        (one.name, other.name): {
            (bits, other_bits): strength * random.normal() * (harm * other_harm) ** 0.5
            for bits, harm in choices[one.name].items()
            for other_bits, other_harm in choices[other.name].items()
        }
        for index, one in enumerate(layers)
        for other in layers[index + 1 :]
    }
    return layers, choices, pairs


def least_projected(layers, choices, pairs, budget):
    """Return the least harm after the projection, by trying every combination."""
    chosen = choice_table(layers, choices, REST, Restrictions())
    matrix, _ = _matrix(chosen, pairs)
    return min(
        quadratic_harm(
            matrix,
            np.array([row.index(bits[one.name]) for one, row in zip(layers, chosen.options, strict=True)]),
        )
        for bits, _ in every_combination(layers, choices, budget)
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), average_bits=st.sampled_from([2.5, 3.0, 3.6, 4.4]), strength=st.floats(0.1, 1.5))
def test_the_harm_is_that_of_brute_force_within_the_gap(seed, average_bits, strength):
    layers, choices, pairs = problem(seed, strength=strength)
    budget = Budget(average_bits=average_bits)
    found = best_pairwise_allocation(layers, choices, pairs, budget, REST)
    least = least_projected(layers, choices, pairs, budget)
    assert fits(layers, found.bits, budget)
    assert found.harm >= least * (1 - 1e-9)
    assert found.harm * (1 - found.gap) <= least * (1 + 1e-9)
    assert found.gap == 0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), average_bits=st.sampled_from([2.5, 3.6]))
def test_terms_that_are_positive_semidefinite_are_not_changed(seed, average_bits):
    layers, choices, pairs = problem(seed, strength=0.01)
    budget = Budget(average_bits=average_bits)
    found = best_pairwise_allocation(layers, choices, pairs, budget, REST)
    assert not found.projected
    assert found.harm == pytest.approx(pairwise_harm(layers, found.bits, choices, pairs))
    least = min(pairwise_harm(layers, bits, choices, pairs) for bits, _ in every_combination(layers, choices, budget))
    assert found.harm * (1 - found.gap) <= least * (1 + 1e-9)
    assert found.gap == 0


def test_without_pairwise_terms_it_is_the_exact_optimum():
    layers = transformer(2)
    choices = tied_choices(layers, sensitivities(layers, 0))
    budget = Budget(average_bits=3.7)
    found = best_pairwise_allocation(layers, choices, {}, budget, REST)
    exact = best_allocation(layers, choices, budget, REST)
    assert (found.bits, found.harm, found.gap) == (exact.bits, exact.harm, 0.0)


def test_layers_that_hurt_each_other_are_not_both_given_few_bits():
    """Alone both layers are harmless at 2 bits; together they are not, and one of them must give way."""
    layers, _ = table(3, kinds=("fc1",))
    choices = {one.name: {(2, 2): 1.0, (4, 4): 0.9} for one in layers}
    pairs = {("layer2", "layer0"): {((2, 2), (2, 2)): 1.9}}
    for terms, together in (({}, 3.0), (pairs, 4.9)):
        everywhere = {one.name: (2, 2) for one in layers}
        assert pairwise_harm(layers, everywhere, choices, terms) == pytest.approx(together)
    sizes = {one.name: one.parameters for one in layers}
    room = 2 * sum(sizes.values()) + 2 * min(sizes["layer0"], sizes["layer2"])
    budget = Budget(average_bits=room / sum(sizes.values()), cap_bitops=False)
    found = best_pairwise_allocation(layers, choices, pairs, budget, REST)
    assert (4, 4) in (found.bits["layer0"], found.bits["layer2"])


def test_noise_in_the_terms_never_predicts_negative_harm():
    layers, choices, pairs = problem(1, count=5, strength=6.0)
    budget = Budget(average_bits=3.0)
    assert (
        min(pairwise_harm(layers, bits, choices, pairs) for bits, _ in every_combination(layers, choices, budget)) < 0
    )
    found = best_pairwise_allocation(layers, choices, pairs, budget, REST)
    assert found.projected
    assert found.harm > 0


def test_ceilings_and_restrictions_hold_for_a_whole_transformer_and_the_gap_is_stated():
    layers = transformer(3)
    choices = tied_choices(layers, sensitivities(layers, 4))
    random = np.random.default_rng(0)
    alike = random.normal(size=(len(layers), 6)) + 1.0
    alike /= np.linalg.norm(alike, axis=1, keepdims=True)
    pairs = {
        (one.name, other.name): {
            (bits, other_bits): 2 * float(alike[i] @ alike[j]) * (harm * other_harm) ** 0.5
            for bits, harm in choices[one.name].items()
            for other_bits, other_harm in choices[other.name].items()
        }
        for i, one in enumerate(layers)
        for j, other in enumerate(layers)
        if i < j
    }
    restrictions = Restrictions({"head": 8, "blocks.0.fc1": 32}, {"proj": (4, 6)}, {"blocks.1.qkv": 5})
    budget = Budget(size_bytes=330_000)
    found = best_pairwise_allocation(layers, choices, pairs, budget, REST, restrictions, seconds=1.0)
    assert found.bits["head"] == (8, 8)
    assert found.bits["blocks.0.fc1"] == (32, 32)
    assert {found.bits[f"blocks.{block}.proj"][0] for block in range(3)} <= {4, 6}
    assert found.bits["blocks.1.qkv"][0] >= 5
    assert fits(layers, found.bits, budget)
    assert 0 <= found.gap <= 0.2
    chosen = best_allocation(layers, choices, budget, REST, restrictions)
    assert pairwise_harm(layers, found.bits, choices, pairs) < pairwise_harm(layers, chosen.bits, choices, pairs)


def test_what_cannot_be_solved_is_refused_in_words():
    layers, choices, pairs = problem(0)
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible value is 2"):
        best_pairwise_allocation(layers, choices, pairs, Budget(average_bits=1.0), REST)
    with pytest.raises(AllocationError, match="nowhere"):
        best_pairwise_allocation(
            layers, choices, {("layer0", "nowhere"): {((2, 8), (2, 2)): 1.0}}, Budget(average_bits=3.0), REST
        )
    large = transformer(6)
    harms = sensitivities(large, 0)
    free = independent_choices(large, harms, harms)
    term = {("patch_embed", "head"): {((2, 8), (2, 2)): 1.0}}
    with pytest.raises(AllocationError, match="too many for pairwise terms"):
        best_pairwise_allocation(large, free, term, Budget(average_bits=3.0), REST)


@pytest.mark.parametrize("seed", range(3))
def test_the_convex_split_changes_no_allocation_and_is_convex_between_them(seed):
    random = np.random.default_rng(seed)
    layers, choices = 6, 4
    roots = random.normal(size=(layers * choices, 12))
    matrix = roots @ roots.T
    spread = random.random((layers, choices)) * (random.random((layers, choices)) < 0.8)
    spread[:, 0] += 0.1
    curved, linear = convex_split(matrix, spread, 10.0)
    points = []
    for _ in range(40):
        point = np.zeros((layers, choices))
        kept = [random.choice(np.flatnonzero(row)) for row in spread]
        point[np.arange(layers), kept] = 1.0
        point = point.ravel()
        points.append(point)
        assert point @ curved @ point + linear @ point == pytest.approx(point @ matrix @ point)
    steps = np.diff(points, axis=0)
    curvatures = np.einsum("pv,vw,pw->p", steps, curved, steps)
    assert (curvatures >= -1e-9 * np.abs(matrix).max()).all()
    assert linear @ points[0] > 0  # something was moved, which is what raises the bound


@pytest.mark.parametrize("seed", range(3))
def test_no_change_of_one_or_two_layers_improves_the_result_of_the_local_search(seed):
    layers, choices, pairs = problem(seed, count=5, strength=1.0)
    budget = Budget(average_bits=3.2)
    chosen = choice_table(layers, choices, REST, Restrictions())
    matrix, _ = _matrix(chosen, pairs)
    amounts, rooms = chosen.limits(budget)
    found, harm = improved(matrix, chosen.possible, amounts, rooms, np.zeros(len(layers), dtype=int))
    assert harm == pytest.approx(quadratic_harm(matrix, found))
    for bits, _ in every_combination(layers, choices, budget):
        other = np.array([row.index(bits[one.name]) for one, row in zip(layers, chosen.options, strict=True)])
        if (other != found).sum() <= 2:
            assert quadratic_harm(matrix, other) >= harm * (1 - 1e-9)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), average_bits=st.sampled_from([2.5, 3.6]), strength=st.floats(0.1, 1.0))
def test_the_bound_holds_where_not_everything_is_tried(seed, average_bits, strength):
    """Bounds and restarts alone, as for models whose allocations are too many to try."""
    layers, choices, pairs = problem(seed, strength=strength)
    budget = Budget(average_bits=average_bits)
    chosen = choice_table(layers, choices, REST, Restrictions())
    matrix, _ = _matrix(chosen, pairs)
    start = least_harm(chosen.possible_harm, *chosen.limits(budget)).chosen
    search = _Search(matrix, chosen, budget, start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadratic, "_FEW_ALLOCATIONS", 0)
        search.run(time.monotonic() + 5.0)
    least = least_projected(layers, choices, pairs, budget)
    assert least * (1 - 1e-9) <= search.harm <= least * 1.25
    assert search.bound <= least * (1 + 1e-9)
    assert search.gap == pytest.approx((search.harm - search.bound) / search.harm)
    assert search.gap < 0.9


@pytest.mark.parametrize("seed", range(12))
def test_what_is_dropped_is_no_part_of_anything_better(seed):
    """Without local search and restarts, so that something better is left to be dropped wrongly."""
    layers, choices, pairs = problem(seed, strength=0.4)
    budget = Budget(average_bits=3.6)
    chosen = choice_table(layers, choices, REST, Restrictions())
    matrix, _ = _matrix(chosen, pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadratic, "_FEW_ALLOCATIONS", 0)
        patch.setattr(quadratic, "_RESTARTS", 0)
        patch.setattr(quadratic, "improved", lambda matrix, *rest: (rest[-1], quadratic_harm(matrix, rest[-1])))
        search = _Search(matrix, chosen, budget, np.zeros(len(layers), dtype=int))
        search.run(time.monotonic() + 5.0)
    assert search.bound <= least_projected(layers, choices, pairs, budget) * (1 + 1e-9)
    for bits, _ in every_combination(layers, choices, budget):
        other = np.array([row.index(bits[one.name]) for one, row in zip(layers, chosen.options, strict=True)])
        if quadratic_harm(matrix, other) < search.harm * (1 - 1e-9):
            assert search.left[np.arange(len(layers)), other].all()
