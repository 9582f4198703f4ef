import json
import random

import pytest

from mixqvit.allocation.budget import Allocation, Budget
from mixqvit.allocation.costs import Cost
from mixqvit.errors import RecipeError
from mixqvit.files.allocation_document import (
    LIMIT_BYTES,
    parse_recipe,
    read_recipe,
    recipe_bits,
    recipe_document,
    request_of,
    settings_of,
)
from mixqvit.study.settings import Settings
from mixqvit.tasks.evaluation import Evaluation

BITS = {"patch_embed.proj": (3, 8), "head": (32, 32), "attn.matmul1": (2, 2)}
REQUEST = {
    "average_bits": 3.5,
    "size_bytes": None,
    "cap_bitops": False,
    "gamma": 0.5,
    "pinned": {"head": 32, "attn.matmul1": (2, 2)},
    "allowed": {"fc1": (2, 4)},
    "at_least": {},
    "strategy": "mix-qvit",
    "tied": True,
}
SETTINGS = Settings(outlier_factor=8.0, metric="mse", evaluation_images=100)


@pytest.fixture
def document():
    allocation = Allocation(BITS, 0.25, Cost(10, 20, 30, 40, 500, 3.5), Budget(3.5))
    measured = Evaluation(100, 100, 90, 95, 0.125)
    return json.loads(json.dumps(recipe_document("digits_vit", SETTINGS, allocation, REQUEST, measured)))


def test_what_is_written_is_read_back(document, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(document))
    read = read_recipe(path)
    assert read == document
    assert recipe_bits(read) == BITS
    assert request_of(read) == {name: value for name, value in REQUEST.items() if value is not None}
    assert settings_of(read) == SETTINGS
    assert read["cost"]["size_bytes"] == 100
    assert read["measured"]["top1"] == 0.9
    assert read["predicted_harm"] == 0.25


def test_the_least_that_a_recipe_needs():
    read = parse_recipe('{"mixqvit_recipe": 1, "model": "digits_vit", "bits": {"head": [4, 4]}}')
    assert recipe_bits(read) == {"head": (4, 4)}
    assert request_of(read) == {}
    assert settings_of(read) == Settings()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixqvit_recipe": 2}, "reads version 1"),
        ({"model": 3}, "does not name its model"),
        ({"bits": {}}, "has no `bits`"),
        ({"bits": [1]}, "has no `bits`"),
        ({"bits": {"head": [4]}}, "layer head"),
        ({"bits": {"head": [4, 1]}}, "layer head"),
        ({"bits": {"head": [True, 4]}}, "layer head"),
        ({"bits": {"head": "44"}}, "layer head"),
        ({"request": []}, "`request` of"),
        ({"request": {"colour": "red"}}, "'colour'"),
        ({"request": {"gamma": "1"}}, "`gamma`"),
        ({"request": {"average_bits": float("nan")}}, "`average_bits`"),
        ({"request": {"pinned": {"head": 9}}}, "`pinned`"),
        ({"request": {"allowed": {"fc1": 4}}}, "`allowed`"),
        ({"request": {"tied": 1}}, "`tied`"),
        ({"request": {"cap_bitops": "yes"}}, "`cap_bitops`"),
        ({"request": {"average_bits": 10**400}}, "`average_bits`"),
        ({"request": {"bitops": True}}, "`bitops`"),
        ({"request": {"seed": 1.5}}, "`seed`"),
        ({"request": {"seed": -1}}, "`seed`"),
        ({"request": {"strategy": "best"}}, "`strategy`"),
        ({"request": {"strategy": ["uniform"]}}, "`strategy`"),
        ({"request": {"pinned": {"head": [4, 4, 4]}}}, "`pinned`"),
        ({"request": {"pinned": {"head": [4, None]}}}, "`pinned`"),
        ({"request": {"at_least": {"head": [4, 4]}}}, "`at_least`"),
        ({"request": {"at_least": {"head": 32}}}, "`at_least`"),
        ({"request": {"at_most": {"head": 4.0}}}, "`at_most`"),
        ({"request": {"allowed": {"fc1": [4, 32]}}}, "`allowed`"),
        ({"request": {"allowed": {"fc1": [[4, 4]]}}}, "`allowed`"),
        ({"recipe": 3}, "`recipe` of"),
        ({"recipe": "minmax"}, "two quantization recipes"),
        ({"settings": {"calibration_images": 10**400}}, "`calibration_images`"),
    ],
)
def test_a_recipe_that_cannot_be_used_says_why(document, change, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(json.dumps(document | change))


@pytest.mark.parametrize(
    "settings",
    [
        {"colour": 1},
        {"recipe": 3},
        {"calibration_images": "8"},
        {"calibration_images": 2.5},
        {"calibration_images": True},
        {"calibration_images": 0},
        {"analysis_images": -1},
        {"outlier_channels": 0},
        {"evaluation_images": True},
        {"evaluation_images": 0},
        {"calibration_seed": -1},
        {"baseline": 10**400},
        {"outlier_factor": float("inf")},
        {"outlier_factor": 0},
        {"outlier_factor": 1e7},
        {"outlier_factor": True},
        {"metric": None},
    ],
)
def test_settings_that_cannot_be_used_say_why(document, settings):
    with pytest.raises(RecipeError, match="settings"):
        settings_of(document | {"settings": settings})


def test_what_is_null_in_a_request_is_not_given(document):
    assert request_of(document | {"request": {"gamma": None, "pinned": None, "tied": None}}) == {}


def test_a_pin_is_one_width_or_a_pair_full_precision_included(document):
    pins = {"a": 2, "b": 32, "c": [4, 8], "d": [32, 4]}
    assert request_of(document | {"request": {"pinned": pins}})["pinned"] == {
        "a": 2,
        "b": 32,
        "c": (4, 8),
        "d": (32, 4),
    }


def test_whole_numbers_written_as_floats_are_integers(document):
    settings = settings_of(document | {"settings": {"calibration_images": 16.0, "evaluation_images": 50.0}})
    assert settings == Settings(calibration_images=16, evaluation_images=50)
    assert type(settings.calibration_images) is type(settings.evaluation_images) is int
    assert type(request_of(document | {"request": {"seed": 3.0}})["seed"]) is int


def test_the_quantization_recipe_is_named_outside_the_settings_too(document):
    assert settings_of(document | {"recipe": "minmax", "settings": {}}).recipe == "minmax"
    assert settings_of(document | {"recipe": "minmax", "settings": {"recipe": "minmax"}}).recipe == "minmax"
    assert settings_of(document | {"recipe": None, "settings": {"recipe": "minmax"}}).recipe == "minmax"


def test_a_message_stays_short_whatever_the_file_says(document):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(json.dumps(document | {"request": {"strategy": "x" * 10_000}}))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "is no recipe"),
        (b'{"bits": {}}', "is no recipe"),
        (b" " * (LIMIT_BYTES + 1), "larger than 10 MB"),
    ],
)
def test_a_file_that_is_no_recipe_says_so(tmp_path, content, message):
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"nothing\.json cannot be read"):
        read_recipe(tmp_path / "nothing.json")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path)


def mutated(document: object, draw: random.Random) -> object:
    """Return the document with one of its values, at any depth, replaced, renamed or removed."""
    if isinstance(document, dict) and document and draw.random() < 0.8:
        key = draw.choice(list(document))
        change = draw.random()
        changed = {name: value for name, value in document.items() if name != key or change > 0.15}
        if change > 0.25:
            changed[key] = mutated(document[key], draw)
        elif change > 0.15:
            changed[draw.choice(["", "head", "\u0000", "x" * 10**5])] = changed.pop(key)
        return changed
    if isinstance(document, list) and document and draw.random() < 0.8:
        place = draw.randrange(len(document))
        return [*document[:place], mutated(document[place], draw), *document[place + 1 :]]
    strange = [None, True, -1, 0, 9, 10**400, 1e308, float("nan"), float("inf"), "", "4", [], {}, [[]], {"a": {}}]
    return draw.choice(strange)


@pytest.mark.parametrize("seed", range(150))
def test_a_mutated_recipe_is_read_or_refused_in_one_sentence(document, seed):
    draw = random.Random(seed)
    changed = document
    for _ in range(draw.randrange(1, 4)):
        changed = mutated(changed, draw)
    text = json.dumps(changed)
    if seed % 5 == 0:  # some are cut or spliced as texts
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice(["", "[" * 10**5, "\ud800", text[:place]])
    try:
        read = parse_recipe(text.encode("utf-8", "surrogatepass"))
        recipe_bits(read)
        request_of(read)
        settings_of(read)
    except RecipeError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
