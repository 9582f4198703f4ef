"""Save, name, load and delete allocations on the Budget page; download them, and open an allocation file."""

import json

import streamlit as st

from mixqvit.allocation.budget import Budget
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
from mixqvit.views import overview
from pages.parts import budget_controls
from pages.parts.budget_request import is_tied_everywhere


def document_of(study, remembered, evaluation) -> dict:
    """Return the allocation with what it was solved with, whatever is chosen now."""
    return allocation_document(
        study.model.name, study.settings, remembered.allocation, remembered.wanted, evaluation, study.notes
    )


def keep_section(study, remembered, evaluation) -> None:
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


def save_controls(study, remembered, evaluation) -> None:
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


def save(study, remembered, evaluation) -> None:
    name = st.session_state["kept name"]
    try:
        study.kept.save(name, document_of(study, remembered, evaluation))
    except MixQViTError as error:
        say("warning", str(error))
        return
    st.session_state["kept choice"] = name.strip()
    say("success", f"Saved as “{name.strip()}”.")


def load_controls(study) -> None:
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


def delete(study, name: str, document: dict) -> None:
    study.kept.delete(name)
    st.session_state["deleted allocation"] = (name, document)
    say("info", f"Deleted “{name}”.")


def bring_back(study) -> None:
    name, document = st.session_state.pop("deleted allocation")
    study.kept.save(name, document)
    st.session_state["kept choice"] = name
    say("success", f"“{name}” is back.")


def load(study, document: dict, name: str) -> None:
    """Set all controls to what bits were solved for; where a file does not say so, every layer is pinned to them."""
    try:
        bits = study.resolved(bits_of(document, name))
        request = request_of(document, name)
        other_settings = settings_of(document, name) != study.settings
    except MixQViTError as error:
        say("warning", str(error))
        return
    problems = budget_controls.set_request(study, request or request_for(study, bits))
    controls = budget_controls.current(study.model.name)
    st.session_state["loaded"] = {"name": name, "bits": bits, "controls": controls}
    note = " It was made with other settings of the study, such as outlier amplification." if other_settings else ""
    if problems:
        say("warning", f"Loaded {name}, but these controls cannot show all of it. {' '.join(problems)}{note}")
    else:
        say("success", f"Loaded {name}.{note}")


def request_for(study, bits: dict) -> Request:
    """Return a request that no ceiling binds and that leaves nothing but these bits."""
    return Request(Budget(), Restrictions(pinned=bits), tied=is_tied_everywhere(study.layers, bits))


def open_file(study) -> None:
    file = st.session_state["allocation file"]
    if file is None:
        return
    try:
        document = parse_allocation(file.getvalue(), file.name)
    except MixQViTError as error:
        say("warning", str(error))
        return
    if document["model"] != study.model.name:
        say("warning", f"{file.name} is for {document['model']}: open that model first.")
        return
    load(study, document, file.name)


def show_difference(study, allocation) -> None:
    """Say so where loaded controls lead to other bits than the file had."""
    loaded = st.session_state.get("loaded")
    if loaded is None or loaded["controls"] != budget_controls.current(study.model.name):
        return
    differing = sum(allocation.bits[name] != bits for name, bits in loaded["bits"].items())
    if differing:
        st.info(
            f"The controls of {loaded['name']} lead to other bits here in {differing} layers: it was solved with other "
            "images, settings or measurements.",
            icon=":material/info:",
        )
        st.button(
            "Pin the bits of the file",
            on_click=budget_controls.pin,
            args=(study, loaded["bits"]),
        )


def downloads(study, remembered, evaluation) -> None:
    allocation = remembered.allocation
    name = f"{study.model.name} {allocation.cost.average_bits:.2f} bits"
    with st.container(horizontal=True):
        st.download_button(
            f"Packed model, {overview.megabytes(allocation.cost.size_bytes)}",
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
