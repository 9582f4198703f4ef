"""A request is written and read without loss, and means the same whoever states it."""

import copy
import json
import pickle

import pytest
from hypothesis import given, settings

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.request import Request, as_request
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.criteria.registry import CRITERIA
from mixqvit.errors import AllocationError, AllocationFileError
from tests.allocation.problems import table
from tests.allocation.requests import requests

LAYERS, _ = table(4)


@settings(max_examples=60, deadline=None)
@given(request=requests(LAYERS))
def test_what_is_written_is_read_back(request):
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


@settings(max_examples=30, deadline=None)
@given(request=requests(LAYERS))
def test_equal_requests_are_one_key(request):
    again = Request.from_json(request.to_json())
    assert hash(again) == hash(request)
    assert {request: 1}[again] == 1
    assert pickle.loads(pickle.dumps(request)) == copy.deepcopy(request) == request


def test_a_request_cannot_be_changed():
    pins = {"head": 8}
    request = Request().changed(pinned=pins)
    pins["head"] = 2
    assert request.restrictions.pinned == {"head": 8}
    with pytest.raises(TypeError):
        request.restrictions.pinned["head"] = 2
    with pytest.raises(AttributeError):
        request.gamma = 2.0


def test_keywords_change_a_part_and_leave_the_rest():
    request = as_request(4, strategy="random", seed=3, pinned={"head": [4, 6]}, cap_bitops=False)
    assert request == Request(Budget(4, cap_bitops=False), Restrictions({"head": (4, 6)}), "random", seed=3)
    changed = as_request(request, average_bits=None, bitops=1e9, pinned=None)
    assert changed == Request(Budget(bitops=1e9, cap_bitops=False), strategy="random", seed=3)
    assert as_request() == Request()
    with pytest.raises(TypeError, match="colour"):
        as_request(colour="red")
    with pytest.raises(TypeError, match="colour"):
        Budget(colour=3)


def test_what_is_left_out_is_as_by_default():
    assert Request.from_json({}) == Request()
    assert Request.from_json({"gamma": None, "pinned": None, "average_bits": 3}) == Request(Budget(3))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], r"^This request must be an object, not \[\]\.$"),
        ({"colour": 1}, "^This request has an entry 'colour' that this version does not know"),
        ({"strategy": "luck"}, "^`strategy` of This request must be one of mix-qvit, .*, not 'luck'"),
        ({"pinned": {"head": 9}}, "^`head` in `pinned` of This request must be a bit-width of 2 to 8, or 32 .*, not 9"),
        (
            {"allowed": {"fc1": [4, 9]}},
            "^entry 2 in `fc1` in `allowed` of This request must be a bit-width of 2 to 8, not",
        ),
        ({"seed": -1}, "^`seed` of This request must be a whole number from 0, not -1"),
        ({"bitops": float("nan")}, "^`bitops` of This request must be a number"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(document, message):
    with pytest.raises(AllocationFileError, match=message):
        Request.from_json(document)


def test_allocations_are_compared_by_what_their_strategy_weighs():
    weighing = {name for name in CRITERIA if Request(strategy=name, gamma=0.5).yardstick == (0.5, True)}
    assert weighing == {"mix-qvit"}
    assert Request(strategy="lrp-qvit", tied=False).yardstick == (0.0, False)
    assert [Request(strategy=name).yardstick_words for name in ("mix-qvit", "lrp-qvit")] == ["Σ Ω^γ · Λ", "Σ Λ"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(strategy="luck"), "no allocation strategy 'luck'"),
        (Request(strategy="clado", tied=False), "Strategy clado knows harms with both operands .* at the same bits"),
        (Request(strategy="random", seed=-1), "seed must be 0 or a positive number"),
    ],
)
def test_what_no_strategy_can_do_is_refused(request_, message):
    with pytest.raises(AllocationError, match=message):
        request_.criterion.name and request_.check()
