import json
import random
from math import nan

import pytest

from mixqvit.allocation.budget import Allocation, Budget
from mixqvit.allocation.costs import Cost
from mixqvit.allocation.request import Request
from mixqvit.errors import AllocationFileError
from mixqvit.files.allocation_document import (
    LIMIT_BYTES,
    allocation_document,
    bits_of,
    document_schema,
    parse_allocation,
    read_allocation,
    request_of,
    settings_of,
)
from mixqvit.notes import Note
from mixqvit.study.settings import Settings
from mixqvit.tasks.evaluation import Evaluation, ReferenceAnswers

BITS = {"patch_embed.proj": (3, 8), "head": (32, 32), "attn.matmul1": (2, 2)}
REQUEST = Request().changed(
    average_bits=3.5,
    cap_bitops=False,
    gamma=0.5,
    pinned={"head": 32, "attn.matmul1": (2, 2)},
    allowed={"fc1": (2, 4)},
)
SETTINGS = Settings(outlier_factor=8.0, metric="mse", evaluation_images=100)


@pytest.fixture
def document():
    allocation = Allocation(BITS, 0.25, Cost(10, 20, 30, 40, 500, 3.5), Budget(3.5))
    measured = Evaluation(100, 100, 90, 95, 0.125)
    notes = [Note("Ten images were skipped."), Note("The labels look shifted.", is_warning=True)]
    return json.loads(json.dumps(allocation_document("digits_vit", SETTINGS, allocation, REQUEST, measured, notes)))


def test_what_is_written_is_read_back(document, tmp_path):
    path = tmp_path / "allocation.json"
    path.write_text(json.dumps(document))
    read = read_allocation(path)
    assert read == document
    assert bits_of(read) == BITS
    assert request_of(read) == REQUEST
    assert settings_of(read) == SETTINGS
    assert read["cost"]["size_bytes"] == 100
    assert read["measured"]["top1"] == 0.9
    assert read["predicted_harm"] == 0.25
    assert read["notes"] == ["Ten images were skipped.", "The labels look shifted."]


def test_what_means_nothing_is_null():
    one_class = ReferenceAnswers(100, 1, 1, 1, 100, 1.0)
    measured = Evaluation(100, 100, 100, 100, nan, reference=one_class)
    allocation = Allocation(BITS, nan, Cost(10, 20, 30, 40, 500, 3.5))
    written = allocation_document("digits_vit", SETTINGS, allocation, evaluation=measured)
    assert written["predicted_harm"] is None
    assert written["measured"] == {"images": 100} | dict.fromkeys(("top1", "top1_interval", "agreement", "kl"))
    json.dumps(written, allow_nan=False)


@pytest.mark.parametrize("version", ['"mixqvit_allocation": 2', '"mixqvit_recipe": 1'])
def test_the_least_that_a_file_needs(version):
    read = parse_allocation(f'{{{version}, "model": "digits_vit", "bits": {{"head": [4, 4]}}}}')
    assert bits_of(read) == {"head": (4, 4)}
    assert request_of(read) is None
    assert settings_of(read) == Settings()


def test_a_file_of_version_1_is_read():
    """As the last version wrote it that called it a recipe."""
    read = parse_allocation(
        """{"mixqvit_recipe": 1, "model": "digits_vit", "recipe": "mix-qvit", "settings": {"metric": "mse"},
        "request": {"average_bits": 4.0, "size_bytes": null, "bitops": 8e8, "cap_bitops": true, "gamma": 0.5,
        "pinned": {"head": 8, "fc": [4, 8]}, "strategy": "sensitivity", "allowed": {"fc1": [2, 4]}, "at_least": {},
        "at_most": {"head": 8}, "tied": false, "seed": 0}, "bits": {"head": [8, 8], "fc": [4, 8]},
        "predicted_harm": 0.25, "cost": {"size_bytes": 100}, "measured": null}"""
    )
    assert request_of(read) == Request().changed(
        average_bits=4.0,
        bitops=8e8,
        gamma=0.5,
        pinned={"head": 8, "fc": (4, 8)},
        strategy="sensitivity",
        allowed={"fc1": (2, 4)},
        at_most={"head": 8},
        tied=False,
    )
    assert bits_of(read) == {"head": (8, 8), "fc": (4, 8)}
    assert settings_of(read) == Settings(metric="mse")


def test_every_entry_is_described(document):
    schema = document_schema()
    described = schema["properties"]
    assert document.keys() <= described.keys()
    assert document["request"].keys() == described["request"]["properties"].keys()
    assert document["settings"].keys() == described["settings"]["properties"].keys()
    parts = [*described.values(), *described["request"]["properties"].values()]
    assert all(part["description"] for part in parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixqvit_allocation": 3}, "reads versions 1 to 2"),
        ({"mixqvit_recipe": 2}, "reads versions 1 to 2"),
        ({"mixqvit_allocation": True}, "version True"),
        ({"model": 3}, "`model` of This file must be a text that names the model, as `--model` does, not 3"),
        ({"bits": {}}, "`bits` of This file must be an object from layer name to"),
        ({"bits": [1]}, "`bits` of This file must be an object"),
        (
            {"bits": {"head": [4]}},
            r"`head` in `bits` of This file must be \[weight bits, activation bits\]",
        ),
        ({"bits": {"head": [4, 1]}}, r"`head` in `bits` .* not \[4, 1\]"),
        ({"bits": {"head": [True, 4]}}, "`head` in `bits`"),
        ({"bits": {"head": "44"}}, "`head` in `bits`"),
        ({"request": []}, "`request` of"),
        ({"request": {"colour": "red"}}, "'colour'"),
        (
            {"request": {"gamma": "1"}},
            "`gamma` in `request` of This file must be a number, .*, not '1'",
        ),
        ({"request": {"average_bits": float("nan")}}, "`average_bits`"),
        ({"request": {"pinned": {"head": 9}}}, "`head` in `pinned` in `request` of This file must be .* not 9"),
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
        ({"request": {"at_most": {"head": 4.5}}}, "`at_most`"),
        ({"request": {"allowed": {"fc1": [4, 32]}}}, "`allowed`"),
        ({"request": {"allowed": {"fc1": [[4, 4]]}}}, "`allowed`"),
        ({"recipe": 3}, "`recipe` of"),
        ({"recipe": "minmax"}, "two quantization recipes"),
        ({"settings": {"calibration_images": 10**400}}, "`calibration_images`"),
    ],
)
def test_an_allocation_that_cannot_be_used_says_why(document, change, message):
    with pytest.raises(AllocationFileError, match=message):
        parse_allocation(json.dumps(document | change))


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
    with pytest.raises(AllocationFileError, match="`settings`"):
        settings_of(document | {"settings": settings})


def test_what_is_null_in_a_request_is_not_given(document):
    assert request_of(document | {"request": {"gamma": None, "pinned": None, "tied": None}}) is None
    assert request_of(document | {"request": {"gamma": None, "average_bits": 4}}) == Request(Budget(4))


def test_a_pin_is_one_width_or_a_pair_full_precision_included(document):
    pins = {"a": 2, "b": 32, "c": [4, 8], "d": [32, 4]}
    assert request_of(document | {"request": {"pinned": pins}}).restrictions.pinned == {
        "a": 2,
        "b": 32,
        "c": (4, 8),
        "d": (32, 4),
    }


def test_whole_numbers_written_as_floats_are_integers(document):
    settings = settings_of(document | {"settings": {"calibration_images": 16.0, "evaluation_images": 50.0}})
    assert settings == Settings(calibration_images=16, evaluation_images=50)
    assert type(settings.calibration_images) is type(settings.evaluation_images) is int
    request = request_of(document | {"request": {"seed": 3.0, "at_most": {"head": 4.0}, "allowed": {"fc1": [2.0]}}})
    assert type(request.seed) is type(request.restrictions.at_most["head"]) is int
    assert bits_of({"bits": {"head": [4.0, 4]}}) == {"head": (4, 4)}


def test_the_quantization_recipe_is_named_outside_the_settings_too(document):
    assert settings_of(document | {"recipe": "minmax", "settings": {}}).recipe == "minmax"
    assert settings_of(document | {"recipe": "minmax", "settings": {"recipe": "minmax"}}).recipe == "minmax"
    assert settings_of(document | {"recipe": None, "settings": {"recipe": "minmax"}}).recipe == "minmax"


def test_a_message_stays_short_whatever_the_file_says(document):
    with pytest.raises(AllocationFileError) as caught:
        parse_allocation(json.dumps(document | {"request": {"strategy": "x" * 10_000}}))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "is no allocation file"),
        (b'{"bits": {}}', "is no allocation file"),
        (b" " * (LIMIT_BYTES + 1), "larger than 10 MB"),
    ],
)
def test_a_file_that_is_no_allocation_says_so(tmp_path, content, message):
    path = tmp_path / "allocation.json"
    path.write_bytes(content)
    with pytest.raises(AllocationFileError, match=message):
        read_allocation(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(AllocationFileError, match=r"nothing\.json cannot be read"):
        read_allocation(tmp_path / "nothing.json")
    with pytest.raises(AllocationFileError, match="cannot be read"):
        read_allocation(tmp_path)


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
def test_a_mutated_file_is_read_or_refused_in_one_sentence(document, seed):
    draw = random.Random(seed)
    changed = document
    for _ in range(draw.randrange(1, 4)):
        changed = mutated(changed, draw)
    text = json.dumps(changed)
    if seed % 5 == 0:  # some are cut or spliced as texts
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice(["", "[" * 10**5, "\ud800", text[:place]])
    try:
        read = parse_allocation(text.encode("utf-8", "surrogatepass"))
        bits_of(read)
        request_of(read)
        settings_of(read)
    except AllocationFileError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
