from math import log

import numpy as np
import pytest
import torch

from mixqvit.errors import ImageError, MixQViTError
from mixqvit.tasks.classification import METRICS, Classification

TASK = Classification(4)


def logits(seed, images=6, classes=4):
    return torch.randn(images, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_metric_is_its_definition():
    before, after, labels = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 0, 1])
    found = TASK.effect(before, after, labels)
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
        assert METRICS[name].harm(found) == pytest.approx(value, rel=1e-12), name


def test_nothing_changed_is_no_harm():
    found = TASK.effect(logits(0), logits(0), torch.zeros(6, dtype=torch.long))
    assert [metric.harm(found) for metric in METRICS.values()] == [0.0] * len(METRICS)


def test_intervals_are_quantiles_of_means_over_images_drawn_again():
    before, labels = logits(0, 40), torch.zeros(40, dtype=torch.long)
    effects = [TASK.effect(before, before + scale * logits(2, 40), labels) for scale in (0.1, 1.0)]
    random = np.random.default_rng(1)
    for name in ("kl", "sqnr", "top1-drop"):
        metric = METRICS[name]
        for found, (low, high) in zip(effects, metric.intervals(effects), strict=True):
            drawn = []
            for _ in range(2000):  # the definition, with other random numbers
                images = random.integers(0, 40, 40)
                top = found[metric.quantity][images].mean()
                drawn.append(top if metric.relative_to is None else top / found[metric.relative_to][images].mean())
            width = np.quantile(drawn, 0.975) - np.quantile(drawn, 0.025)
            assert low == pytest.approx(np.quantile(drawn, 0.025), abs=0.15 * width + 1e-12)
            assert high == pytest.approx(np.quantile(drawn, 0.975), abs=0.15 * width + 1e-12)
            assert low <= metric.harm(found) <= high
    assert METRICS["kl"].intervals(effects) == METRICS["kl"].intervals(effects)  # seeded
    assert METRICS["kl"].intervals([]) == []


def test_metrics_that_need_labels_say_so():
    found = TASK.effect(logits(0), logits(1), None)
    for name, metric in METRICS.items():
        if metric.needs_labels:
            with pytest.raises(ImageError, match="needs none: kl, mse, sqnr"):
                TASK.metric(name, has_labels=False)
            with pytest.raises(ImageError, match="Choose one that needs none"):
                metric.harm(found)
            with pytest.raises(ImageError, match="Choose one that needs none"):
                metric.intervals([found])
        assert TASK.metric(name) is metric
    with pytest.raises(MixQViTError, match="no metric 'psnr'"):
        TASK.metric("psnr")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("kl", "0.01\u00a0nats"),
        ("top1-drop", "1\u00a0% of the images"),
        ("mse", "0.01\u00a0squared logits"),
        ("sqnr", "0.01 (SQNR 20.0\u00a0dB)"),
    ],
)
def test_a_harm_is_written_with_its_unit(metric, words):
    assert METRICS[metric].in_words(0.01) == words
