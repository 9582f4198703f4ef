"""Strategies, restrictions, the frontier and kept allocations of a study, on an embedded model with few images."""

from dataclasses import replace

import pytest

import mixqvit
from mixqvit.allocation_recipe import recipe_document, request_of
from mixqvit.bits import BIT_WIDTHS
from mixqvit.costs import uniform_bitops
from mixqvit.errors import AllocationError, InfeasibleBudgetError
from mixqvit.strategies import STRATEGIES
from mixqvit.study import Settings, Study

SMALL = Settings(calibration_images=4, analysis_images=10, evaluation_images=80)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixqvit.study.criteria.PAIR_IMAGES", 1)  # all 741 pairs take long enough
        yield Study("digits_swin", settings=SMALL, store=mixqvit.Store(tmp_path_factory.mktemp("store")))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("average_bits", [2.6, 4.0])
def test_every_strategy_stays_within_the_budget(study, name, average_bits):
    found = study.allocate(average_bits=average_bits, strategy=name)
    assert found.cost.average_bits <= average_bits + 1e-12
    assert found.cost.bitops <= uniform_bitops(study.layers, average_bits)
    assert list(found.bits) == [layer.name for layer in study.layers]
    if name not in ("uniform", "clado"):
        assert found.gap == 0
    used = found.cost.average_bits / average_bits, found.cost.bitops / uniform_bitops(study.layers, average_bits)
    assert name == "uniform" or max(used) > 0.93  # the budget is used


def test_the_sensitivity_strategy_predicts_the_least_harm_and_the_worst_informed_much_more(study):
    harms = {name: study.predicted_harm(study.allocate(average_bits=3.0, strategy=name).bits) for name in STRATEGIES}
    assert min(harms.values()) == pytest.approx(harms["sensitivity"], rel=1e-9)
    assert harms["inverse"] > 3 * harms["uniform"]
    assert harms["hawq-v2"] < harms["uniform"]
    assert harms["mpqco"] < harms["uniform"]


def test_without_importance_mix_qvit_is_sensitivity_alone(study):
    assert study.allocate(average_bits=3.0, gamma=0.0).bits == study.allocate(3.0, strategy="sensitivity").bits


def test_random_allocations_are_seeded(study):
    first, again, other = (study.allocate(3.0, strategy="random", seed=seed).bits for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("name", ["mix-qvit", "sensitivity", "lrp-qvit", "hawq-v2", "mpqco", "random", "inverse"])
def test_weights_and_activations_can_have_bits_of_their_own(study, name):
    found = study.allocate(average_bits=3.5, strategy=name, tied=False)
    layers = {layer.name: layer for layer in study.layers}
    assert name == "inverse" or any(
        w != a for layer, (w, a) in found.bits.items() if layers[layer].kind != "patch_embed"
    )
    assert all(w == a for layer, (w, a) in found.bits.items() if layers[layer].is_matmul)
    assert all(a == 8 for layer, (w, a) in found.bits.items() if layers[layer].kind == "patch_embed")
    assert found.cost.bitops <= uniform_bitops(study.layers, 3.5)
    assert study.predicted_harm(found.bits) > 0


def test_more_choices_never_predict_more_harm_by_the_same_yardstick(study):
    weights, inputs = study.sensitivity("weights"), study.sensitivity("activations")
    tied = study.allocate(average_bits=4.0, strategy="sensitivity")
    free = study.allocate(average_bits=4.0, strategy="sensitivity", tied=False)

    def added(bits):
        return sum(
            min(weights.get(name, {w: 0.0, **dict.fromkeys(BIT_WIDTHS, 0.0)})[b] for b in BIT_WIDTHS if b <= w)
            + min(inputs[name][b] for b in BIT_WIDTHS if b <= a and (name != "patch_embed.proj" or b == 8))
            for name, (w, a) in bits.items()
        )

    assert free.harm == pytest.approx(added(free.bits), rel=1e-9)
    assert free.harm <= added(tied.bits) * (1 + 1e-9)


def test_restrictions_hold_and_name_what_is_to_blame(study):
    found = study.allocate(
        average_bits=3.0,
        pinned={"head.fc": 8},
        allowed={"fc1": [2, 4]},
        at_least={"patch_embed.proj": 5},
        at_most={"layers.0.blocks.0.attn.qkv": 3},
    )
    assert found.bits["head.fc"] == (8, 8)
    assert found.bits["patch_embed.proj"][0] >= 5
    assert found.bits["layers.0.blocks.0.attn.qkv"][0] <= 3
    assert {found.bits[layer.name][0] for layer in study.layers if layer.kind == "fc1"} <= {2, 4}
    with pytest.raises(InfeasibleBudgetError, match=r"head\.fc"):
        study.allocate(average_bits=2.0, pinned={"head.fc": 8})
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible value"):
        study.allocate(average_bits=1.5, strategy="uniform")
    with pytest.raises(AllocationError, match="no allocation strategy"):
        study.allocate(average_bits=3.0, strategy="luck")


def test_the_frontier_is_every_budgets_own_optimum(study):
    request = {"gamma": 0.5, "pinned": {"head.fc": 8}}
    assert study.saved_frontier(**request) is None
    *_, last = study.frontier_steps(**request)
    assert last.done == last.total == len(last.result) == 61
    assert study.saved_frontier(**request) == last.result
    assert study.saved_frontier(gamma=0.5) is None
    assert last.result[0].allocation is None  # the pinned head alone is more than 2 bits
    for point in last.result[3::12]:
        assert point.allocation == study.allocate(average_bits=point.average_bits, **request)
    harms = [point.allocation.harm for point in last.result if point.allocation is not None]
    assert harms == sorted(harms, reverse=True)
    for strategy in ("uniform", "clado"):
        with pytest.raises(AllocationError, match="no frontier"):
            list(study.frontier_steps(strategy=strategy))


def test_kept_allocations_come_back_until_they_are_deleted(study):
    request = {"average_bits": 3.0, "pinned": {"head.fc": 8}, "strategy": "sensitivity"}
    allocation = study.allocate(**request)
    document = recipe_document(study.model.name, study.settings, allocation, request)
    study.save_allocation(" small ", document)
    study.save_allocation("other", document)
    again = Study("digits_swin", settings=replace(SMALL, analysis_images=5), store=study.store)
    assert list(again.saved_allocations()) == ["small", "other"]
    assert study.allocate(**request_of(again.saved_allocations()["small"])) == allocation
    study.delete_allocation("small")
    assert list(again.saved_allocations()) == ["other"]
    amplified = Study("digits_swin", settings=replace(SMALL, outlier_factor=4.0), store=study.store)
    assert amplified.saved_allocations() == {}  # bits belong to a model
    with pytest.raises(AllocationError, match="name"):
        study.save_allocation("  ", document)


def test_strategies_are_compared_by_what_they_measure(study):
    chosen = ("sensitivity", "uniform", "random")
    *_, last = study.compare_strategies_steps(chosen, average_bits=3.0)
    assert last.done == last.total
    assert tuple(last.result.results) == chosen
    assert last.result.refused == {}
    for name, result in last.result.results.items():
        assert result.allocation == study.allocate(average_bits=3.0, strategy=name)
        assert result.evaluation == study.evaluate(result.allocation)
        assert result.predicted_harm == study.predicted_harm(result.allocation.bits)
        assert (result.score_seconds > 0) == bool(STRATEGIES[name].needs)
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible value"):
        list(study.compare_strategies_steps(chosen, size_bytes=200_000))


def test_scores_are_saved(study, monkeypatch):
    expected = {name: study.allocate(average_bits=3.0, strategy=name) for name in STRATEGIES}
    again = Study("digits_swin", settings=SMALL, store=study.store)
    for stage in ("hessian_trace_steps", "squared_perturbations", "loss_change_steps", "pair_steps"):
        monkeypatch.setattr(f"mixqvit.study.criteria.{stage}", lambda *_, **__: pytest.fail("computed again"))
    for name, allocation in expected.items():
        assert again.allocate(average_bits=3.0, strategy=name) == allocation


def test_pairs_are_estimated_before_they_are_measured(study):
    assert 0 < study.pair_estimate() < 600
    assert study.measures_by_itself
    assert study.evaluation_estimate() > 0
