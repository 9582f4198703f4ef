"""What the controls of the Budget page cannot show of a request is said in words, never changed silently."""

import pytest
from hypothesis import given, settings

from mixqvit.allocation.request import Request
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.network.bits import resolve_pair
from pages.parts import budget_url
from pages.parts.budget_request import DEFAULTS, START, controls_of, is_tied_everywhere, request_from
from tests.allocation.requests import requests
from tests.views.allocations import BITS, LAYERS


def test_an_empty_request_is_any_budget():
    controls, problems = controls_of(Request(), LAYERS)
    assert controls == DEFAULTS | {"average_bits": 8.0, "cap_bitops": False}
    assert not problems


def test_the_controls_ask_for_what_they_start_from():
    assert request_from(DEFAULTS) == START == Request().changed(average_bits=4.0)


def test_a_whole_request_becomes_controls():
    request = Request().changed(
        average_bits=3,
        size_bytes=400_000,
        bitops=2 * 10**9,
        cap_bitops=False,
        gamma=0.5,
        strategy="random",
        seed=7,
        tied=False,
        pinned={"head": (4, 6), "blocks.0.mlp.fc1": (4, 4), "blocks.0.attn.matmul1": 32},
        at_least={"patch_embed.proj": 3},
        at_most={"patch_embed.proj": 5},
        allowed={"fc1": (8, 4), "head": (2, 3, 4, 5, 6, 7, 8)},
    )
    controls, problems = controls_of(request, LAYERS)
    assert not problems
    assert controls == {
        "average_bits": 3.0,
        "size_mb": 0.4,
        "bitops_g": 2.0,
        "cap_bitops": False,
        "gamma": 0.5,
        "strategy": "random",
        "random_seed": 7,
        "operand_bits": "independent",
        "restrictions": Restrictions(
            pinned={"head": (4, 6), "blocks.0.mlp.fc1": 4, "blocks.0.attn.matmul1": 32},
            at_least={"patch_embed.proj": 3},
            at_most={"patch_embed.proj": 5},
            allowed={"fc1": (4, 8)},
        ),
    }


@pytest.mark.parametrize(
    ("request_", "control", "shown", "words"),
    [
        ({"average_bits": 9}, "average_bits", 8.0, "average bits is 9"),
        ({"average_bits": 1.5}, "average_bits", 2.0, "average bits is 1.5"),
        ({"gamma": 3}, "gamma", 2.0, "γ is 3"),
        ({"gamma": -1}, "gamma", 0.0, "γ is -1"),
        ({"size_bytes": 100}, "size_mb", 0.001, "model size in MB is 0.0001"),
        ({"size_bytes": 1e300}, "size_mb", 1e6, "model size in MB is 1e+294"),
        ({"bitops": 10**300}, "bitops_g", 1e6, "BitOps in G is 1e+291"),
        ({"seed": 10**6 + 1}, "random_seed", 10**6, "seed is 1000001"),
    ],
)
def test_a_number_beyond_its_control_is_said_in_words(request_, control, shown, words):
    controls, (problem,) = controls_of(Request().changed(**request_), LAYERS)
    assert controls[control] == shown
    assert words in problem
    assert f"set to {shown:.9g}" in problem


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"pinned": {"tail": 4}}, "`pinned` names layers that this model does not have: `tail`"),
        ({"at_least": {"tail": 4}}, "`at_least` names layers"),
        ({"at_most": {str(n): 4 for n in range(9)}}, "`0`, `1`, `2` and 6 more"),
        ({"allowed": {"reduction": (4,)}}, "`allowed` names kinds of layers that this model does not have"),
        ({"pinned": {"head": (4, 6)}}, "`head at 4/6`"),
        ({"pinned": {"head": (4, 32)}, "tied": False}, "`head at 4/32`"),
        ({"pinned": {"blocks.0.attn.matmul1": (4, 6)}, "tied": False}, "`blocks.0.attn.matmul1 at 4/6`"),
    ],
)
def test_a_restriction_that_the_tables_cannot_hold_is_said_in_words(request_, words):
    controls, (problem,) = controls_of(Request().changed(**request_), LAYERS)
    assert controls["restrictions"] == Restrictions()
    assert words in problem


def test_images_with_8_bits_count_as_tied():
    assert is_tied_everywhere(LAYERS, BITS)
    assert not is_tied_everywhere(LAYERS, BITS | {"head": (4, 8)})
    assert is_tied_everywhere(LAYERS, {"head": 4})


@settings(max_examples=40, deadline=None)
@given(request_=requests(LAYERS))
def test_a_request_comes_back_from_the_controls_and_the_link(request_):
    """Up to what the controls cannot show: no ceiling on average bits, and pins that mean the same."""
    controls, problems = controls_of(request_, LAYERS)
    assert not problems
    parameters = budget_url.written(controls["restrictions"], None)
    found = budget_url.read(parameters, LAYERS, request_.tied)
    assert not found.problems
    shown = request_from(controls | {"restrictions": found.restrictions})
    assert controls_of(shown, LAYERS) == (controls, [])
    if request_.budget.average_bits is not None:
        unpinned = (one.changed(pinned=None) for one in (shown, request_))
        assert len(set(unpinned)) == 1
    by_name = {layer.name: layer for layer in LAYERS}
    for name, pin in request_.restrictions.pinned.items():
        assert resolve_pair(by_name[name], shown.restrictions.pinned[name]) == resolve_pair(by_name[name], pin)
