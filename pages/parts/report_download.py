"""The report of the open study: made on a button, downloaded as one page and its tables."""

from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.report.steps import report_steps
from mixqvit.views.numbers import megabytes
from pages.parts import common, measuring

if TYPE_CHECKING:
    from mixqvit.study.study import Study

MADE = "report"
"""Where the session keeps the last report, with what it was made of."""


def report_section(study: "Study", name: str) -> None:
    """Show the button, the progress, and the downloads."""
    st.subheader("Hand it on", anchor=False)
    st.markdown(
        "The report is one HTML page with every figure, table, setting and version of the study. It opens from disk "
        "without a network; a zip beside it holds the tables as CSV and everything as JSON."
    )
    place = measuring.key(study)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        average_bits = st.number_input("Average bits", 2.0, 8.0, 4.0, 0.1, key="report bits", width=150)
        comparisons = st.checkbox(
            "Comparisons too",
            key="report comparisons",
            help="All strategies and all kinds of importance, solved and measured at this budget. What is not saved "
            "yet is computed, which takes minutes for an embedded model and hours for a large one.",
        )
        wanted = (place, average_bits, comparisons)
        asked = st.button("Make the report", icon=":material/description:", key="make report")
    running = "report running"
    if asked:
        st.session_state[running] = wanted
        st.session_state[common.stop_flag("Report")] = False
    if st.session_state.get(running) == wanted:
        found = common.run(
            "Report", lambda: report_steps(study, average_bits=average_bits, comparisons=comparisons, name=name)
        )
        if found is not None:
            st.session_state[MADE] = (wanted, found)
            st.session_state.pop(running)
    made = st.session_state.get(MADE)
    if made is None or made[0] != wanted:
        return
    found = made[1]
    with st.container(horizontal=True):
        for label, content, ending, mime in (
            ("Report, HTML", found.html.encode(), "html", "text/html"),
            ("Tables, zip", found.bundle, "zip", "application/zip"),
        ):
            st.download_button(
                f"{label}, {megabytes(len(content))}",
                content,
                f"{found.title}.{ending}",
                mime,
                icon=":material/download:",
                on_click="ignore",
            )
