"""The parts of the Budget page that measure, and that show what was measured against average bits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from mixqvit.allocation.budget import Allocation
from mixqvit.allocation.costs import cost
from mixqvit.allocation.request import Request
from mixqvit.errors import AllocationError
from mixqvit.network.bits import BIT_WIDTHS, BitsPerLayer
from mixqvit.views import frontier as figures
from mixqvit.views import overview
from mixqvit.views.accuracy import Accuracy
from mixqvit.views.numbers import duration
from pages.parts import common, measuring
from pages.parts.memory import Memory, key

if TYPE_CHECKING:
    from mixqvit.study.study import Study
    from mixqvit.tasks.evaluation import Evaluation

MOST_SETTINGS = 2000  # of which a session remembers cost and harm: some 30 frontiers


@dataclass(frozen=True)
class ToMeasure:
    """A setting that is to be measured.

    Attributes:
        label: What to call it here.
        name: `mixed`, `uniform` or `full precision`.
        bits: (weight bits, activation bits) by layer name.
    """

    label: str
    name: str
    bits: BitsPerLayer


def setting(study: "Study", remembered: Memory, bits: BitsPerLayer, yardstick: tuple[float, bool]) -> Allocation:
    """Return bits as an allocation with the harm that all settings are compared by; NaN where it is not known."""
    name = (yardstick, key(bits))
    if name not in remembered.settings:
        try:
            found = study.allocation(bits, *yardstick)
        except AllocationError:  # bits by hand that no sweep measured, such as a full-precision weight alone
            found = replace(
                study.allocation(study.resolved(BIT_WIDTHS[-1]), *yardstick),
                bits=bits,
                harm=nan,
                cost=cost(study.layers, bits, study.storage),
            )
        remembered.settings[name] = found
        if len(remembered.settings) > MOST_SETTINGS:
            remembered.settings.pop(next(iter(remembered.settings)))
    return remembered.settings[name]


def measured(study: "Study", remembered: Memory, name: str, bits: BitsPerLayer) -> "Evaluation | None":
    """Return what was measured of bits, here or in an earlier session; None for nothing."""
    found = remembered.measured(bits)
    if found is None and (found := study.saved_evaluation(bits)) is not None:
        remembered.remember(name, bits, found)
    return found


def show_measured(
    place: DeltaGenerator,
    label: str,
    evaluation: "Evaluation | None",
    accuracy: Accuracy,
    waiting: str = "not measured yet",
) -> None:
    value, interval = ("…", waiting) if evaluation is None else overview.accuracy(evaluation)
    if evaluation is not None and evaluation.images < evaluation.total:
        interval = f"{evaluation.images} of {evaluation.total} images"
    common.fact(
        place,
        f"{accuracy.short}, {label[0].lower()}{label[1:]}",
        value,
        interval.replace(" interval", ":"),
        f"{accuracy.help_text} Measured on the evaluation images with simulated quantization, with its 95 % Wilson "
        "interval.",
    )


def measure(
    study: "Study", remembered: Memory, queue: Sequence[ToMeasure], show: Callable[[str, "Evaluation"], None]
) -> bool:
    """Measure the settings that are not measured yet, one after the other; returns whether all of them are.

    A control that is moved meanwhile interrupts this: Streamlit stops the script at the next update of the progress
    bar, and every finished batch is saved. (A fragment would not do: its reruns wait for the running script.) What
    takes long is measured on a button.
    """
    new, waiting = False, []
    for one in queue:
        if measured(study, remembered, one.name, one.bits):
            continue
        if not study.evaluations.by_itself() and key(one.bits) not in remembered.asked:
            waiting.append(one)
            continue
        found = common.run(
            f"Measuring {one.label}",
            partial(study.evaluate_steps, one.bits),
            lambda step, label=one.label: show(label, step.piece),
        )
        if found is None:
            return False
        remembered.remember(one.name, one.bits, found)
        new = True
    if new:
        st.rerun()  # so that figure, table and download, drawn before, show what is known now
    if waiting:
        offer_measuring(study, remembered, waiting)
    return not waiting


def offer_measuring(study: "Study", remembered: Memory, waiting: Sequence[ToMeasure]) -> None:
    seconds = duration(measuring.evaluation_seconds(study))
    images = len(study.evaluation_images)
    with st.container(horizontal=True):
        for one in waiting:
            st.button(
                f"Measure {one.label} on {images} images, about {seconds}",
                icon=":material/play_arrow:",
                type="primary" if one.label == "mixed" else "secondary",
                on_click=remembered.asked.add,
                args=(key(one.bits),),
            )


def frontier(study: "Study", remembered: Memory, wanted: Request) -> list[figures.Point]:
    """Return the optimum of every budget as points; empty while stopped, and for strategies that have none."""
    found = study.saved_frontier(wanted)
    try:
        if found is None:
            found = common.run("The frontier", lambda: study.frontier_steps(wanted))
    except AllocationError:
        return []
    yardstick = wanted.yardstick
    return [
        figures.Point("mixed", point.allocation.cost, shown.harm, budget=point.average_bits)
        for point in found or ()
        if point.allocation is not None
        for shown in [setting(study, remembered, point.allocation.bits, yardstick)]
    ]


def points(study: "Study", remembered: Memory, yardstick: tuple[float, bool]) -> list[figures.Point]:
    """Return the uniform settings, and all others that were measured; every harm predicted with the γ chosen now."""
    bits_of = {key(point.bits): point for point in remembered.points.values() if point.name != "full precision"}
    found = []
    for bits in BIT_WIDTHS:
        uniform = study.resolved(bits)
        bits_of.pop(key(uniform), None)
        shown = setting(study, remembered, uniform, yardstick)
        found.append(figures.Point("uniform", shown.cost, shown.harm, remembered.measured(uniform)))
    held = None if remembered.held is None else key(remembered.held)
    for name, point in bits_of.items():
        shown = setting(study, remembered, point.bits, yardstick)
        title = "A" if name == held else "mixed"
        found.append(figures.Point(title, shown.cost, shown.harm, point.evaluation))
    return found


def frontier_section(
    study: "Study",
    remembered: Memory,
    wanted: Request,
    allocation: Allocation,
    curve: Sequence[figures.Point],
    full: "Evaluation | None",
) -> None:
    """Show predicted harm and what was measured against average bits."""
    st.subheader("The frontier", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        measure_name = st.segmented_control(
            "Measured below",
            figures.measures(measuring.has_labels(study)),
            default=measuring.accuracy(study).title,
            required=True,
            key="measure",
            bind="query-params",
        )
        st.button(
            "Measure all uniform settings",
            icon=":material/straighten:",
            on_click=ask_uniforms,
            args=(study, remembered),
            disabled=remembered.uniforms,
            help=f"Uniform {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]} bits, each on all evaluation images.",
        )
    yardstick = wanted.yardstick
    shown = setting(study, remembered, allocation.bits, yardstick)
    current = figures.Point("mixed", shown.cost, shown.harm, remembered.measured(allocation.bits))
    others = points(study, remembered, yardstick)
    common.chart(
        figures.frontier_figure(curve, others, current, full, measure_name),
        f"Predicted harm of the best allocation of every budget, and {measure_name} of "
        f"{sum(point.evaluation is not None for point in others)} measured settings, against average bits.",
        figures.frontier_frame(curve, others),
        f"{study.model.name} frontier",
    )
    words = figures.frontier_words([point for point in others if point.name == "uniform"], current)
    st.caption(
        f"{words} Above: the line is the best of every budget from 2 to 8 average bits "
        f"({wanted.yardstick_words}), squares are uniform bits. Below: every setting that was "
        "measured, with 95 % intervals; allocations that you look at are added. The ring is the allocation shown now."
    )
    if not curve:
        st.caption(f"No line is drawn: the budgets of strategy {wanted.strategy} were not all solved.")


def ask_uniforms(study: "Study", remembered: Memory) -> None:
    remembered.uniforms = True
    remembered.asked |= {key(study.resolved(bits)) for bits in BIT_WIDTHS}
