import re
from collections.abc import Iterable

import pytest
from timm.utils.misc import natural_key

from mixqvit.errors import ImageError
from mixqvit.images.classes import class_indices
from mixqvit.images.labels import LABEL_ORDERS
from mixqvit.images.sampling import Sampling
from mixqvit.models.model import Model
from tests.images.files import imagenet_model, tiny_model


@pytest.fixture(scope="module")
def imagenet() -> Model:
    return imagenet_model()


def matched(names: list[str], model: Model, **options: object) -> dict[str, int]:
    return class_indices(names, model, "photos", "sub-folder", **options)[0]


def test_wordnet_ids_and_names_of_imagenet(imagenet: Model) -> None:
    names = {
        "n01440764": 0,
        "N01491361": 3,
        "tench": 0,
        "Great_White-Shark": 2,
        "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias": 2,
        "white shark": 2,
        "goldenretriever": 207,
        "toilet_tissue": 999,
    }
    for name, index in names.items():
        assert matched([name], imagenet) == {name: index}
    assert matched(["tench", "n01491361", "goldfish"], imagenet) == {"tench": 0, "n01491361": 3, "goldfish": 1}


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("crane", ("n02012849", "n03126707")),
        ("Maillot", ("n03710637", "n03710721")),
        ("cardigan", ("n02113186", "n02963159")),
        ("panda", ("n02509815", "n02510455")),
    ],
)
def test_ambiguous_names_are_refused_with_both_ids(imagenet: Model, name: str, ids: tuple[str, str]) -> None:
    with pytest.raises(ImageError) as error:
        matched([name, "tench"], imagenet)
    assert f"{name} of photos is ambiguous" in str(error.value)
    assert all(wordnet in str(error.value) for wordnet in ids)


def test_ambiguous_names_are_unique_in_full(imagenet: Model) -> None:
    assert matched(["maillot, tank suit", "Cardigan, Cardigan Welsh corgi"], imagenet) == {
        "maillot, tank suit": 639,
        "Cardigan, Cardigan Welsh corgi": 264,
    }


def test_unknown_names_come_with_the_closest_class(imagenet: Model) -> None:
    with pytest.raises(ImageError, match=r"1 of 2 sub-folders.*goldfsh \(goldfsh is closest to n01443537 \(goldfish"):
        matched(["goldfsh", "tench"], imagenet)
    with pytest.raises(ImageError, match=r"n01440765 is closest to n01440764 \(tench"):
        matched(["n01440765", "n01443537"], imagenet)


def test_a_fine_tuned_models_own_names() -> None:
    model = tiny_model(["red panda", "snow-leopard", "tiger"])
    assert matched(["Snow Leopard", "tiger"], model) == {"Snow Leopard": 1, "tiger": 2}


def test_order_decides_where_no_name_is_known() -> None:
    model = tiny_model(3)
    indices, note = class_indices(["cow", "ant", "bee"], model, "photos", "sub-folder")
    assert indices == {"ant": 0, "bee": 1, "cow": 2}
    assert "their order decides, from ant for class 0 to cow for class 2" in note
    assert matched(["bee"], model, order=["cow", "bee", "ant"]) == {"bee": 1}


def labels_matched(names: list[str], classes: int, **options: object) -> list[int]:
    """The classes of labels of a table, in the order given."""
    indices, _ = class_indices(names, tiny_model(classes), "photos.csv", "label", **options)
    return [indices[name] for name in names]


def test_labels_that_are_all_numbers_from_0_on_are_indices_not_words() -> None:
    names = [str(number) for number in range(12)]
    assert labels_matched(names, 12) == list(range(12))
    assert "class indices, counted from 0" in class_indices(names, tiny_model(12), "photos.csv", "label")[1]


@pytest.mark.parametrize(
    ("names", "classes", "why"),
    [
        (range(1, 13), 12, "12 number(s) from 1 to 12"),  # a list that counts from 1, or ILSVRC's own numbers
        (range(7), 1000, "7 number(s) from 0 to 6"),  # a set's own numbers
        ([3, 207, 999], 1000, "3 number(s) from 3 to 999"),
    ],
)
def test_labels_that_are_other_numbers_are_asked_about(names: Iterable[int], classes: int, why: str) -> None:
    with pytest.raises(
        ImageError, match=f"not certain: tiny has {classes} classes, and they are {re.escape(why)}.*--label-order"
    ):
        labels_matched([str(number) for number in names], classes)


@pytest.mark.parametrize("first", [0, 1])
def test_folders_of_numbers_are_asked_about_where_text_sorts_otherwise(first: int) -> None:
    names, model = [str(number) for number in range(first, first + 12)], tiny_model(12)
    with pytest.raises(ImageError, match=r"sorted as text 1\d is class \d, sorted by number 2.*--label-order"):
        matched(names, model)
    by_number = matched(names, model, label_order="number")
    assert [by_number[name] for name in sorted(names, key=natural_key)] == list(range(12))
    as_text = matched(names, model, label_order="torchvision")
    assert [as_text[name] for name in sorted(names)] == list(range(12))
    padded = [f"{number:02d}" for number in range(first, first + 12)]
    assert matched(padded, model) == {name: place for place, name in enumerate(padded)}


def test_folders_with_numbers_and_capitals_in_their_names_are_asked_about_too() -> None:
    for names in (["kind10", "kind2", "kind1"], ["Zebra", "ant", "cow"]):
        with pytest.raises(ImageError, match="--label-order"):
            matched(names, tiny_model(3))
        by_number = matched(names, tiny_model(3), label_order="number")
        assert sorted(names, key=by_number.get) == sorted(names, key=natural_key)
        as_text = matched(names, tiny_model(3), label_order="torchvision")
        assert sorted(names, key=as_text.get) == sorted(names)


def test_what_the_order_of_labels_says() -> None:
    assert labels_matched(["1", "2", "3"], 3, label_order="number") == [0, 1, 2]
    assert labels_matched(["3", "207"], 1000, label_order="number") == [3, 207]
    with pytest.raises(ImageError, match=r"label 1000 of photos\.csv is no class of tiny, whose classes are 0 to 999"):
        labels_matched(["3", "1000"], 1000, label_order="number")
    with pytest.raises(ImageError, match=r"2 different labels, tiny has 1000 classes: an order says"):
        labels_matched(["3", "207"], 1000, label_order="torchvision")
    with pytest.raises(ImageError, match=r"2 different labels, tiny has 2 classes: name the labels"):
        labels_matched(["0", "1"], 2, label_order="names")
    named = tiny_model(["1", "2", "0"])
    for label_order in (None, *LABEL_ORDERS):
        assert matched(["0", "1", "2"], named, label_order=label_order) == {"1": 0, "2": 1, "0": 2}
    with pytest.raises(ImageError, match="no order of labels 'size'"):
        Sampling(label_order="size")


@pytest.mark.parametrize("names", [["train", "other"], ["dev"], ["cat"], ["bird", "car"]])
def test_common_words_are_no_misspelt_classes(imagenet: Model, names: list[str]) -> None:
    with pytest.raises(ImageError, match="to measure without labels, put all images into one folder") as error:
        matched(names, imagenet)
    assert "name the sub-folders by the model's classes" in str(error.value)
    assert "closest" not in str(error.value)


def test_another_number_of_names_says_so() -> None:
    with pytest.raises(ImageError, match=r"photos has 2 sub-folders with images, tiny has 3 classes.*cow, dog"):
        matched(["cow", "dog"], tiny_model(3))
