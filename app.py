"""The dashboard: navigation and the sidebar that says which study is open. Start it with `streamlit run app.py`."""

import streamlit as st

from pages import common

st.set_page_config(page_title="Mix-QViT explorer", page_icon=":material/tune:", layout="wide")
navigation = st.navigation(
    [
        st.Page("pages/overview.py", title="Overview", icon=":material/home:", default=True),
        st.Page("pages/relevance.py", title="Relevance", icon=":material/visibility:"),
        st.Page("pages/sensitivity.py", title="Sensitivity", icon=":material/show_chart:"),
        st.Page("pages/budget.py", title="Budget", icon=":material/tune:"),
        st.Page("pages/outliers.py", title="Outliers", icon=":material/bar_chart:"),
    ]
)
common.sidebar()
navigation.run()
