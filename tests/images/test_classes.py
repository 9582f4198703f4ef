import pytest

from mixqvit.errors import ImageError
from mixqvit.images.classes import class_indices
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


def test_numbers_are_indices_not_words() -> None:
    model = tiny_model(12)
    names = [str(number) for number in range(12)]
    assert matched(names, model) == {name: int(name) for name in names}


def test_another_number_of_names_says_so() -> None:
    with pytest.raises(ImageError, match=r"photos has 2 sub-folders with images, tiny has 3 classes.*cow, dog"):
        matched(["cow", "dog"], tiny_model(3))
