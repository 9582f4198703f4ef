"""What is asked of a classifier's logits: losses and their curvature, the question of relevance, quality, notes."""

from dataclasses import replace

import pytest
import torch

from mixqvit.errors import MixQViTError
from mixqvit.images.images import Images
from mixqvit.tasks.classification import Classification
from mixqvit.tasks.evaluation import AGREEMENT, TOP1
from mixqvit.tasks.task import joined
from mixqvit.views.overview import caption

TASK = Classification(3)
LOGITS = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)


def test_distillation_loss_is_zero_for_equal_models_and_the_divergence_otherwise():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]], dtype=torch.float64)
    assert TASK.distillation_loss(logits, logits).abs().max() < 1e-7
    assert TASK.distillation_loss(logits + 5, logits).abs().max() < 1e-6  # the same probabilities
    other = logits.flip(0)
    expected = [
        sum(float(p) * float(torch.log(p / q)) for p, q in zip(wanted.softmax(0), own.softmax(0), strict=True))
        for own, wanted in zip(logits, other, strict=True)
    ]
    assert TASK.distillation_loss(logits, other).tolist() == pytest.approx(expected, rel=1e-5)
    unchanged = logits.float().requires_grad_()
    TASK.distillation_loss(unchanged, logits).sum().backward()
    assert unchanged.grad.abs().max() < 1e-6


def test_the_root_of_the_curvature_squares_to_the_hessian_of_the_loss():
    for row in LOGITS:
        hessian = torch.autograd.functional.hessian(lambda values: TASK.loss(values[None], torch.tensor([1])), row)
        root = TASK.curvature_root(row.expand(3, 3))(torch.eye(3))  # B applied to each unit vector
        torch.testing.assert_close(root.mT @ root, hessian)


def test_the_loss_is_the_cross_entropy_with_labels_or_with_its_own_decisions():
    logs = LOGITS.log_softmax(1)
    assert float(TASK.loss(LOGITS, torch.tensor([0, 1]))) == pytest.approx(float(-logs[0, 0] - logs[1, 1]))
    assert float(TASK.loss(LOGITS, None)) == pytest.approx(float(-logs[0, 1] - logs[1, 2]))


@pytest.mark.parametrize("targets", [2, torch.tensor(2), torch.tensor([2, 2]), torch.tensor([2, 2], dtype=torch.int32)])
def test_a_question_names_a_class_for_every_image(targets):
    question = TASK.question(targets, 2)
    assert question.tolist() == [2, 2]
    explained = TASK.explained(LOGITS, question)
    assert TASK.score(LOGITS, explained).tolist() == [0.5, 3.0]
    assert TASK.start(LOGITS, explained).tolist() == [[0, 0, 1], [0, 0, 1]]


def test_without_a_question_the_decision_is_explained_among_all_classes():
    assert TASK.question(None, 2) is None
    assert TASK.explained(LOGITS, None).tolist() == Classification(3, (0,)).explained(LOGITS, None).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (3, "no class 3 to explain; they are numbered 0 to 2"),
        (torch.tensor([0, -1]), "no class -1"),
        (torch.tensor([0]), "2 images need 2"),
        (1.0, "whole numbers"),
        (torch.tensor([True, False]), "whole numbers"),
    ],
)
def test_questions_about_what_there_is_not_are_refused(targets, message):
    with pytest.raises(MixQViTError, match=message):
        TASK.question(targets, 2)


def test_answers_of_parts_are_those_of_the_whole():
    reference, labels = LOGITS.flip(0), torch.tensor([1, 0])
    parts = [TASK.answers(LOGITS[:1], reference[:1]), TASK.answers(LOGITS[1:], reference[1:])]
    assert joined(parts) == TASK.answers(LOGITS, reference)
    answers = TASK.reference_answers(reference, labels)
    first, whole = TASK.evaluation(parts[0], answers), TASK.evaluation(joined(parts), answers)
    assert (first.images, first.total, first.correct, first.agreeing) == (1, 2, 1, 0)
    assert (whole.images, whole.total, whole.correct, whole.agreeing) == (2, 2, 1, 0)
    assert int(TASK.agreeing(LOGITS, LOGITS)) == 2
    assert int(TASK.agreeing(LOGITS, reference)) == 0


def test_labels_decide_what_stands_for_accuracy():
    answers = TASK.answers(LOGITS, LOGITS)
    for labels, accuracy in ((torch.tensor([1, 0]), TOP1), (None, AGREEMENT)):
        found = TASK.evaluation(answers, TASK.reference_answers(LOGITS, labels))
        assert found.accuracy is TASK.accuracy(labels is not None) is accuracy


def test_decisions_within_the_classes_of_the_labels():
    within = Classification(1000).within(torch.tensor([7, 2]), torch.tensor([2, 5]))
    assert within.scope == [2, 5, 7]
    assert "among 3 of the 1,000 classes" in within.scope_words
    assert (TASK.scope, TASK.scope_words) == (None, "")
    logits = torch.tensor([[9.0, 1.0, 2.0, 3.0], [0.0, 5.0, 4.0, 9.0], [1.0, 2.0, 0.0, 0.0]])
    assert Classification(4).predicted(logits) == [0, 3, 1]
    assert Classification(4, (1, 2)).predicted(logits) == [2, 1, 1]
    assert Classification(4, (0, 2)).predicted(logits) == [0, 2, 0]


@pytest.mark.parametrize(
    ("task", "images", "words", "warning"),
    [
        (TASK, 29, "only 29 evaluation images", False),
        (TASK, 1, "one evaluation image", True),
        (Classification(1), 30, "model has one class", True),
        (Classification(3, (2,)), 30, "within one class", True),
    ],
)
def test_what_is_too_little_to_measure_is_said(task, images, words, warning):
    (note,) = task.notes(images)
    assert words in note.text
    assert note.is_warning is warning
    assert TASK.notes(30) == ()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_example_is_the_picture_with_the_name_of_its_class(channels):
    pixels = torch.rand(2, channels, 4, 5)
    images = Images("", "", pixels, torch.tensor([2, 0]), ("ant", "bee", "cat, puss"), ("a", "b"), (0.0,), (1.0,))
    found = TASK.example(images, 0)
    assert found.picture.shape == ((4, 5) if channels == 1 else (4, 5, 3))
    assert found.picture == pytest.approx(pixels[0].permute(1, 2, 0).numpy().reshape(found.picture.shape))
    assert (found.label, found.alt) == ("cat, puss", "Image a, labelled cat, puss")
    assert caption(found) == "cat"
    bare = TASK.example(replace(images, labels=None), 1)
    assert (bare.label, bare.alt, caption(bare)) == (None, "Image b", "b")
