"""The editable tables of restrictions on the Budget page: what they show, and what a person wrote into them."""

from collections.abc import Mapping, Sequence

import pandas as pd

from mixqvit.allocation.restrictions import Restrictions
from mixqvit.network.bits import BIT_WIDTHS, Bits
from mixqvit.network.layers import Layer
from mixqvit.views.grid import layer_frame

PINNED, PINNED_INPUT = "pinned", "pinned input"
AT_LEAST, AT_MOST = "at least", "at most"


def restriction_frame(
    layers: Sequence[Layer],
    restricted: Restrictions,
    tied: bool,
) -> pd.DataFrame:
    """Return the table in which layers are restricted by hand, empty where the allocation decides.

    Args:
        layers: The table of layers.
        restricted: What is restricted so far; kinds are not shown here.
        tied: Whether both operands share their bits; else the table has a column for the pinned input.
    """
    pinned = restricted.pinned.items()
    columns: dict[str, Mapping[str, int]] = {
        PINNED: {name: bits if isinstance(bits, int) else bits[0] for name, bits in pinned}
    }
    if not tied:
        columns[PINNED_INPUT] = {name: bits[1] for name, bits in pinned if not isinstance(bits, int)}
    columns |= {AT_LEAST: restricted.at_least, AT_MOST: restricted.at_most}
    frame = layer_frame(layers, columns).drop(columns="block")
    return frame.astype(dict.fromkeys(columns, "Int64"))


def restrictions(frame: pd.DataFrame) -> Restrictions:
    """Return what is restricted by layer, read from an edited `restriction_frame`.

    Where only the weight or only the input of a layer is pinned, the other shares its bits.
    """
    weights, inputs = _column(frame, PINNED), _column(frame, PINNED_INPUT)
    pinned: dict[str, int | Bits] = {}
    for name in frame["layer"]:
        pair = weights.get(name, inputs.get(name)), inputs.get(name, weights.get(name))
        if pair[0] is not None:
            pinned[name] = pair[0] if pair[0] == pair[1] else pair
    return Restrictions(pinned, at_least=_column(frame, AT_LEAST), at_most=_column(frame, AT_MOST))


def _column(frame: pd.DataFrame, column: str) -> dict[str, int]:
    if column not in frame:
        return {}
    chosen = frame.dropna(subset=[column])
    return {name: int(bits) for name, bits in zip(chosen["layer"], chosen[column], strict=True)}


def allowed_frame(layers: Sequence[Layer], allowed: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Return the table of the bit-widths that each kind of layer may get, one column of yes or no per bit-width."""
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    return pd.DataFrame(
        {"kind": kinds, **{str(bits): [bits in allowed.get(kind, BIT_WIDTHS) for kind in kinds] for bits in BIT_WIDTHS}}
    )


def allowed(frame: pd.DataFrame) -> dict[str, tuple[int, ...]]:
    """Return the bit-widths by kind, read from an edited `allowed_frame`; kinds that may get any are left out."""
    chosen = {
        row["kind"]: tuple(bits for bits in BIT_WIDTHS if row[str(bits)]) for row in frame.to_dict(orient="records")
    }
    return {kind: widths for kind, widths in chosen.items() if widths != BIT_WIDTHS}
