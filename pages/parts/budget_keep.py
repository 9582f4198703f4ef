"""Save, name, load and delete allocations on the Budget page; download them, and open an allocation file."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import streamlit as st

from mixqvit.allocation.budget import Allocation, Budget
from mixqvit.allocation.request import Request
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.errors import MixQViTError
from mixqvit.files.allocation_document import (
    allocation_document,
    bits_of,
    parse_allocation,
    request_of,
    settings_of,
)
from mixqvit.network.bits import BitsPerLayer
from mixqvit.views.numbers import megabytes
from pages.parts import budget_controls, common
from pages.parts.budget_request import is_tied_everywhere
from pages.parts.memory import Controls, Memory

if TYPE_CHECKING:
    from mixqvit.study.study import Study
    from mixqvit.tasks.evaluation import Evaluation

P = ParamSpec("P")

LOADED = "loaded allocation"
"""Where the session keeps what was loaded last."""


@dataclass(frozen=True)
class Loaded:
    """What was loaded last.

    Attributes:
        name: What people call it.
        bits: (weight bits, activation bits) by layer name, as the file has them.
        controls: What the controls were set to by it.
    """

    name: str
    bits: BitsPerLayer
    controls: Controls


def document_of(study: "Study", remembered: Memory, evaluation: "Evaluation | None") -> dict[str, Any]:
    """Return the allocation with what it was solved with, whatever is chosen now."""
    return allocation_document(
        study.model.name, study.settings, remembered.allocation, remembered.wanted, evaluation, study.notes
    )


def keep_section(study: "Study", remembered: Memory, evaluation: "Evaluation | None") -> None:
    st.subheader("Keep and send", anchor=False)
    left, right = st.columns(2, gap="medium")
    with left:
        save_controls(study, remembered, evaluation)
        load_controls(study)
    with right:
        downloads(study, remembered, evaluation)
        st.file_uploader(
            "Open an allocation file",
            type="json",
            key="allocation file",
            on_change=open_file,
            args=(study,),
            help="JSON, downloaded here or written by the command line: sets all controls to what it was solved for.",
        )
    message = st.session_state.get("kept message")
    if message:
        getattr(st, message[0])(message[1])


def say(kind: str, sentence: str) -> None:
    st.session_state["kept message"] = (kind, sentence)


def careful(callback: Callable[P, None]) -> Callable[P, None]:
    """Let a callback say what an error says: there is no page around callbacks that would."""

    @wraps(callback)
    def saying(*arguments: P.args, **named: P.kwargs) -> None:
        try:
            callback(*arguments, **named)
        except MixQViTError as error:
            say("warning", common.in_words(error))

    return saying


def save_controls(study: "Study", remembered: Memory, evaluation: "Evaluation | None") -> None:
    spent = remembered.allocation.cost.average_bits
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(
            "Name",
            max_chars=80,
            placeholder=f"such as {remembered.wanted.strategy} {spent:.1f} bits",
            key="kept name",
            help="An allocation kept under the same name is replaced.",
        )
        st.button("Save", icon=":material/save:", on_click=save, args=(study, remembered, evaluation))


@careful
def save(study: "Study", remembered: Memory, evaluation: "Evaluation | None") -> None:
    name = st.session_state["kept name"]
    study.kept.save(name, document_of(study, remembered, evaluation))
    st.session_state["kept choice"] = name.strip()
    say("success", f"Saved as “{name.strip()}”.")


def load_controls(study: "Study") -> None:
    kept = study.kept.all()
    if st.session_state.get("kept choice") not in kept:
        st.session_state["kept choice"] = next(reversed(kept), None)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(
            "Kept allocations",
            list(reversed(kept)),
            key="kept choice",
            format_func=lambda name: f"{name}: {kept[name]['cost']['average_bits']:.2f} bits",
            placeholder="none yet",
            disabled=not kept,
        )
        document = kept.get(chosen)
        st.button(
            "Load",
            icon=":material/folder_open:",
            on_click=load,
            args=(study, document, f"“{chosen}”"),
            disabled=document is None,
            help="Sets all controls to what it was solved with.",
        )
        st.button(
            "Delete",
            icon=":material/delete:",
            on_click=delete,
            args=(study, chosen, document),
            disabled=document is None,
        )
        deleted = st.session_state.get("deleted allocation")
        if deleted:
            st.button(
                f"Bring back “{deleted[0]}”",
                icon=":material/undo:",
                type="tertiary",
                on_click=bring_back,
                args=(study,),
            )


@careful
def delete(study: "Study", name: str, document: dict[str, Any]) -> None:
    study.kept.delete(name)
    st.session_state["deleted allocation"] = (name, document)
    say("info", f"Deleted “{name}”.")


@careful
def bring_back(study: "Study") -> None:
    name, document = st.session_state["deleted allocation"]
    study.kept.save(name, document)
    del st.session_state["deleted allocation"]
    st.session_state["kept choice"] = name
    say("success", f"“{name}” is back.")


@careful
def load(study: "Study", document: dict[str, Any], name: str) -> None:
    """Set all controls to what bits were solved for; where a file does not say so, every layer is pinned to them."""
    bits = study.resolved(bits_of(document, name))
    request = request_of(document, name)
    other_settings = settings_of(document, name) != study.settings
    problems = budget_controls.set_request(study, request or request_for(study, bits))
    st.session_state[LOADED] = Loaded(name, bits, budget_controls.current(study.model.name))
    note = " It was made with other settings of the study, such as outlier amplification." if other_settings else ""
    if problems:
        say("warning", f"Loaded {name}, but these controls cannot show all of it. {' '.join(problems)}{note}")
    else:
        say("success", f"Loaded {name}.{note}")


def request_for(study: "Study", bits: BitsPerLayer) -> Request:
    """Return a request that no ceiling binds and that leaves nothing but these bits."""
    return Request(Budget(), Restrictions(pinned=bits), tied=is_tied_everywhere(study.layers, bits))


@careful
def open_file(study: "Study") -> None:
    file = st.session_state["allocation file"]
    if file is None:
        return
    document = parse_allocation(file.getvalue(), file.name)
    if document["model"] != study.model.name:
        say("warning", f"{file.name} is for {document['model']}: open that model first.")
        return
    load(study, document, file.name)


def show_difference(study: "Study", allocation: Allocation) -> None:
    """Say so where loaded controls lead to other bits than the file had."""
    loaded: Loaded | None = st.session_state.get(LOADED)
    if loaded is None or loaded.controls != budget_controls.current(study.model.name):
        return
    differing = sum(allocation.bits[name] != bits for name, bits in loaded.bits.items())
    if differing:
        st.info(
            f"The controls of {loaded.name} lead to other bits here in {differing} layers: it was solved with other "
            "images, settings or measurements.",
            icon=":material/info:",
        )
        st.button(
            "Pin the bits of the file",
            on_click=budget_controls.pin,
            args=(study, loaded.bits),
        )


def downloads(study: "Study", remembered: Memory, evaluation: "Evaluation | None") -> None:
    allocation = remembered.allocation
    name = f"{study.model.name} {allocation.cost.average_bits:.2f} bits"
    with st.container(horizontal=True):
        st.download_button(
            f"Packed model, {megabytes(allocation.cost.size_bytes)}",
            lambda: study.packing.packed(allocation).content,  # packed when the button is pressed
            f"{name}.safetensors",
            "application/octet-stream",
            icon=":material/download:",
            on_click="ignore",
            help=f"One safetensors file of {allocation.cost.size_bytes:,} bytes: integer weight codes at their true "
            "width, scales, and the allocation. `mixqvit.load_packed` reads it; its logits are those measured here.",
        )
        st.download_button(
            "Download allocation",
            json.dumps(document_of(study, remembered, evaluation), indent=2),
            f"{name}.json",
            "application/json",
            icon=":material/download:",
            on_click="ignore",
            help="An allocation file, JSON: bits of every layer with all that they were solved with. Read back here, "
            "or by the command line: `python -m mixqvit evaluate --allocation FILE`.",
        )
