"""One slider: the best bits for every layer, what they cost, what they measure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from mixqvit.allocation.budget import Allocation
from mixqvit.allocation.quantities import spent
from mixqvit.allocation.request import Request
from mixqvit.errors import AllocationError, UnsupportedOperationError
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, is_tied
from mixqvit.views import allocation_strip
from mixqvit.views import budget as figures
from mixqvit.views.allocation_words import LayerFacts, changes
from pages.parts import (
    budget_compare,
    budget_controls,
    budget_keep,
    budget_measure,
    budget_strategies,
    budget_texts,
    common,
    export_download,
    measuring,
)
from pages.parts.budget_measure import ToMeasure
from pages.parts.memory import Memory

if TYPE_CHECKING:
    from mixqvit.study.study import Study
    from mixqvit.tasks.evaluation import Evaluation

STATUS_HEIGHT = 56  # pixels, reserved for the progress bar so that nothing below it moves
VIEWS = ("strip", "grid")


@dataclass(frozen=True)
class Places:
    """Where the Budget page puts what is known of an allocation, in the order of the screen.

    Attributes:
        costs: What it costs.
        numbers: Predicted harm and what was measured.
        notes: What to know beside the numbers.
        status: Progress of what is measured.
    """

    costs: DeltaGenerator
    numbers: DeltaGenerator
    notes: DeltaGenerator
    status: DeltaGenerator


def memory(study: "Study") -> Memory:
    by_study = st.session_state.setdefault("budgets", {})
    return by_study.setdefault(measuring.key(study), Memory())


def scores(study: "Study", remembered: Memory, wanted: Request) -> bool:
    """Compute what the strategy has to know, and Λ, which all settings are compared by; returns whether it is there."""
    criterion, tied = wanted.criterion, wanted.tied
    if (criterion.name, tied) in remembered.scored or not (tied or criterion.is_independent):
        return True  # `study.allocate` says at once what a strategy cannot do
    if common.run("Sensitivity", study.sensitivity_steps) is None:
        return False
    if not tied and any(
        common.run(f"Sensitivity ({operands} only)", lambda operands=operands: study.sensitivity_steps(operands))
        is None
        for operands in ("weights", "activations")
    ):
        return False
    if criterion.has_gamma:
        importance = common.run("Relevance", study.relevance_steps)
        if importance is None:
            return False
        remembered.importance = importance.mean
    if criterion.is_costly and not budget_strategies.scores_wanted(study, criterion.name):
        return False
    # At any γ, which may move before the next time.
    if common.run(f"Scores for {criterion.name}", lambda: study.score_steps(criterion.name, tied=tied)) is None:
        return False
    remembered.scored.add((criterion.name, tied))
    return True


def solve(study: "Study", wanted: Request, remembered: Memory) -> Allocation | None:
    """The allocation to show: the best within the budget; the last one that fitted where none does, None at first."""
    try:
        remembered.show(study.allocate(wanted), wanted)
    except AllocationError as error:
        next_words = (
            "Raise a ceiling or lift a restriction to go on."
            if remembered.allocation is None
            else "Below is the last allocation that fitted."
        )
        st.warning(f"{common.in_words(error)} {next_words}", icon=":material/block:")
    return remembered.allocation


def show_gauges(place: DeltaGenerator, gauges: Sequence[tuple[str, float]]) -> None:
    with place, st.grid(3, min_column_width=230):
        for text, fraction in gauges:
            st.progress(fraction, text)


def tools(study: "Study", remembered: Memory) -> str:
    """Show what acts on the allocation as a whole; returns how it is drawn."""
    with st.container(horizontal=True, vertical_alignment="center"):
        view = st.segmented_control(
            "View",
            VIEWS,
            default=VIEWS[0],
            required=True,
            key="budget_view",
            bind="query-params",
            label_visibility="collapsed",
            help="The strip has one cell per layer, first to last; ▲ more and ▼ fewer bits than before, ● pinned. The "
            "grid shows blocks × kinds.",
        )
        budget_compare.hold_button(remembered)
        budget_controls.buttons(study.model.name, remembered)
    return view


def headline(study: "Study", wanted: Request, remembered: Memory, allocation: Allocation, view: str) -> None:
    """Show the bits of every layer, what changed, and what is pinned."""
    facts = LayerFacts(
        allocation.bits,
        remembered.previous,
        remembered.importance,
        study.sensitivity(),
        study.task.metric(study.metric),
        wanted.restrictions.pinned,
        wanted.restrictions.at_least,
        wanted.restrictions.at_most,
    )
    tied = all(is_tied(layer, allocation.bits[layer.name]) for layer in study.layers)
    common.chart(
        allocation_strip.allocation_strip(study.layers, facts, tied)
        if view == VIEWS[0]
        else figures.bits_grid(study.layers, facts),
        f"Bits per layer of the allocation, {allocation.cost.average_bits:.2f} on average.",
        figures.allocation_frame(study.layers, facts),
        f"{study.model.name} allocation",
    )


def main() -> None:
    with common.page(
        "Budget",
        "The bits of every layer that do the least predicted harm within the budget, proven optimal by an integer "
        "program over importance × sensitivity. Move the budget: the allocation follows at once, and is measured on "
        "the evaluation images while you watch.",
    ):
        study = common.study()
        remembered = memory(study)
        budget_controls.read_link(study, remembered)
        budget_texts.tour(study, remembered)
        budget_controls.show_link_problems()
        wanted = budget_controls.controls(study, remembered)
        budget_controls.write_link(study, remembered)
        message = st.container()
        view = tools(study, remembered)
        strip, costs = st.container(), st.container()
        numbers = st.grid(4, min_column_width=165)
        measuring.among_classes(study)
        notes = st.empty()
        measuring.show_notes(notes, study)
        status = st.container(height=STATUS_HEIGHT, border=False)
        waiting = st.empty()
        waiting.info("The allocation appears once what the strategy has to know of all layers is computed.")
        with message:
            if not common.started(study, "relevance", "calibration", "sensitivity"):
                return
        try:
            with status:
                if not scores(study, remembered, wanted):
                    return
        except UnsupportedOperationError as error:
            waiting.empty()
            with message:
                common.offer_sensitivity(error, wanted.strategy, "strategy")
            return
        waiting.empty()
        with message:
            allocation = solve(study, wanted, remembered)
            if allocation is None:
                return
            budget_keep.show_difference(study, allocation)
        with strip:
            headline(study, wanted, remembered, allocation, view)
        show(study, wanted, remembered, allocation, Places(costs, numbers, notes, status))


def show(study: "Study", wanted: Request, remembered: Memory, allocation: Allocation, places: Places) -> None:
    yardstick = wanted.yardstick
    uniform = study.uniform_beside(allocation.budget, *yardstick)
    full = study.uniform(FULL_PRECISION, *yardstick)
    compared = replace(allocation, harm=budget_measure.setting(study, remembered, allocation.bits, yardstick).harm)
    settings = {"mixed": compared, "uniform": uniform, "full precision": full}
    titles = {
        "mixed": "Mixed bits",
        "uniform": f"Uniform {round(uniform.cost.average_bits)} bits" if uniform else "No uniform fits",
        "full precision": "Full precision",
    }
    with places.costs:
        taken, all_of_it = (spent(study.layers, one.bits, study.storage) for one in (allocation, full))
        show_gauges(st.container(), figures.gauges(taken, all_of_it, study.allocations.ceilings(allocation.budget)))
        st.caption(
            figures.solved_words(allocation.gap, remembered.wanted.strategy, remembered.wanted.criterion.is_search)
        )
    with places.numbers:
        harm = st.empty()
        measured = {name: st.empty() for name in titles}
    common.fact(
        harm,
        "Predicted harm",
        figures.harm_text(compared.harm),
        f"uniform {figures.harm_text(uniform.harm)}" if uniform else "no uniform fits",
        f"{wanted.yardstick_words} over all layers, from calibration images. Smaller is better.",
    )
    shown = {
        name: setting and budget_measure.measured(study, remembered, name, setting.bits)
        for name, setting in settings.items()
    }
    held = remembered.held
    shown["A"] = held and budget_measure.measured(study, remembered, "mixed", held)
    measuring.show_notes(places.notes, study)  # again: by now the answers in full precision may be known
    for name, place in measured.items():
        budget_measure.show_measured(
            place,
            titles[name],
            shown[name],
            measuring.accuracy(study),
            "–" if settings[name] is None else "not measured yet",
        )
    with places.status:
        curve = budget_measure.frontier(study, remembered, wanted)

    budget_measure.frontier_section(study, remembered, wanted, compared, curve, shown["full precision"])
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.subheader("Beside uniform bits", anchor=False)
        beside = st.empty()
    with right:
        st.subheader("What changed", anchor=False)
        st.markdown(changes(study.layers, allocation.bits, remembered.previous))

    def compare() -> None:
        columns = {
            titles[name]: setting and (setting.cost, setting.harm, shown[name]) for name, setting in settings.items()
        }
        beside.markdown(figures.comparison(columns, measuring.has_labels(study)))

    def refresh(name: str, found: "Evaluation") -> None:
        if name in measured:
            shown[name] = found
            budget_measure.show_measured(measured[name], titles[name], found, measuring.accuracy(study))
            compare()

    compare()
    budget_compare.comparison_section(study, remembered, compared, yardstick, shown)
    strategies = st.container()
    budget_keep.keep_section(study, remembered, shown["mixed"])
    export_download.export_section(study, remembered)
    budget_texts.method(study.sensitivity())
    with places.status:
        queue = [
            ToMeasure(name, name, settings[name].bits)
            for name in ("full precision", "mixed", "uniform")
            if settings[name] is not None
        ]
        if held is not None:
            queue.insert(2, ToMeasure("A", "mixed", held))
        if remembered.uniforms:
            queue += [ToMeasure(f"uniform {bits} bits", "uniform", study.resolved(bits)) for bits in BIT_WIDTHS]
        if budget_measure.measure(study, remembered, queue, refresh):
            st.caption(
                f"Measured on {len(study.evaluation_images)} evaluation images that no choice has seen. Simulated: the "
                "bits saved are real, the speed is not."
            )
    with strategies:
        budget_strategies.strategies_section(study, wanted)


main()
