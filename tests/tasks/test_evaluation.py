import pytest
import torch
from scipy.stats import binomtest, entropy

from mixqvit.errors import ImageError
from mixqvit.tasks.evaluation import evaluate, evaluate_steps, kl_divergence, wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (7, 10), (493, 500), (1, 1)])
def test_the_interval_is_scipys(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    low, high = wilson_interval(successes, trials)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_kl_is_scipys_per_image():
    first, second = torch.randn(6, 4), torch.randn(6, 4)
    expected = [
        entropy(p, q)
        for p, q in zip(first.double().softmax(1).numpy(), second.double().softmax(1).numpy(), strict=True)
    ]
    torch.testing.assert_close(kl_divergence(first, second).tolist(), [float(value) for value in expected])
    assert float(kl_divergence(first, first).max()) == 0


@pytest.fixture
def parts():
    torch.manual_seed(0)
    pixels = torch.randn(10, 3)
    reference = torch.randn(10, 4)
    labels = reference.argmax(dim=1).clone()
    labels[:3] = (labels[:3] + 1) % 4
    return pixels, labels, reference


def test_what_is_measured_is_counted_by_hand(parts):
    pixels, labels, reference = parts
    flipped = reference.clone()
    flipped[8:] = -flipped[8:]
    lookup = {tuple(row.tolist()): logits for row, logits in zip(pixels, flipped, strict=True)}
    found = evaluate(lambda batch: torch.stack([lookup[tuple(row.tolist())] for row in batch]), *parts)
    predicted = flipped.argmax(dim=1)
    assert found.correct == int((predicted == labels).sum())
    assert found.agreement == float((predicted == reference.argmax(dim=1)).double().mean())
    assert found.kl == pytest.approx(float(kl_divergence(reference, flipped).mean()))


def test_steps_accumulate_and_resume(parts):
    pixels, labels, reference = parts
    seen = []

    def predict(batch):
        seen.append(len(batch))
        return batch @ torch.ones(3, 4) * torch.arange(4)

    steps = list(evaluate_steps(predict, pixels, labels, reference, batch_size=4))
    assert [step.images for step in steps] == [4, 8, 10]
    assert seen == [4, 4, 2]
    *_, resumed = evaluate_steps(predict, pixels, labels, reference, batch_size=4, finished=steps[0])
    assert seen == [4, 4, 2, 4, 2]
    assert resumed.correct == steps[-1].correct
    assert resumed.kl == pytest.approx(steps[-1].kl)


def test_without_labels_there_is_agreement_but_no_accuracy(parts):
    pixels, _, reference = parts
    found = evaluate(lambda batch: torch.zeros(len(batch), 4), pixels, None, reference)
    assert found.top1 is None
    assert found.interval is None
    assert 0 <= found.agreement_interval[0] <= found.agreement


def test_no_images_are_refused():
    with pytest.raises(ImageError, match="no evaluation images"):
        evaluate(lambda batch: batch, torch.zeros(0, 3), None, torch.zeros(0, 3))
