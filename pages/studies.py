"""Open a model of one's own on images of one's own."""

from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.stages.store import Store
from mixqvit.study.library import default_name, find_study, free_name, keep_study
from mixqvit.views import studies as figures
from pages.parts import common
from pages.parts.report_download import report_section
from pages.parts.studies_form import Filled, form
from pages.parts.studies_saved import saved_section

if TYPE_CHECKING:
    from mixqvit.study.study import Study


def open_described(filled: Filled, wished_name: str) -> None:
    """Open what the form describes, keep it under a name and make it the study of all pages."""
    description = filled.description()
    place = st.empty()
    place.progress(0.0, "Loading PyTorch …")
    for step in common.open_studies().open_steps(description):
        if step.done < step.total:
            place.progress(step.done / step.total, step.doing)
    store, study = Store(), step.result
    name = wished_name.strip() or free_name(store, default_name(description, study.model.name), description)
    if find_study(store, name) != description:
        name = keep_study(store, name, description)
    common.open_next(name)
    st.session_state["opened"] = name
    st.rerun()


def about(study: "Study") -> None:
    """What is open: model, preprocessing, images, machine, and how long it will take."""
    with st.grid(4, min_column_width=190):
        for label, value, below, help_text in figures.facts(study.model, study.image_sets, study.machine):
            common.fact(st, label, value, below, help_text)
    sample = study.image_sets.sample
    common.bullets([f"measured on {sample.how}", *common.warned(study.notes)])
    skipped = study.image_sets.sample.skipped
    if skipped:
        with st.expander(f"{len(skipped)} images could not be read and were skipped", icon=":material/broken_image:"):
            st.dataframe(figures.skipped_frame(skipped), hide_index=True)
    st.dataframe(figures.preprocessing_frame(study.model.preprocessing), hide_index=True)
    st.info(figures.estimate_words(study.estimate()), icon=":material/timer:")
    st.page_link("pages/overview.py", label="Go to the overview", icon=":material/arrow_forward:")


with common.page(
    "Models and images",
    "Any vision transformer that timm knows, on images of yours: choose both and open them as a study. Nothing leaves "
    "this machine, and archives and checkpoints are read without running anything inside them.",
):
    name = st.session_state.study
    description = find_study(Store(), name)
    current = description and common.open_studies().find(description, float(st.session_state.outliers))
    if current is not None:
        with st.container(border=True):
            st.subheader(f"Open now: {name}", anchor=False)
            with common.errors():
                about(current)
                report_section(current, name)
    filled = form()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        wished_name = st.text_input("Name of the study", max_chars=80, placeholder="model and images", key="study name")
        wanted = st.button("Open", type="primary", icon=":material/play_arrow:", key="open")
    with common.errors():
        if wanted:
            open_described(filled, wished_name)
    with common.errors():
        saved_section()
