import json

import pytest

from mixqvit.allocation import Allocation, Budget
from mixqvit.allocation_recipe import (
    LIMIT_BYTES,
    parse_recipe,
    read_recipe,
    recipe_bits,
    recipe_document,
    request_of,
    settings_of,
)
from mixqvit.costs import Cost
from mixqvit.errors import RecipeError
from mixqvit.evaluation import Evaluation
from mixqvit.records import Settings

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
    assert request_of(read) == REQUEST
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
        {"evaluation_images": True},
    ],
)
def test_settings_that_cannot_be_used_say_why(document, settings):
    with pytest.raises(RecipeError, match="settings"):
        settings_of(document | {"settings": settings})


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
