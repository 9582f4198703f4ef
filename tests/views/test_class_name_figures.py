"""Names of a thousand classes, short and whole."""

import pytest

from mixqvit.views import class_names

SHARK = "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (SHARK, "great white shark"),
        ("7", "7"),
        ("black-footed ferret, ferret", "black-footed ferr…"),
        (", odd", ", odd"),
    ],
)
def test_tight_places_have_the_first_synonym(name, short):
    assert class_names.shortened(name) == short


def test_classes_of_one_name_are_told_apart():
    assert class_names.class_labels(["crane", "dog", "crane"]) == ["crane (0)", "dog", "crane (2)"]
    assert class_names.short_names(["maillot", "dog, pet", "maillot, tank suit"]) == [
        "maillot (0)",
        "dog",
        "maillot (2)",
    ]


def test_a_list_of_choices_has_numbers_and_all_synonyms():
    assert class_names.numbered([SHARK, "1"]) == [f"0 · {SHARK}", "1"]


def test_many_classes_begin_with_the_label_and_the_likeliest():
    probabilities = [0.0] * 1000
    probabilities[500], probabilities[7], probabilities[999] = 0.5, 0.3, 0.2
    found = class_names.choices(probabilities, label=33, first=3)
    assert found[:5] == [33, 500, 7, 999, 0]
    assert sorted(found) == list(range(1000))
    assert class_names.choices(probabilities, label=None, first=3)[:3] == [500, 7, 999]


def test_few_classes_keep_their_order():
    assert class_names.choices([0.1, 0.2, 0.7], label=2) == [0, 1, 2]
