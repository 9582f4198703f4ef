"""The editable tables of restrictions say what they were filled with, and what is written into them."""

import pytest

from mixqvit.allocation.restrictions import Restrictions
from pages.parts import budget_tables as tables
from tests.views.allocations import LAYERS


@pytest.mark.parametrize("tied", [True, False])
def test_restrictions_survive_the_editable_table(tied):
    pinned = {"blocks.0.mlp.fc1": 3, "head": 32}
    at_least, at_most = {"patch_embed.proj": 4}, {"blocks.0.attn.matmul1": 6}
    restricted = Restrictions(pinned, at_least=at_least, at_most=at_most)
    assert tables.restrictions(tables.restriction_frame(LAYERS, restricted, tied)) == restricted
    assert not tables.restrictions(tables.restriction_frame(LAYERS, Restrictions(), tied))


def test_weights_and_inputs_are_pinned_apart_only_where_they_are_independent():
    pinned = {"blocks.0.mlp.fc1": (3, 5)}
    frame = tables.restriction_frame(LAYERS, Restrictions(pinned), tied=False)
    assert tables.restrictions(frame).pinned == pinned
    frame.loc[3, "pinned input"] = 6  # the head's input alone: its weights share the bits
    assert tables.restrictions(frame).pinned == {**pinned, "head": 6}
    assert "pinned input" not in tables.restriction_frame(LAYERS, Restrictions(pinned), tied=True)


def test_allowed_bit_widths_survive_the_editable_table():
    frame = tables.allowed_frame(LAYERS, {"fc1": (2, 4)})
    assert frame["kind"].tolist() == ["patch_embed", "matmul1", "fc1", "head"]
    assert tables.allowed(frame) == {"fc1": (2, 4)}
    frame.loc[0, "8"] = False
    assert tables.allowed(frame) == {"patch_embed": (2, 3, 4, 5, 6, 7), "fc1": (2, 4)}
