"""The part of the Relevance page that compares methods: which importance predicts the damage of quantization?"""

from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.study.records import MethodComparison
from mixqvit.views import importance_methods as figures
from mixqvit.views.numbers import duration
from mixqvit.views.relevance import clicked_layer
from pages.parts import common, measuring

if TYPE_CHECKING:
    from mixqvit.engines.progress import Progress
    from mixqvit.study.study import Study

DEFAULTS = {"comparison_bits": 3.0, "comparison_harm_bits": 3}


def comparison_section(study: "Study", method: str, layer: str | None) -> None:
    """Compare methods. Not a fragment: Streamlit lets a running fragment finish before its Stop button counts."""
    st.subheader("Which importance predicts the damage?")
    st.markdown(
        "Importance is a guess at which layers to spend bits on. Two tests: does it order the layers like the damage "
        "that is measured when each is quantized alone, and what "
        f"{measuring.accuracy(study).in_sentence} do bits reach that it chose?"
    )
    bits = controls()
    wanted = f"compared at {bits} bits on {st.session_state.study} {st.session_state.outliers}"
    if not st.session_state.get(wanted):
        st.button(
            f"Compare the methods, about {duration(measuring.methods_seconds(study))}",
            icon=":material/play_arrow:",
            type="primary",
            on_click=st.session_state.update,
            args=({wanted: True},),
            help="Computes importance by every method, the sensitivity of every layer, and measures every allocation "
            "on all evaluation images. What is measured already takes no time, and what is finished is saved.",
        )
        st.caption(f"{', '.join(study.importance_methods)}, at the same budget of {bits:g} average bits.")
        return
    comparison = measured(study, bits, wanted)
    if comparison is None or not comparison.methods:
        st.info("The first method appears here once its allocations are measured.")
        return
    results(study, comparison, method, layer)


def controls() -> float:
    """Show what sets the budget; returns the average bits."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        bits = st.slider(
            "Budget of the comparison: average bits per weight",
            float(BIT_WIDTHS[0]),
            float(BIT_WIDTHS[-1]),
            DEFAULTS["comparison_bits"],
            0.5,
            format="%.1f",
            key="comparison_bits",
            bind="query-params",
            width=340,
            help="The same for every method, with BitOps no more than uniform bits need. Low budgets tell methods "
            "apart, at high ones all do well.",
        )
        st.button(
            "Reset",
            icon=":material/restart_alt:",
            key="reset comparison",
            on_click=reset,
        )
    return bits


def reset() -> None:
    st.session_state.update(DEFAULTS)
    st.session_state.pop("comparison_method", None)


def measured(study: "Study", bits: float, wanted: str) -> MethodComparison | None:
    """Run the comparison with a live figure; returns it, or what is finished while stopped."""
    progress, slot = st.container(), st.empty()
    so_far = f"finished of {wanted}"
    drawn = 0

    def draw(step: "Progress") -> None:
        nonlocal drawn
        st.session_state[so_far] = step.piece
        finished = len(step.piece.methods) + len(step.piece.references)
        if finished > drawn:
            drawn = finished
            slot.plotly_chart(figures.outcome_figure(step.piece), alt="Methods measured so far")

    with progress:
        comparison = common.run(f"Comparison at {bits} bits", lambda: study.method_comparison_steps(bits), draw)
    slot.empty()
    if comparison is not None:
        st.session_state[so_far] = comparison
    return st.session_state.get(so_far)


def results(study: "Study", comparison: MethodComparison, method: str, layer: str | None) -> None:
    name = f"{study.model.name} methods at {comparison.average_bits:g} bits"
    methods, accuracy = list(comparison.methods), measuring.accuracy(study)
    words = st.container()
    common.chart(
        figures.outcome_figure(comparison),
        f"Measured {accuracy.in_sentence} of the allocations that each method leads to at "
        f"{comparison.average_bits:g} average bits",
        figures.outcome_frame(comparison),
        f"{name} {accuracy.word}",
    )
    st.caption(
        f"{accuracy.title} at {comparison.average_bits:g} average bits with its 95 % interval (Wilson). Grey diamonds: "
        "bits chosen without importance, by sensitivity alone (γ = 0) and uniform."
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        bits = st.segmented_control(
            "Bits of the sensitivity Λ",
            BIT_WIDTHS,
            default=DEFAULTS["comparison_harm_bits"],
            required=True,
            key="comparison_harm_bits",
            bind="query-params",
            help="The damage when one layer alone is quantized to so many bits.",
        )
        if st.session_state.get("comparison_method") not in methods:
            st.session_state["comparison_method"] = method if method in methods else methods[0]
        shown = st.selectbox("Importance Ω by", methods, key="comparison_method", width=210)
    words.markdown(figures.comparison_words(comparison, bits, len(study.layers)))
    for refused, reason in comparison.refused.items():
        words.caption(f"{refused}: {reason}")
    left, right = st.columns(2, gap="medium")
    with left:
        scatter(study, comparison, shown, bits, layer)
    with right:
        common.chart(
            figures.agreement_figure(comparison, bits),
            f"Rank correlation between the methods, and of each with sensitivity at {bits} bits",
            figures.agreement_frame(comparison, bits),
            f"{name} rank correlation at {bits} bits",
        )
        st.caption("1: both put the layers in the same order; 0: unrelated; −1: opposite order.")
    table(comparison, bits)


def scatter(study: "Study", comparison: MethodComparison, shown: str, bits: int, layer: str | None) -> None:
    importance, harms = comparison.methods[shown].importance, study.sensitivity()
    name = f"{study.model.name} {shown} against sensitivity at {bits} bits"

    def choose() -> None:
        clicked = clicked_layer(st.session_state[f"chart {name}"].selection.points)
        if clicked is not None:
            st.session_state["relevance_layer"] = clicked

    common.chart(
        figures.scatter_figure(study.layers, importance, harms, bits, layer),
        f"Importance by {shown} against sensitivity at {bits} bits, one marker per layer",
        figures.scatter_frame(study.layers, importance, harms, bits),
        name,
        on_select=choose,
        selection_mode="points",
    )
    st.caption("A good guess lies on a rising line. Click a marker: the layer is looked at further up.")


def table(comparison: MethodComparison, bits: int) -> None:
    frame = figures.methods_frame(comparison, bits)
    number = st.column_config.NumberColumn
    formats = {
        "s per image": number(format="%.3f", help="Computing time of Ω, measured once when it was computed"),
        "images": number(help="Calibration images that Ω is a mean over"),
        figures.correlation_column(bits): number(format="%.2f", help="Rank correlation of Ω and Λ over the layers"),
        "infidelity": number(
            format="%.3g", help="Captum's infidelity of the attribution of the pixels; less is better"
        ),
        "max sensitivity": number(
            format="%.3g", help="How much the attribution changes under small changes of the image; less is better"
        ),
    }
    for column in frame.columns:
        if column.startswith("KL"):
            formats[column] = number(format="%.4f", help="KL(full precision ‖ quantized), mean per image")
        elif column.endswith("(%)"):
            formats[column] = number(format="%.1f", help="On all evaluation images")
    st.dataframe(
        frame,
        hide_index=True,
        height="content",
        alt="All numbers of the comparison, a row per method.",
        column_config=formats,
    )
    st.caption(
        "The last rows choose bits without importance, so both ways show the same number. Infidelity and maximum "
        "sensitivity exist for methods that explain pixels."
    )
