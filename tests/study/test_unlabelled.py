"""Studies on images without labels, and top-1 among the classes that occur."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mixqvit
from mixqvit.allocation.request import as_request
from mixqvit.errors import ImageError
from mixqvit.images.loading import load_image_sets
from mixqvit.quantization.evaluation import evaluate
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study
from mixqvit.tasks.classification import Classification

SMALL = Settings(recipe="min-max", calibration_images=2, analysis_images=4, evaluation_images=24, importance="attnlrp")


def sets(labels=True, classes=range(10)):
    """The digits of some classes."""
    found = load_image_sets("digits", mixqvit.load_model("digits_vit"))

    def chosen(images, count):
        kept = torch.isin(images.labels, torch.tensor(list(classes))).nonzero()[:count, 0]
        names = tuple(images.names[index] for index in kept.tolist())
        own = images.labels[kept] if labels else None
        return replace(images, pixels=images.pixels[kept], labels=own, names=names)

    return replace(found, calibration=chosen(found.calibration, 6), evaluation=chosen(found.evaluation, 24))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    return Study("digits_vit", sets(labels=False), SMALL, mixqvit.Store(tmp_path_factory.mktemp("store")))


def test_metrics_that_compare_with_labels_are_refused(unlabelled, tmp_path):
    for metric in ("cross-entropy", "top1-drop"):
        with pytest.raises(ImageError, match=f"The metric {metric} compares with labels"):
            Study("digits_vit", sets(labels=False), replace(SMALL, metric=metric), mixqvit.Store(tmp_path))
        with pytest.raises(ImageError, match=f"The metric {metric} compares with labels"):
            unlabelled.sensitivity(metric=metric)
    assert set(unlabelled.metrics) == {"kl", "mse", "sqnr"}


def test_a_study_needs_no_labels(unlabelled):
    """From relevance to a measured allocation, with agreement and KL in place of accuracy."""
    assert sum(unlabelled.relevance().mean.values()) == pytest.approx(1)
    allocation = unlabelled.allocate(4.0)
    found = unlabelled.evaluate(allocation)
    assert found.images == 24
    assert found.correct is found.top1 is found.interval is None
    assert 0 < found.agreement <= 1
    assert found.kl > 0
    explained = unlabelled.image_relevance(0)
    assert explained.label is None
    again = Study("digits_vit", sets(labels=False), SMALL, unlabelled.store)
    assert again.saved_evaluation(allocation) == found


def test_the_criteria_need_no_labels(unlabelled):
    for strategy in ("hawq-v2", "mpqco", "limpq"):
        request = as_request(strategy=strategy)
        found = request.criterion.harms(unlabelled, request)
        assert list(found) == [layer.name for layer in unlabelled.layers]
        assert all(np.isfinite(list(row.values())).all() for row in found.values())


def test_what_is_measured_among_some_classes_is_counted_by_hand():
    torch.manual_seed(0)
    pixels, reference = torch.randn(40, 3), torch.randn(40, 6)
    other = reference + torch.randn(40, 6)
    labels = torch.randint(0, 2, (40,)) * 3 + 1  # classes 1 and 4
    lookup = dict(zip(map(tuple, pixels.tolist()), other, strict=True))
    found = evaluate(
        lambda batch: torch.stack([lookup[tuple(row)] for row in batch.tolist()]), pixels, labels, reference, (1, 4)
    )
    predicted = torch.where(other[:, 4] > other[:, 1], 4, 1)
    expected = torch.where(reference[:, 4] > reference[:, 1], 4, 1)
    assert found.predicted == tuple(predicted.tolist())
    assert found.correct == int((predicted == labels).sum())
    assert found.agreeing == int((predicted == expected).sum())
    assert found.kl == pytest.approx(float(Classification(6).divergence(reference, other).mean()))  # over all classes
    assert 40 > found.agreeing != int(Classification(6).agreeing(reference, other))


def test_a_study_within_its_classes(tmp_path):
    """Saved apart from the same study over all classes, with the same KL and logits."""
    store, images = mixqvit.Store(tmp_path), sets(classes=(2, 5, 7))
    over_all = Study("digits_vit", images, SMALL, store)
    within = Study("digits_vit", images, replace(SMALL, within_classes=True), store)
    assert over_all.task.scope is None
    assert within.task.scope == [2, 5, 7]
    measured, restricted = over_all.evaluate(2), within.evaluate(2)
    assert restricted.kl == measured.kl
    assert set(restricted.predicted) <= {2, 5, 7} and not set(measured.predicted) <= {2, 5, 7}
    assert restricted.correct >= measured.correct
    assert set(within.evaluations.reference()) <= {2, 5, 7}
    assert over_all.saved_evaluation(2) == measured
    assert within.saved_evaluation(2) == restricted
    path = tmp_path / "model.mixqvit"
    within.pack(2, path)
    *_, packed = within.packing.evaluate_steps(path)
    assert packed.result.predicted == restricted.predicted
