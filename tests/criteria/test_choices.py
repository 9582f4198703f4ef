import pytest

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.costs import cost
from mixqvit.allocation.exact import best_allocation
from mixqvit.criteria.choices import (
    independent_choices,
    monotone_envelope,
    predicted_harm,
    tied_choices,
    total_harm,
    weighted,
)
from mixqvit.criteria.error_power import importance_only
from mixqvit.criteria.inverse import inverse_harms
from mixqvit.criteria.random_importance import random_harms
from mixqvit.errors import AllocationError
from mixqvit.network.bits import BIT_WIDTHS, uniform
from tests.allocation.problems import REST, layer, table, transformer


def test_harm_curves_are_used_as_their_monotone_envelope():
    assert monotone_envelope({2: 1.0, 3: 0.2, 4: 0.5, 5: 0.1}) == {2: 1.0, 3: 0.2, 4: 0.2, 5: 0.1}


def test_tied_choices_give_both_operands_the_same_bits_except_the_input_of_the_patch_embedding():
    layers = [layer(0, "patch_embed"), layer(1, "qkv"), layer(2, "matmul1")]
    harms = {one.name: {2: 1.0, 3: 2.0, 4: 0.5} for one in layers}
    found = tied_choices(layers, harms)
    assert found["layer0"] == {(2, 8): 1.0, (3, 8): 1.0, (4, 8): 0.5}
    assert found["layer1"] == found["layer2"] == {(2, 2): 1.0, (3, 3): 1.0, (4, 4): 0.5}


def test_independent_choices_add_the_envelopes_of_both_operands():
    layers = [layer(0, "patch_embed"), layer(1, "qkv"), layer(2, "matmul1")]
    weights = {"layer0": {2: 4.0, 3: 2.0}, "layer1": {2: 4.0, 3: 5.0}}
    inputs = {"layer0": {2: 9.0, 8: 0.25}, "layer1": {2: 0.5, 4: 0.125}, "layer2": {2: 7.0, 3: 8.0}}
    found = independent_choices(layers, weights, inputs)
    assert found["layer0"] == {(2, 8): 4.25, (3, 8): 2.25}
    assert found["layer1"] == {(2, 2): 4.5, (2, 4): 4.125, (3, 2): 4.5, (3, 4): 4.125}
    assert found["layer2"] == {(2, 2): 7.0, (3, 3): 7.0}
    without = independent_choices(layers, weights, inputs | {"layer0": {2: 9.0}})
    assert without["layer0"] == {(2, 8): 4.0, (3, 8): 2.0}


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
    assert predicted_harm(layers, bits | {"layer1": (32, 32)}, harms) == 0.5 + 3.0
    choices = tied_choices(layers, harms)
    assert weighted(choices, importance, 2.0)["layer1"] == {(2, 2): 0.5, (3, 3): 0.25}
    assert weighted(choices, None, 1.0) == choices
    with pytest.raises(AllocationError, match="layer1"):
        total_harm(layers, bits | {"layer1": (2, 3)}, choices)


def test_importance_only_is_importance_times_the_power_of_both_errors():
    layers = [layer(0, "patch_embed"), layer(1, "qkv"), layer(2, "matmul2")]
    importance = {"layer0": 1.0, "layer1": 0.5, "layer2": 0.25}
    tied = importance_only(layers, importance)
    assert tied["layer0"][3, 8] == pytest.approx(4.0**-3 + 4.0**-8)
    assert tied["layer1"][3, 3] == pytest.approx(0.5 * 2 * 4.0**-3)
    assert tied["layer2"][5, 5] == pytest.approx(0.25 * 2 * 4.0**-5)
    free = importance_only(layers, importance, tied=False)
    assert [len(free[one.name]) for one in layers] == [7, 49, 7]
    assert free["layer1"][3, 5] == pytest.approx(0.5 * (4.0**-3 + 4.0**-5))
    assert free["layer0"] == pytest.approx(tied["layer0"])
    assert free["layer2"] == pytest.approx(tied["layer2"])


@pytest.mark.parametrize("tied", [True, False])
def test_random_harms_are_seeded_feasible_and_use_the_budget(tied):
    layers = transformer(3)
    first, again, other = (random_harms(layers, seed, tied) for seed in (1, 1, 2))
    assert first == again
    budget = Budget(average_bits=4.0)
    found, different = (best_allocation(layers, harms, budget, REST) for harms in (first, other))
    assert found.bits != different.bits
    assert len({bits[0] for bits in found.bits.values()}) >= 4
    most = cost(layers, uniform(layers, 4), REST)
    assert found.cost.average_bits <= 4.0
    assert 0.98 * most.bitops <= found.cost.bitops <= most.bitops


def test_inverse_harms_give_the_fewest_bits_where_the_harm_is_greatest():
    layers = [layer(index) for index in range(6)]
    harms = {one.name: {bits: 10.0**index * 4.0**-bits for bits in BIT_WIDTHS} for index, one in enumerate(layers)}
    choices = tied_choices(layers, harms)
    budget = Budget(average_bits=4.0)
    informed = best_allocation(layers, choices, budget, REST)
    misled = best_allocation(layers, inverse_harms(layers, choices), budget, REST)
    widths = [misled.bits[one.name][0] for one in layers]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]
    assert total_harm(layers, misled.bits, choices) > 10 * informed.harm


def test_inverse_harms_stand_layers_without_any_harm():
    layers, harms = table(4)
    nothing = {one.name: dict.fromkeys(BIT_WIDTHS, 0.0) for one in layers}
    found = inverse_harms(layers, tied_choices(layers, nothing | {"layer1": harms["layer1"]}))
    assert found["layer3"] == found["layer1"]
    assert best_allocation(layers, inverse_harms(layers, tied_choices(layers, nothing)), Budget(3.0), REST).harm > 0
