"""Requests of all sorts, of a model with the layers given."""

from hypothesis import strategies as st

from mixqvit.allocation.request import Request
from mixqvit.criteria.registry import CRITERIA
from mixqvit.network.bits import BIT_WIDTHS, NUMBER_FORMATS, UNQUANTIZED, possible_bits

WIDTHS = st.sampled_from(BIT_WIDTHS)


def restricted(names, values):
    return st.dictionaries(st.sampled_from(names), values, max_size=3)


@st.composite
def requests(draw, layers) -> Request:
    """Return any request that a person could make of these layers."""
    names = [layer.name for layer in layers]
    tied = draw(st.booleans())
    pinned = {}
    for layer in layers:
        if draw(st.booleans()):
            pinned[layer.name] = draw(st.sampled_from((*possible_bits(layer, tied), UNQUANTIZED, *NUMBER_FORMATS)))
    return Request().changed(
        average_bits=draw(st.none() | st.floats(2.0, 8.0)),
        size_bytes=draw(st.none() | st.integers(1000, 10**12)),
        bitops=draw(st.none() | st.integers(10**6, 10**15)),
        cap_bitops=draw(st.booleans()),
        strategy=draw(st.sampled_from(list(CRITERIA))),
        gamma=draw(st.floats(0.0, 2.0)),
        tied=tied,
        seed=draw(st.integers(0, 10**6)),
        pinned=pinned,
        at_least=draw(restricted(names, WIDTHS)),
        at_most=draw(restricted(names, WIDTHS)),
        allowed=draw(restricted([layer.kind for layer in layers], st.sets(WIDTHS, min_size=1, max_size=6).map(sorted))),
    )
