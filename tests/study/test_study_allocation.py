"""Strategies, restrictions, the frontier and kept allocations of a study, on an embedded model with few images."""

import shutil

import pytest

import mixqvit
from mixqvit.allocation.costs import uniform_bitops
from mixqvit.allocation.request import as_request
from mixqvit.criteria.registry import CRITERIA
from mixqvit.errors import AllocationError, BitWidthError, InfeasibleBudgetError
from mixqvit.files.allocation_document import allocation_document, request_of
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.study.study import Study
from tests.small import SMALL


@pytest.fixture(scope="module")
def study(first_results, tmp_path_factory):
    store = mixqvit.Store(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixqvit.criteria.pairwise.PAIR_IMAGES", 1)  # all 741 pairs take long enough
        yield Study("digits_swin", settings=SMALL(), store=first_results.put("digits_swin", store))


WITHOUT_PAIRS = [pytest.param(name, marks=pytest.mark.slow) if name == "clado" else name for name in CRITERIA]


@pytest.mark.parametrize("name", WITHOUT_PAIRS)
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


@pytest.mark.slow
def test_the_sensitivity_strategy_predicts_the_least_harm_and_the_worst_informed_much_more(study):
    harms = {name: study.predicted_harm(study.allocate(average_bits=3.0, strategy=name).bits) for name in CRITERIA}
    assert min(harms.values()) == pytest.approx(harms["sensitivity"], rel=1e-9)
    assert harms["inverse"] > 3 * harms["uniform"]
    assert harms["hawq-v2"] < harms["uniform"]
    assert harms["mpqco"] < harms["uniform"]


def test_without_importance_mix_qvit_is_sensitivity_alone(study):
    assert study.allocate(average_bits=3.0, gamma=0.0).bits == study.allocate(3.0, strategy="sensitivity").bits


def test_random_allocations_are_seeded(study):
    first, again, other = (study.allocate(3.0, strategy="random", seed=seed).bits for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mix-qvit", "sensitivity", "lrp-qvit", "hawq-v2", "mpqco", "limpq", "random", "inverse"]
)
def test_weights_and_activations_can_have_bits_of_their_own(study, name):
    found = study.allocate(average_bits=3.5, strategy=name, tied=False)
    layers = {layer.name: layer for layer in study.layers}
    assert any(w != a for layer, (w, a) in found.bits.items() if layers[layer].kind != "patch_embed")
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
    # The pinned head hides that its kind may have no more than 3 bits and the head no fewer than 4.
    hidden = {"pinned": {"head.fc": 8, "layers.1.blocks.0.mlp.fc1": 32}, "at_least": {"head.fc": 4}}
    with pytest.raises(InfeasibleBudgetError, match=r"To blame is layer layers\.1\.blocks\.0\.mlp\.fc1"):
        study.allocate(average_bits=3.0, **hidden, allowed={"head": (2, 3)})
    with pytest.raises(AllocationError, match="no allocation strategy"):
        study.allocate(average_bits=3.0, strategy="luck")


def test_uniform_bits_keep_to_restrictions_and_need_a_budget(study):
    found = study.allocate(
        average_bits=4.5,
        strategy="uniform",
        pinned={"head.fc": 8, "layers.0.blocks.0.mlp.fc1": 32},
        at_least={"patch_embed.proj": 6},
        at_most={"layers.1.blocks.0.mlp.fc2": 3},
        allowed={"qkv": (2, 8)},
        cap_bitops=False,
    )
    kinds = {layer.name: layer.kind for layer in study.layers}
    widths = {name: pair[0] for name, pair in found.bits.items()}
    assert (widths.pop("head.fc"), widths.pop("layers.0.blocks.0.mlp.fc1")) == (8, 32)
    assert (widths.pop("patch_embed.proj"), widths.pop("layers.1.blocks.0.mlp.fc2")) == (6, 3)
    assert {width for name, width in widths.items() if kinds[name] == "qkv"} == {2}
    assert len({width for name, width in widths.items() if kinds[name] != "qkv"}) == 1
    with pytest.raises(AllocationError, match="needs a budget"):
        study.allocate(strategy="uniform")
    with pytest.raises(BitWidthError, match="no layer"):
        study.allocate(4.0, strategy="uniform", pinned={"heads": 8})


@pytest.mark.slow
def test_clado_adds_like_to_like_whatever_the_settings_say(study):
    other = Study("digits_swin", settings=SMALL(metric="sqnr", baseline=8), store=study.store)
    assert other.allocate(3.0, strategy="clado") == study.allocate(3.0, strategy="clado")
    with pytest.raises(AllocationError, match="same bits"):
        study.allocate(3.0, strategy="clado", tied=False)
    with pytest.raises(AllocationError, match="same bits"):
        list(study.score_steps("clado", tied=False))


def test_without_importance_no_relevance_is_computed(study, monkeypatch):
    monkeypatch.setattr(study, "relevance", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr(study, "relevance_steps", lambda *_: pytest.fail("computed"))
    for strategy in ("mix-qvit", "lrp-qvit"):
        list(study.score_steps(strategy, gamma=0.0))
        assert study.scores.seconds(strategy, gamma=0.0) >= 0
        assert study.allocate(3.0, gamma=0.0, strategy=strategy).cost.average_bits <= 3


def test_one_yardstick_holds_for_tied_and_independent_bits(study):
    bits = study.uniform(4).bits
    together, added = study.predicted_harm(bits), study.predicted_harm(bits, tied=False)
    assert together != added
    mixed = study.allocate(4.0, strategy="sensitivity", tied=False)
    assert study.predicted_harm(mixed.bits) == study.predicted_harm(mixed.bits, tied=False) <= added
    assert study.uniform_beside(mixed.budget, 0.0, tied=False).harm == added
    *_, last = study.compare_strategies_steps(("uniform",), average_bits=4.0, tied=False)
    assert last.result.results["uniform"].predicted_harm == added


@pytest.mark.parametrize(
    "wanted",
    [
        *({"average_bits": 1e305}, {"size_bytes": 10**400}, {"bitops": 1e300}),
        *({"average_bits": 4.0, "strategy": "random", "seed": -1}, {"average_bits": 4.0, "gamma": 400.0}),
    ],
)
def test_numbers_that_no_model_can_use_are_refused(study, wanted):
    with pytest.raises(AllocationError):
        study.allocate(**wanted)


def test_a_sensitivity_of_ones_own_is_for_tied_bits(study):
    harms = {name: dict.fromkeys(row, -1.0) for name, row in study.sensitivity().items()}
    assert study.allocate(4.0, sensitivity=harms, strategy="sensitivity").harm == 0
    with pytest.raises(AllocationError, match="tied"):
        study.allocate(4.0, sensitivity=harms, tied=False)
    with pytest.raises(TypeError, match="colour"):
        list(study.frontier_steps(colour="red"))


def test_the_frontier_is_every_budgets_own_optimum(study):
    request = {"gamma": 0.5, "pinned": {"head.fc": 8}}
    assert study.saved_frontier(**request) is None
    *_, last = study.frontier_steps(**request)
    assert last.done == last.total == len(last.result) == 61
    assert study.saved_frontier(**request) == last.result
    assert study.saved_frontier(as_request(2.5, **request)) == last.result  # whatever its own average bits
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
    document = allocation_document(study.model.name, study.settings, allocation, as_request(**request))
    study.kept.save(" small ", document)
    study.kept.save("other", document)
    again = Study("digits_swin", settings=SMALL(analysis_images=5), store=study.store)
    assert list(again.kept.all()) == ["small", "other"]
    assert study.allocate(request_of(again.kept.all()["small"])) == allocation
    study.kept.delete("small")
    assert list(again.kept.all()) == ["other"]
    amplified = Study("digits_swin", settings=SMALL(outlier_factor=4.0), store=study.store)
    assert amplified.kept.all() == {}  # bits belong to a model
    kept = mixqvit.Store(study.store.folder.parent / "copy")
    shutil.copytree(study.store.folder, kept.folder, dirs_exist_ok=True)
    kept.clear()
    again = Study("digits_swin", settings=SMALL(), store=kept)
    assert list(again.kept.all()) == ["other"]  # a person's own, which no run computes again
    with pytest.raises(AllocationError, match="name"):
        study.kept.save("  ", document)


def test_strategies_are_compared_by_what_they_measure(study):
    chosen = ("sensitivity", "uniform", "random")
    *_, last = study.compare_strategies_steps(chosen, as_request(3.0, strategy="inverse"))
    assert last.done == last.total
    assert tuple(last.result.results) == chosen
    assert last.result.refused == {}
    for name, result in last.result.results.items():
        assert result.allocation == study.allocate(average_bits=3.0, strategy=name)
        assert result.evaluation == study.evaluate(result.allocation)
        assert result.predicted_harm == study.predicted_harm(result.allocation.bits)
        assert (result.score_seconds > 0) == bool(study.scores.stages(name))
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible value"):
        list(study.compare_strategies_steps(chosen, size_bytes=200_000))
    steps = list(study.compare_strategies_steps(("clado", "random"), average_bits=3.0, tied=False))
    assert all(step.done <= step.total for step in steps)
    assert list(steps[-1].result.refused) == ["clado"]
    with pytest.raises(AllocationError, match="same bits"):
        list(study.compare_strategies_steps(("clado",), average_bits=3.0, tied=False))


@pytest.mark.slow
def test_scores_are_saved(study, monkeypatch):
    expected = {name: study.allocate(average_bits=3.0, strategy=name) for name in CRITERIA}
    again = Study("digits_swin", settings=SMALL(), store=study.store)
    for steps in (
        "hessian.hessian_trace_steps",
        "perturbation.squared_perturbations",
        "loss_change.loss_change_steps",
        "indicators.indicator_steps",
        "pairwise.pair_steps",
    ):
        monkeypatch.setattr(f"mixqvit.criteria.{steps}", lambda *_, **__: pytest.fail("computed again"))
    for name, allocation in expected.items():
        assert again.allocate(average_bits=3.0, strategy=name) == allocation


@pytest.mark.slow
def test_pairs_are_estimated_before_they_are_measured(study, tmp_path):
    list(study.score_steps("clado"))
    assert study.scores.estimate("clado") == 0
    assert 0 < Study("digits_swin", settings=SMALL(), store=mixqvit.Store(tmp_path)).scores.estimate("clado") < 600
    assert study.evaluations.by_itself()
    assert study.evaluations.estimate() > 0
