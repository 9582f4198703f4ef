"""What a link to the Budget page carries is read back exactly; what it says wrongly is dropped with a sentence."""

import pytest

from pages.parts import budget_url
from tests.figures.allocations import BITS, LAYERS

RESTRICTIONS = {
    "pinned": {"head": 32, "blocks.0.mlp.fc1": (4, 6)},
    "at_least": {"patch_embed.proj": 3},
    "at_most": {"patch_embed.proj": 6, "head": 8},
    "allowed": {"fc1": (2, 4, 8)},
}
EMPTY = {name: {} for name in budget_url.RESTRICTIONS}


def test_a_link_brings_everything_back():
    parameters = budget_url.written(RESTRICTIONS, BITS)
    assert parameters["pinned"] == "head-32~blocks.0.mlp.fc1-4.6"
    assert parameters["held"] == "584422ff"
    assert budget_url.read(parameters, LAYERS) == budget_url.Found(RESTRICTIONS, BITS, [])


def test_nothing_chosen_is_nothing_in_the_link():
    parameters = budget_url.written(EMPTY, None)
    assert not any(parameters.values())
    assert budget_url.read(parameters, LAYERS) == budget_url.Found(EMPTY, None, [])
    assert budget_url.read({}, LAYERS) == budget_url.Found(EMPTY, None, [])


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
    found = budget_url.read({name: text}, LAYERS)
    assert found.restrictions == EMPTY | {name: kept}
    assert found.problems
    assert all(f"`{name}`" in problem for problem in found.problems)


@pytest.mark.parametrize("text", ["5844", "584422fx", "584422ff4", "1844 2ff", "584422FF"])
def test_an_allocation_that_does_not_fit_is_not_held(text):
    found = budget_url.read({"held": text}, LAYERS)
    assert found.held is None
    assert "held" in found.problems[0]


def test_a_sentence_stays_short_whatever_the_link_says():
    (problem,) = budget_url.read({"pinned": "`" + "x" * 10_000}, LAYERS).problems
    assert len(problem) < 150
    assert problem.count("`") == 4
