"""All allocation strategies side by side on the Budget page, within the ceilings chosen now."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.allocation.request import Request
from mixqvit.criteria.registry import CRITERIA
from mixqvit.errors import AllocationError
from mixqvit.study.records import StrategyComparison
from mixqvit.views import strategies as figures
from mixqvit.views.numbers import duration
from pages.parts import common, measuring
from pages.parts.budget_request import START

if TYPE_CHECKING:
    from mixqvit.engines.progress import Progress
    from mixqvit.study.study import Study


def scores_wanted(study: "Study", strategy: str) -> bool:
    """Return whether layers may be scored for a costly strategy now: it is quick, or was asked for on a button."""
    wanted = f"scores for {strategy} wanted on {measuring.key(study)}"
    seconds = measuring.scoring_seconds(study, strategy)
    if st.session_state.get(wanted) or seconds < measuring.SECONDS_WITHOUT_ASKING:
        return True
    with st.container(horizontal=True):
        st.button(
            f"Score the layers for {strategy}, about {duration(seconds)}",
            icon=":material/play_arrow:",
            type="primary",
            on_click=st.session_state.update,
            args=({wanted: True},),
            help="What is measured is saved.",
        )
    return False


def strategies_section(study: "Study", wanted: Request) -> None:
    """Compare strategies on a button, with a live figure. It comes last in the script, as it may take minutes."""
    st.subheader("Does the criterion matter?", anchor=False)
    st.markdown(
        "All strategies within the very ceilings and restrictions above, each measured on all evaluation images. The "
        "controls know nothing (random), treat all layers alike (uniform) or do the opposite (inverse)."
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        measure = st.segmented_control(
            "Compare by",
            figures.measures(measuring.has_labels(study)),
            default=figures.measures(measuring.has_labels(study))[0],
            required=True,
            key="strategy_measure",
            bind="query-params",
        )
        costly = [name for name, criterion in CRITERIA.items() if criterion.is_costly]
        titles, possible = " and ".join(costly), wanted.tied or all(CRITERIA[name].is_independent for name in costly)
        with_costly = st.toggle(
            f"with {titles}",
            key="strategies_with_pairs",
            bind="query-params",
            disabled=not possible,
            help=f"Scoring the layers for {titles} takes longest of all: here about "
            f"{duration(sum(measuring.scoring_seconds(study, name) for name in costly))}. What is measured is saved."
            if possible
            else f"The layers are scored for {titles} with both operands at the same bits: tie the weights and inputs "
            "of a layer to compare it.",
        )
        with_costly = with_costly and possible
        request = replace(wanted, strategy=START.strategy)  # which of them is shown above does not matter
        wanted_flag = f"strategies compared for {request} {with_costly} on {st.session_state.study}"
        wanted_flag += f" {st.session_state.outliers}"
        asked = st.session_state.get(wanted_flag, False)
        names = [name for name in CRITERIA if with_costly or name not in costly]
        seconds = measuring.strategies_seconds(study, names)
        st.button(
            f"Compare the strategies, about {duration(seconds)}",
            icon=":material/play_arrow:",
            type="secondary" if asked else "primary",
            on_click=st.session_state.update,
            args=({wanted_flag: True},),
            disabled=asked,
            help="Scores the layers for every strategy, solves, and measures every allocation. What is measured "
            "already takes no time, and what is finished is saved.",
        )
    if not asked:
        return
    comparison = run(study, names, wanted, wanted_flag, measure)
    if comparison is None or not comparison.results:
        st.info("The first strategy appears here once its allocation is measured.")
        return
    results(study, comparison, measure, wanted.strategy)


def run(study: "Study", names: Sequence[str], wanted: Request, flag: str, measure: str) -> StrategyComparison | None:
    """Run the comparison; returns it, or what is finished while it is stopped."""
    progress, slot = st.container(), st.empty()
    so_far = f"finished of {flag}"
    drawn = 0

    def draw(step: "Progress") -> None:
        nonlocal drawn
        st.session_state[so_far] = step.piece
        if len(step.piece.results) > drawn:
            drawn = len(step.piece.results)
            slot.plotly_chart(
                figures.strategy_figure(step.piece, measure, wanted.strategy), alt="Strategies measured so far"
            )

    known = st.session_state.get(so_far)
    if known is not None and len(known.results) + len(known.refused) == len(names):
        return known
    with progress:
        try:
            comparison = common.run("Strategies", lambda: study.compare_strategies_steps(names, wanted), draw)
        except AllocationError as error:
            st.warning(common.in_words(error), icon=":material/block:")
            return None
    slot.empty()
    if comparison is not None:
        st.session_state[so_far] = comparison
    return st.session_state.get(so_far)


def results(study: "Study", comparison: StrategyComparison, measure: str, chosen: str) -> None:
    st.markdown(figures.strategy_words(comparison, chosen))
    frame = figures.strategy_frame(comparison)
    common.chart(
        figures.strategy_figure(comparison, measure, chosen),
        f"{measure} of the allocations of {len(comparison.results)} strategies within the same ceilings",
        frame,
        f"{study.model.name} strategies",
    )
    number = st.column_config.NumberColumn
    formats = {
        "predicted harm": number(format="%.3g", help="Σ Λ of the bits, the same yardstick for all strategies"),
        "KL (nats)": number(format="%.4f", help="KL(full precision ‖ quantized), mean per image"),
        "average bits": number(format="%.2f"),
        "size (bytes)": number(format="%d", help="Of the packed file"),
        "BitOps": number(format="%.3g"),
        "scoring (s)": number(format="%.1f", help="Computing time of all it has to know, measured when computed"),
        "solving (s)": number(format="%.3f", help="Time to solve for the bits, here and now"),
        "gap (%)": number(format="%.2f", help="How far at most from the strategy's own optimum; 0 is proven optimal"),
    }
    formats |= dict.fromkeys(
        ("top-1 (%)", "from (%)", "to (%)", "agreement (%)"), number(format="%.1f", help="On all evaluation images")
    )
    st.dataframe(
        frame, hide_index=True, height="content", column_config=formats, alt="All strategies, a row per strategy."
    )
    for name, reason in comparison.refused.items():
        st.caption(f"{name}: {reason}")
    images = len(study.evaluation_images)
    told_apart = "accuracy. Agreement and KL tell" if measuring.has_labels(study) else "agreement. KL tells"
    st.caption(
        f"Bars are 95 % intervals on {images} images: strategies whose intervals overlap are not told apart by "
        f"{told_apart} apart more."
    )
