from math import log

import numpy as np
import pytest
import torch

from mixqvit.criteria.sensitivity.metrics import METRICS, effect, find_metric, harm, intervals
from mixqvit.errors import ImageError, MixQViTError


def logits(seed, images=6, classes=4):
    return torch.randn(images, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_metric_is_its_definition():
    before, after, labels = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 0, 1])
    found = effect(before, after, labels)
    p, q = before.softmax(1), after.softmax(1)
    rows = range(len(labels))
    expected = {
        "kl": sum(float((p[n] * (p[n] / q[n]).log()).sum()) for n in rows) / 6,
        "cross-entropy": sum(log(p[n, labels[n]] / q[n, labels[n]]) for n in rows) / 6,
        "top1-drop": sum(int(before[n].argmax() == labels[n]) - int(after[n].argmax() == labels[n]) for n in rows) / 6,
        "mse": float(((before - after) ** 2).sum()) / 24,
        "sqnr": float(((before - after) ** 2).sum() / (before**2).sum()),
    }
    assert set(expected) == set(METRICS)
    for name, value in expected.items():
        assert harm(METRICS[name], found) == pytest.approx(value, rel=1e-12), name


def test_nothing_changed_is_no_harm():
    found = effect(logits(0), logits(0), torch.zeros(6, dtype=torch.long))
    assert [harm(metric, found) for metric in METRICS.values()] == [0.0] * len(METRICS)


def test_intervals_are_quantiles_of_means_over_images_drawn_again():
    before, labels = logits(0, 40), torch.zeros(40, dtype=torch.long)
    effects = [effect(before, before + scale * logits(2, 40), labels) for scale in (0.1, 1.0)]
    random = np.random.default_rng(1)
    for name in ("kl", "sqnr", "top1-drop"):
        metric = METRICS[name]
        for found, (low, high) in zip(effects, intervals(metric, effects), strict=True):
            drawn = []
            for _ in range(2000):  # the definition, with other random numbers
                images = random.integers(0, 40, 40)
                top = metric.per_image(found)[images].mean()
                drawn.append(top if metric.relative_to is None else top / metric.relative_to(found)[images].mean())
            width = np.quantile(drawn, 0.975) - np.quantile(drawn, 0.025)
            assert low == pytest.approx(np.quantile(drawn, 0.025), abs=0.15 * width + 1e-12)
            assert high == pytest.approx(np.quantile(drawn, 0.975), abs=0.15 * width + 1e-12)
            assert low <= harm(metric, found) <= high
    assert intervals(METRICS["kl"], effects) == intervals(METRICS["kl"], effects)  # seeded
    assert intervals(METRICS["kl"], []) == []


def test_metrics_that_need_labels_say_so():
    found = effect(logits(0), logits(1), None)
    for metric in METRICS.values():
        if metric.needs_labels:
            with pytest.raises(ImageError, match="needs none: kl, mse, sqnr"):
                harm(metric, found)
    with pytest.raises(MixQViTError, match="no metric 'psnr'"):
        find_metric("psnr")
