"""What a link to the Budget page carries is read back exactly; what it says wrongly is dropped with a sentence."""

import pytest

from mixqvit.allocation.restrictions import Restrictions
from pages.parts import budget_url
from tests.views.allocations import BITS, LAYERS

RESTRICTED = Restrictions(
    pinned={"head": 32, "blocks.0.mlp.fc1": (4, 6)},
    at_least={"patch_embed.proj": 3},
    at_most={"patch_embed.proj": 6, "head": 8},
    allowed={"fc1": (2, 4, 8)},
)
TIED = True
EMPTY = Restrictions()


def test_a_link_brings_everything_back():
    parameters = budget_url.written(RESTRICTED, BITS)
    assert parameters["pinned"] == "head-32~blocks.0.mlp.fc1-4.6"
    assert parameters["held"] == "584422ff"
    assert budget_url.read(parameters, LAYERS, not TIED) == budget_url.Found(RESTRICTED, BITS, [])


def test_nothing_chosen_is_nothing_in_the_link():
    parameters = budget_url.written(EMPTY, None)
    assert not any(parameters.values())
    assert budget_url.read(parameters, LAYERS, TIED) == budget_url.Found(EMPTY, None, [])
    assert budget_url.read({}, LAYERS, TIED) == budget_url.Found(EMPTY, None, [])


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("pinned", "nothing-4~head-4", {"head": 4}),
        ("pinned", "head-9", {}),
        ("pinned", "head-04", {}),
        ("pinned", "head-4.4.4", {}),
        ("pinned", "head", {}),
        ("pinned", "-4", {}),
        ("pinned", "head-<script>", {}),
        ("at_least", "head-32~patch_embed.proj-3", {"patch_embed.proj": 3}),
        ("at_most", "head-4.6", {}),
        ("allowed", "fc1-842~qkv-2", {}),
        ("allowed", "fc1-~head-28", {"head": (2, 8)}),
        ("allowed", "fc1-229", {}),
    ],
)
def test_what_does_not_fit_is_dropped_and_named(name, text, kept):
    found = budget_url.read({name: text}, LAYERS, TIED)
    assert found.restrictions == Restrictions(**{name: kept})
    assert found.problems
    assert all(f"`{name}`" in problem for problem in found.problems)


@pytest.mark.parametrize("text", ["5844", "584422fx", "584422ff4", "1844 2ff", "584422FF"])
def test_an_allocation_that_does_not_fit_is_not_held(text):
    found = budget_url.read({"held": text}, LAYERS, TIED)
    assert found.held is None
    assert "held" in found.problems[0]


def test_a_sentence_stays_short_whatever_the_link_says():
    (problem,) = budget_url.read({"pinned": "`" + "x" * 10_000}, LAYERS, TIED).problems
    assert len(problem) < 150
    assert problem.count("`") == 4


@pytest.mark.parametrize(
    ("pin", "tied", "fits"),
    [
        ("head-4.8", True, False),
        ("head-4.8", False, True),
        ("head-4.4", True, True),
        ("head-4.32", True, False),
        ("head-4.32", False, False),
        ("head-32.4", False, False),
        ("head-32.32", True, True),
        ("blocks.0.attn.matmul1-4.6", True, False),
        ("blocks.0.attn.matmul1-4.6", False, False),
        ("blocks.0.attn.matmul1-6", False, True),
        ("patch_embed.proj-4.8", True, True),
        ("patch_embed.proj-4.6", False, False),
        ("patch_embed.proj-4", True, True),
    ],
)
def test_a_pin_that_no_allocation_has_is_a_problem(pin, tied, fits):
    found = budget_url.read({"pinned": pin}, LAYERS, tied)
    assert bool(found.restrictions.pinned) == fits
    assert [pin in problem for problem in found.problems] == ([] if fits else [True])


@pytest.mark.parametrize(
    ("name", "text", "fits"),
    [
        ("bitops_g", "1e300", False),
        ("size_mb", "1e306", False),
        ("size_mb", "inf", False),
        ("size_mb", "nan", False),
        ("size_mb", "-1", False),
        ("size_mb", "much", False),
        ("size_mb", "0.5", True),
        ("average_bits", "9", False),
        ("average_bits", "2.5", True),
        ("gamma", "3", False),
        ("random_seed", "2.5", False),
        ("random_seed", "7", True),
    ],
)
def test_a_number_out_of_its_controls_range_is_a_problem(name, text, fits):
    problems = budget_url.read({name: text}, LAYERS, TIED).problems
    assert [f"`{name}`" in problem and text in problem for problem in problems] == ([] if fits else [True])
