from math import isnan

import pytest
import torch
from scipy.stats import binomtest, entropy
from timm.models.vision_transformer import VisionTransformer

from mixqvit.errors import ImageError
from mixqvit.images.loading import load_images
from mixqvit.models.loading import load_model
from mixqvit.quantization.evaluation import evaluate, evaluate_steps
from mixqvit.tasks.classification import Classification
from mixqvit.tasks.evaluation import wilson_interval

TASK = Classification(4)


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
    torch.testing.assert_close(TASK.divergence(first, second).tolist(), [float(value) for value in expected])
    assert float(TASK.divergence(first, first).max()) == 0


def answers_to(logits, labels):
    return Classification(logits.shape[1]).reference_answers(logits, labels)


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
    assert found.kl == pytest.approx(float(TASK.divergence(reference, flipped).mean()))


def test_steps_accumulate(parts):
    pixels, labels, reference = parts
    seen = []

    def predict(batch):
        seen.append(len(batch))
        return batch @ torch.ones(3, 4) * torch.arange(4)

    steps = list(evaluate_steps(TASK, predict, pixels, labels, reference, batch_size=4))
    assert [step.images for step in steps] == [4, 8, 10]
    assert seen == [4, 4, 2]
    assert all(step.total == 10 for step in steps)
    assert steps[-1].predicted[:4] == steps[0].predicted


def test_without_labels_there_is_agreement_but_no_accuracy(parts):
    pixels, _, reference = parts
    found = evaluate(lambda batch: torch.zeros(len(batch), 4), pixels, None, reference)
    assert found.top1 is None
    assert found.interval is None
    assert 0 <= found.agreement_interval[0] <= found.agreement


def test_no_images_are_refused():
    with pytest.raises(ImageError, match="no evaluation images"):
        evaluate(lambda batch: batch, torch.zeros(0, 3), None, torch.zeros(0, 3))


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture(scope="module")
def sure_logits(digits):
    """Those of a trained model, right on nearly all images."""
    with torch.no_grad():
        return load_model("digits_vit").module(digits.pixels)


def test_labels_that_are_shifted_are_told_from_right_ones(sure_logits, digits):
    right = answers_to(sure_logits, digits.labels)
    assert (right.images, right.classes, right.choices, right.labels) == (500, 10, 10, 10)
    assert right.correct > 450
    assert right.confidence > 0.8
    assert right.notes == ()
    for shifted in ((digits.labels + 1) % 10, 9 - digits.labels):
        (note,) = answers_to(sure_logits, shifted).notes
        assert note.is_warning
        assert "the labels look shifted" in note.text
        (beside,) = evaluate(lambda pixels: pixels, sure_logits, shifted, sure_logits).notes
        assert beside == note
    few = answers_to(sure_logits[:30], (digits.labels[:30] + 1) % 10)
    assert few.labels_look_shifted
    two = torch.isin(digits.labels, torch.tensor((3, 5)))
    swapped = Classification(10, (3, 5)).reference_answers(sure_logits[two], 8 - digits.labels[two])
    assert (swapped.choices, swapped.labels) == (2, 2)
    assert swapped.labels_look_shifted


def test_labels_of_a_thousand_classes_that_are_a_sets_own_numbers():
    """Seven classes numbered 0 to 6 of which the model knows others: 5 % by accident is no knowledge."""
    labels = torch.arange(140) % 7
    logits = torch.zeros(140, 1000)
    predicted = torch.where(torch.arange(140) < 7, labels, 300 + labels)
    logits[torch.arange(140), predicted] = 9.0
    found = answers_to(logits, labels)
    assert found.correct == 7
    assert found.labels_look_shifted


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_an_untrained_model_does_not_raise_the_alarm(digits, classes):
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2}
    untrained = VisionTransformer(num_classes=classes, **shape).eval()
    with torch.no_grad():
        logits = untrained(digits.pixels[:200])
    assert answers_to(logits, digits.labels[:200] % classes).notes == ()


@pytest.mark.parametrize(
    ("correct", "probability"),
    [(8, 0.3), (50, 0.9), (16, 0.15)],  # honest on hard images, overconfident but above chance, hardly better
)
def test_a_poor_model_does_not_raise_the_alarm(correct, probability):
    labels = torch.arange(100) % 10
    answers = torch.where(torch.arange(100) < correct, labels, (labels + 1 + torch.arange(100) // 10 % 9) % 10)
    logits = torch.full((100, 10), (1 - probability) / 9).log()
    logits[torch.arange(100), answers] = torch.tensor(probability).log()
    found = answers_to(logits, labels)
    assert found.correct == correct
    assert found.confidence == pytest.approx(probability, abs=1e-6)
    assert not found.labels_look_shifted


def test_nothing_is_said_of_labels_that_are_not_there(sure_logits):
    found = answers_to(sure_logits, None)
    assert (found.labels, found.correct, found.notes) == (0, None, ())


def test_with_one_class_nothing_is_measured():
    pixels, labels = torch.randn(6, 1), torch.zeros(6, dtype=torch.long)
    found = evaluate(lambda batch: batch + 1, pixels, labels, pixels)
    assert not found.has_choice
    assert found.images == found.correct == found.agreeing == 6
    assert all(map(isnan, (found.top1, found.agreement, found.kl, *found.interval, *found.agreement_interval)))
    assert evaluate(lambda batch: batch, pixels, None, pixels).top1 is None


def test_within_one_of_several_classes_there_is_a_divergence_and_no_accuracy(sure_logits, digits):
    threes = digits.labels == 3
    logits, labels = sure_logits[threes], digits.labels[threes]
    found = evaluate(lambda batch: batch / 2, logits, labels, logits, among=(3,))
    assert isnan(found.top1) and isnan(found.agreement)
    assert found.kl > 0
