"""The studies that are saved on this machine: open, export, import, remove."""

from typing import TYPE_CHECKING

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from mixqvit.errors import MixQViTError
from mixqvit.files.uploads import keep_upload
from mixqvit.models.cards import EMBEDDED
from mixqvit.stages.store import Store
from mixqvit.study.library import find_study, forget_study, keep_study, known_studies
from mixqvit.views.studies import saved_frame
from pages.parts import common

if TYPE_CHECKING:
    from mixqvit.study.study import Study

SAID = "said about saved studies"


def saved_section() -> None:
    """List the saved studies with what can be done to one."""
    store = Store()
    saved = known_studies(store)
    st.subheader("Saved studies", anchor=False)
    st.caption("What `python -m mixqvit analyze` computed is here too. A study file brings one from another machine.")
    if saved:
        st.dataframe(saved_frame(saved), hide_index=True, alt="Table of the saved studies: name, model, images.")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox("Saved study", [*EMBEDDED, *reversed(saved)], key="saved study")
        st.button(
            "Choose", icon=":material/folder_open:", on_click=common.open_next, args=(chosen,), key="choose saved"
        )
        _export_button(chosen)
        st.button(
            "Remove",
            icon=":material/delete:",
            disabled=chosen not in saved,
            on_click=_remove,
            args=(chosen,),
            help="Takes it off the list. What was computed stays in the cache.",
        )
        removed = st.session_state.get("removed study")
        if removed:
            st.button(f"Bring back “{removed[0]}”", icon=":material/undo:", type="tertiary", on_click=_bring_back)
    uploaded = st.file_uploader(
        "Import a study file",
        "safetensors",
        key="study file",
        help="Written by Export here or by `study export`. Checked byte for byte; its numbers are believed, so import "
        "only what comes from people you trust.",
    )
    if uploaded is not None and st.button("Import", icon=":material/upload:", key="import study"):
        _import(uploaded)
    said = st.session_state.pop(SAID, None)
    if said:
        getattr(st, said[0])(said[1])


def _export_button(name: str) -> None:
    description = find_study(Store(), name)
    study = description and common.open_studies().find(description)
    st.download_button(
        "Export",
        lambda: _file_of(study, name),
        f"{name}.safetensors",
        icon=":material/download:",
        disabled=study is None,
        on_click="ignore",
        help="One file with model, images and all results, for another machine. Open the study first.",
    )


def _file_of(study: "Study", name: str) -> bytes:
    """Return the study as the content of a file."""
    from mixqvit.files.study_file import study_file_content

    return study_file_content(study, name)


def _import(uploaded: UploadedFile) -> None:
    from mixqvit.files.study_import import import_study_file

    with st.spinner("Checking the file …"):
        uploaded.seek(0)
        path = keep_upload(uploaded.name, uploaded)
        name, _, count = import_study_file(Store(), path)
        path.unlink(missing_ok=True)  # another session may have imported the same file
    st.session_state[SAID] = ("success", f"Imported “{name}” with {count:,} results.")
    common.open_next(name)
    st.rerun()


def _remove(name: str) -> None:
    store = Store()
    description = known_studies(store).get(name)
    try:
        forget_study(store, name)
    except MixQViTError as error:
        st.session_state[SAID] = ("warning", common.in_words(error))
        return
    if description.study_file is None:  # the file of an imported one is gone
        st.session_state["removed study"] = (name, description)
    st.session_state[SAID] = ("info", f"Removed “{name}”.")


def _bring_back() -> None:
    name, description = st.session_state["removed study"]
    try:
        keep_study(Store(), name, description)
    except MixQViTError as error:
        st.session_state[SAID] = ("warning", common.in_words(error))
        return
    del st.session_state["removed study"]
    st.session_state[SAID] = ("success", f"“{name}” is back.")
