"""A study end to end on an embedded model cut to few images, so that it takes seconds."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import mixqvit
from mixqvit.errors import (
    CalibrationError,
    ImageError,
    InfeasibleBudgetError,
    MixQViTError,
    ModelError,
    UnsupportedOperationError,
)
from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.quantization.model import quantize
from mixqvit.relevance.methods import METHODS
from mixqvit.relevance.propagation import propagate
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study
from tests.small import SMALL


@pytest.fixture(scope="module")
def study(first_results, tmp_path_factory):
    store = mixqvit.Store(tmp_path_factory.mktemp("store"))
    return Study("digits_vit", settings=SMALL(), store=first_results.put("digits_vit", store))


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    return Study("digits_swin", settings=SMALL(), store=mixqvit.Store(tmp_path_factory.mktemp("swin")))


def test_importance_is_that_of_the_relevance_pass(study):
    found = study.relevance()
    expected = propagate(study.graph, study.calibration_images.subset(8).pixels)
    assert list(found.mean) == [layer.name for layer in study.layers]
    assert sum(found.mean.values()) == pytest.approx(1, rel=1e-5)
    for name, value in found.mean.items():
        assert value == pytest.approx(expected.importance[name], rel=1e-3)
        assert len(found.shares[name]) == 8
        assert found.shares[name] == pytest.approx(expected.shares[name].tolist(), rel=1e-3, abs=1e-6)


def test_flow_says_how_relevance_divides_at_every_residual_sum(study):
    found = study.relevance()
    assert [(step.block, step.branch) for step in found.flow][:3] == [(0, "attention"), (0, "mlp"), (1, "attention")]
    assert all(len(step.shares) == 8 and 0 <= min(step.shares) <= max(step.shares) <= 1 for step in found.flow)
    assert len(found.flow) == 2 * (1 + max(layer.block or 0 for layer in study.layers))
    assert found.seconds > 0


def test_importance_by_another_method_is_kept_apart(study, monkeypatch):
    found = study.relevance("gradient x activation")
    assert found.mean != study.relevance().mean
    assert sum(found.mean.values()) == pytest.approx(1)
    assert found.flow == ()
    again = Study("digits_vit", settings=SMALL(), store=study.store)
    monkeypatch.setattr("mixqvit.relevance.stages.importance_steps", lambda *_, **__: pytest.fail("computed again"))
    assert again.relevance("gradient x activation") == found
    assert again.relevance("chefer").flow == study.relevance().flow
    with pytest.raises(MixQViTError, match="no importance method 'lime'"):
        study.relevance("lime")


def test_costly_methods_take_fewer_images(study, monkeypatch):
    methods = {**METHODS, "gradient x activation": replace(METHODS["gradient x activation"], images=2)}
    monkeypatch.setattr("mixqvit.relevance.methods.METHODS", methods)
    other = Study("digits_vit", settings=SMALL(), store=study.store)
    assert {len(shares) for shares in other.relevance("gradient x activation").shares.values()} == {2}


@pytest.fixture(scope="module")
def two_methods():
    """Two quick methods instead of all: the comparison treats every method alike."""
    return {name: METHODS[name] for name in ("chefer", "gradient x activation")}


@pytest.mark.slow
def test_methods_are_compared_at_one_budget(study, two_methods, monkeypatch):
    monkeypatch.setattr("mixqvit.study.relevance.METHODS", two_methods)
    monkeypatch.setattr("mixqvit.relevance.stages.QUALITY_IMAGES", 1)
    steps = list(study.method_comparison_steps(3.0))
    found = steps[-1].result
    assert steps[-1].done == steps[-1].total
    done = [step.done for step in steps if step.total == steps[-1].total]
    assert done == sorted(done)
    assert list(found.methods) == list(two_methods)
    assert list(found.references) == ["sensitivity only", "uniform"]
    for method, result in found.methods.items():
        assert result.importance == study.relevance(method).mean
        for allocation, evaluation in (result.importance_only, result.with_sensitivity):
            assert allocation.cost.average_bits <= 3
            assert evaluation == study.evaluate(allocation)
        allocation = study.allocate(3.0, importance=result.importance)
        assert result.with_sensitivity[0].bits == allocation.bits
        # Ω alone: Λ := 4^(−w) + 4^(−a) (METHOD.md), the input of the patch embedding at its 8 bits.
        harms = {
            layer.name: {b: 4.0**-b + 4.0 ** -(8 if layer.kind == "patch_embed" else b) for b in BIT_WIDTHS}
            for layer in study.layers
        }
        alone = study.allocate(3.0, importance=result.importance, sensitivity=harms)
        assert result.importance_only[0].bits == alone.bits != allocation.bits
        names = list(result.importance)
        harms = [study.sensitivity()[name][4] for name in names]
        ranks = [np.argsort(np.argsort(values)) for values in ([result.importance[n] for n in names], harms)]
        assert result.correlation[4] == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert found.references["sensitivity only"][0].bits == study.allocate(3.0, gamma=0.0).bits
    assert found.references["sensitivity only"][0].bits != study.allocate(3.0).bits
    assert found.agreement["chefer", "gradient x activation"] == found.agreement["gradient x activation", "chefer"]
    assert found.methods["chefer"].infidelity > 0
    with pytest.raises(InfeasibleBudgetError):
        list(study.method_comparison_steps(1.0))


def test_quality_of_attributions_is_saved_and_absent_where_only_layers_are_explained(study, monkeypatch):
    found = list(study.relevances.quality_steps("gradient x activation"))[-1]
    assert found.total == 8
    assert all(value > 0 for value in found.result)
    monkeypatch.setattr("mixqvit.relevance.stages.attribution_quality_steps", lambda *_, **__: pytest.fail("again"))
    assert list(study.relevances.quality_steps("gradient x activation")) == [found]
    assert list(study.relevances.quality_steps("gradient x relevance"))[-1].result == (None, None)


@pytest.mark.slow
def test_sensitivity_covers_every_layer_and_bit_width(study):
    found = study.sensitivity()
    assert list(found) == [layer.name for layer in study.layers]
    assert all(tuple(row) == BIT_WIDTHS for row in found.values())
    assert len(study.saved_sensitivity()) == len(found) * len(BIT_WIDTHS)
    assert len(study.sensitivity("weights")) < len(found)


def test_an_allocation_stays_within_uniforms_cost_with_no_more_predicted_harm(study):
    mixed, beside = study.allocate(average_bits=4.0), study.uniform(4)
    assert mixed.harm <= beside.harm
    assert mixed.cost.size_bytes <= beside.cost.size_bytes
    assert mixed.cost.bitops <= beside.cost.bitops
    assert study.uniform_beside(mixed.budget) == beside
    assert study.allocation(mixed.bits).harm == pytest.approx(mixed.harm)


def test_what_is_evaluated_is_the_quantized_model(study):
    found = study.evaluate(3)
    images = study.evaluation_images
    logits = quantize(study.calibration(), 3)(images.pixels)
    assert found.images == 100
    assert found.top1 == pytest.approx(float((logits.argmax(1) == images.labels).double().mean()))
    assert study.evaluate(32).agreement == 1
    assert study.evaluate(study.uniform(3)) == found


def test_a_packed_allocation_has_its_cost_and_evaluates_as_it_does(study, tmp_path):
    allocation = study.allocate(size_bytes=400_000)
    found = study.pack(allocation, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size == allocation.cost.size_bytes <= 400_000
    assert found.weight_bytes == allocation.cost.weight_bytes
    *_, last = study.packing.evaluate_steps(tmp_path / "model.safetensors")
    assert last.done == last.total == 100
    assert last.result == study.evaluate(allocation)


def test_calibration_and_evaluation_images_are_disjoint(study):
    assert not set(study.calibration_images.names) & set(study.evaluation_images.names)


def test_one_image_is_explained_with_numbers_that_belong_together(study):
    found = study.image_relevance(3)
    size = study.model.input_size[1:]
    assert found.pixels.shape == size
    assert found.image.shape == (*size, 1)
    assert found.attribution.shape == (8, 8)
    assert found.probabilities.sum() == pytest.approx(1, rel=1e-5)
    assert found.predicted == int(found.probabilities.argmax()) == found.target
    other = study.image_relevance(3, target=(found.target + 1) % 10)
    assert not np.allclose(other.pixels, found.pixels)
    with pytest.raises(ImageError, match="numbered 0 to 99"):
        study.image_relevance(100)
    with pytest.raises(MixQViTError, match="no class 10"):
        study.image_relevance(0, 10)


def test_explanations_keep_nothing_else_alive(study):
    found = study.image_relevance(3)
    arrays = [found.image, found.pixels, found.probabilities, found.attribution]
    for by_stage in (found.tokens, found.heads, found.attribution_heads):
        arrays += by_stage.values()
    assert all(array.base is None for array in arrays)
    assert study.image_relevance(3) is found
    with pytest.raises(MixQViTError, match="whole numbers"):
        study.image_relevance(3, "predicted")


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """A study of a model that pools by the maximum, for which relevance has no rule."""
    model = mixqvit.load_model("digits_vit")
    store = mixqvit.Store(tmp_path_factory.mktemp("refused"))
    settings = Settings(calibration_images=2, analysis_images=1, evaluation_images=8)
    return Study(replace(model, module=_MaxPooled(model.module)), settings=settings, store=store)


class _MaxPooled(torch.nn.Module):
    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, x):
        return self.vit.head(self.vit.forward_features(x).amax(1))


@pytest.mark.slow
def test_models_without_relevance_are_allocated_by_sensitivity(refused, monkeypatch):
    with pytest.raises(UnsupportedOperationError, match="amax"):
        refused.relevance()
    assert refused.allocate(3.0, gamma=0.0).cost.average_bits <= 3
    methods = {name: METHODS[name] for name in ("chefer", "gradient x activation")}
    monkeypatch.setattr("mixqvit.study.relevance.METHODS", methods)
    found = list(refused.method_comparison_steps(3.0))[-1].result
    assert list(found.methods) == ["gradient x activation"]
    assert "amax" in found.refused["chefer"]


@pytest.mark.parametrize(("setting", "message"), [({"importance": "lime"}, "'lime'"), ({"measure": "most"}, "'most'")])
def test_unknown_settings_are_refused_when_the_study_opens(setting, message):
    with pytest.raises(MixQViTError, match=message):
        Study("digits_vit", settings=Settings(**setting))


def test_swin_has_no_class_token_rollout(swin):
    assert swin.image_relevance(0).attribution is None


def test_channels_of_every_post_layer_norm_layer_can_be_seen(study):
    names = [layer.name for layer in study.channels.layers]
    assert len(names) == 12
    assert list(study.channels.statistics()) == names
    ranges = study.channels.ranges(names[0], 4, clip=0.01)
    assert ranges is study.channels.ranges(names[0], 4, 0.01)
    assert ranges.statistics.upper.tolist() == study.channels.statistics()[names[0]].upper.tolist()
    assert study.channels.distribution(names[0], 95).patches.sum() == study.settings.calibration_images * 64
    assert study.channels.token_map(names[0], 79).values.shape == (65, 96)
    with pytest.raises(MixQViTError, match="no layer"):
        study.channels.ranges("nowhere", 4)
    with pytest.raises(ImageError, match="numbered 0 to 99"):
        study.channels.token_map(names[0], 100)


def test_harm_of_clipping_goes_on_where_it_was(study, monkeypatch):
    layer = study.channels.layers[-1].name
    first = next(study.channels.clip_harm_steps(layer, 3)).piece
    seen = []
    whole = mixqvit.quantization.outliers.clip_harm_steps
    monkeypatch.setattr(
        "mixqvit.quantization.outliers.clip_harm_steps",
        lambda *given, finished: seen.append(finished) or whole(*given, finished),
    )
    last = list(study.channels.clip_harm_steps(layer, 3))[-1]
    assert seen == [set(first)]
    assert last.done == last.total == len(last.result) == 21
    assert last.result.items() >= first.items()


def test_bad_input_is_refused_and_loses_nothing(study):
    before = study.sensitivity()
    with pytest.raises(InfeasibleBudgetError, match="smallest feasible"):
        study.allocate(average_bits=1.0)
    with pytest.raises(ModelError):
        Study("digits_vitt")
    with pytest.raises(CalibrationError, match="one bit setting"):
        Study("digits_vit", settings=Settings(recipe="repq-vit"), store=study.store)
    with pytest.raises(CalibrationError, match="no recipe 'best'"):
        Study("digits_vit", settings=Settings(recipe="best"), store=study.store)
    assert Study("digits_vit", settings=SMALL(), store=study.store).sensitivity() == before


def test_sessions_share_a_study_without_disturbing_each_other(study):
    expected = [study.evaluate(bits) for bits in (3, 5, 6)]
    fresh = Study("digits_vit", settings=SMALL(), store=study.store)
    found = [None] * 3

    def work(index, bits):
        found[index] = fresh.evaluate(bits)
        fresh.allocate(average_bits=4.0)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate((3, 5, 6))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
