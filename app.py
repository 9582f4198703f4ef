"""The dashboard: navigation and the sidebar that says which study is open. Start it with `streamlit run app.py`."""

import streamlit as st

from pages.parts import common

st.set_page_config(page_title="Mix-QViT explorer", page_icon=":material/tune:", layout="wide")
page = common.navigation()
common.sidebar()
page.run()
