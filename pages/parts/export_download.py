"""Download the allocation for other programs: an ONNX model, configurations of libraries, overlays of a viewer."""

from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.errors import MixQViTError
from mixqvit.files.export.formats import FORMATS, Exported, exported
from mixqvit.network.bits import BitsPerLayer
from mixqvit.views.numbers import megabytes
from pages.parts import common, measuring
from pages.parts.memory import Memory, key

if TYPE_CHECKING:
    from mixqvit.study.study import Study

MADE = "exported ONNX model"
"""Where the session keeps the last ONNX model that was made, with what it was made of."""

OFFERED = tuple(name for name in FORMATS if name != "allocation")  # which has its own button beside the packed model

MIME = {".onnx": "application/octet-stream", ".json": "application/json", ".zip": "application/zip"}


@st.fragment
def export_section(study: "Study", remembered: Memory) -> None:
    """Show the choice of a format and its download; an ONNX model takes seconds and is made when asked for."""
    st.subheader("For other programs", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox(
            "Format",
            OFFERED,
            format_func=lambda name: FORMATS[name].title,
            key="export format",
            width=320,
            help=" ".join(f"**{FORMATS[name].title}**: {FORMATS[name].description}" for name in OFFERED),
        )
        bits = remembered.allocation.bits
        try:
            found = onnx_model(study, bits) if name == "onnx" else exported(study, bits, name, remembered.importance)
        except MixQViTError as error:
            found = None
            message = common.in_words(error)
        else:
            message = None
        if found is not None:
            download(f"{study.model.name} {remembered.allocation.cost.average_bits:.2f} bits", name, found)
    if message:
        st.warning(message, icon=":material/block:")
    stored = "" if found is None or found.stored_bits is None else f" {words(found, bits)}"
    st.caption(f"{FORMATS[name].description}{stored}")
    if found is not None and found.notes:
        with st.expander("What it does otherwise than measured here", icon=":material/info:"):
            st.markdown("\n".join(f"- {note}" for note in found.notes))


def onnx_model(study: "Study", bits: BitsPerLayer) -> Exported | None:
    """Return the ONNX model of these bits if it was made, or is asked for now."""
    wanted = (measuring.key(study), key(bits))
    made = st.session_state.get(MADE)
    if made is not None and made[0] == wanted:
        return made[1]
    asked = st.button(
        "Make the ONNX model",
        icon=":material/build:",
        help="Quantizes the model at these bits and writes it with integer weights; takes some seconds.",
    )
    if not asked:
        return None
    with st.spinner("Writing the ONNX model …"):
        found = exported(study, bits, "onnx")
    st.session_state[MADE] = (wanted, found)  # only the last one: it can have many megabytes
    return found


def download(stem: str, name: str, found: Exported) -> None:
    file, content = found.one_file(stem if name == "onnx" else f"{stem} {name}")
    st.download_button(
        f"{FORMATS[name].title}, {megabytes(len(content))}",
        content,
        file,
        MIME[file[file.rindex(".") :]],
        icon=":material/download:",
        on_click="ignore",
        help=FORMATS[name].description,
    )


def words(found: Exported, bits: BitsPerLayer) -> str:
    """Return how the weights of an ONNX model are stored."""
    widened = sum(width not in (bits[name][0], 32) for name, width in found.stored_bits.items())
    stored = "at its own width in every layer"
    if widened:
        stored = f"in the next wider type in {widened} of {len(found.stored_bits)} layers, at its own width elsewhere"
    return f"Opset {found.opset}; the weight is stored {stored}."
