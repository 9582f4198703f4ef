"""The notes of a study: those of its model and images as sentences, and what is too little to measure on."""

from dataclasses import replace

import pytest

import mixqvit
from mixqvit.images.loading import load_image_sets
from mixqvit.notes import Note, as_sentence
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study

ENOUGH = Settings(calibration_images=8, analysis_images=8, evaluation_images=30)


@pytest.fixture(scope="module")
def model():
    return mixqvit.load_model("digits_vit")


@pytest.fixture(scope="module")
def sets(model):
    return load_image_sets("digits", model)


def notes(model, sets, settings=ENOUGH, calibration=8, evaluation=30):
    chosen = replace(
        sets, calibration=sets.calibration.subset(calibration), evaluation=sets.evaluation.subset(evaluation)
    )
    return Study(model, chosen, settings).notes


def test_there_are_none_where_nothing_was_assumed(model, sets):
    assert notes(model, sets) == ()


def test_what_model_and_images_say_comes_first_in_sentences(model, sets):
    told = replace(model, notes=("The architecture was guessed.",))
    sample = replace(sets.sample, notes=("the split test is left out",))
    assert [str(note) for note in notes(told, replace(sets, sample=sample))] == [
        "note: The architecture was guessed.",
        "note: The split test is left out.",
    ]


@pytest.mark.parametrize(
    ("changed", "text", "is_warning"),
    [
        ({"calibration": 7}, "only 7 calibration images", False),
        ({"settings": replace(ENOUGH, analysis_images=5)}, "only 5 calibration images", False),
        ({"settings": replace(ENOUGH, calibration_images=1)}, "one calibration image", True),
        ({"evaluation": 29}, "only 29 evaluation images", False),
        ({"evaluation": 1}, "one evaluation image", True),
    ],
)
def test_too_few_images_are_noted(model, sets, changed, text, is_warning):
    (note,) = notes(model, sets, **changed)
    assert text in note.text
    assert note.is_warning == is_warning


def test_one_class_among_the_images_is_no_choice(model, sets):
    def only_threes(images):
        return images.reordered((images.labels == 3).nonzero()[:, 0].tolist())

    threes = replace(sets, calibration=only_threes(sets.calibration), evaluation=only_threes(sets.evaluation))
    within = replace(ENOUGH, within_classes=True)
    (note,) = Study(model, threes, within).notes
    assert note.is_warning and "within one class" in note.text
    assert notes(model, threes) == ()


def test_shifted_labels_are_known_once_the_images_have_been_run(model, sets, tmp_path):
    shifted = replace(sets.evaluation.subset(100), labels=(sets.evaluation.labels[:100] + 1) % 10)
    study = Study(model, replace(sets, evaluation=shifted), ENOUGH, mixqvit.Store(tmp_path))
    assert study.notes == ()
    evaluation = study.evaluate(32)
    assert study.notes == evaluation.notes
    assert study.notes[0].is_warning
    assert study.saved_evaluation(32).notes == evaluation.notes


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("the split test is left out", "The split test is left out."),
        ("vit_tiny fits as well", "vit_tiny fits as well."),
        (" Which one? ", "Which one?"),
    ],
)
def test_messages_become_sentences(message, sentence):
    assert as_sentence(message) == sentence
    assert str(Note(sentence, is_warning=True)) == f"warning: {sentence}"
