"""The first page: what is open here, what is known about it, where to go."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from mixqvit.allocation.budget import Budget
from mixqvit.allocation.costs import cost
from mixqvit.allocation.request import Request
from mixqvit.criteria.registry import WITHOUT_IMPORTANCE
from mixqvit.errors import UnsupportedOperationError
from mixqvit.network.bits import FULL_PRECISION, uniform
from mixqvit.views import overview
from mixqvit.views.numbers import megabytes, millions
from pages.parts import common, measuring

if TYPE_CHECKING:
    from mixqvit.study.study import Study
    from mixqvit.tasks.evaluation import Evaluation

SMALL_SIDE = 64  # pixels; larger images are photographs
AVERAGE_BITS = 4
STAGES = ("full precision", "relevance", "calibration", "sensitivity")


def facts(study: "Study", full_bytes: int) -> DeltaGenerator:
    """The model in numbers; returns the place where the measured accuracy goes."""
    with st.grid(4, min_column_width=190):
        with st.container(border=True, height="stretch"):  # a metric would cut long names off
            st.caption("Model")
            st.markdown(f"**{study.model.name}**")
            st.caption(type(study.model.module).__name__)
        common.fact(
            st,
            "Parameters",
            millions(study.graph.parameters),
            f"{megabytes(full_bytes)} in full precision",
            "Weights, biases, norms and embeddings. The size is that of a file that holds them as float32, four bytes "
            "each, and a header.",
        )
        common.fact(
            st,
            "MACs",
            millions(study.graph.macs, 1),
            "for one image",
            "Multiply-accumulate operations of all quantized layers, attention products included.",
        )
        return st.empty()


def show_accuracy(place: DeltaGenerator, study: "Study", evaluation: "Evaluation | None") -> None:
    value, interval = ("…", "not measured yet") if evaluation is None else overview.accuracy(evaluation)
    if study.evaluation_images.labels is None:
        value, interval = "–", "the images have no labels"
    common.fact(
        place,
        "Full-precision accuracy",
        value,
        interval,
        "Top-1 accuracy on the evaluation images, measured here, with its 95 % Wilson interval. Without labels "
        "quantized models are measured by their agreement with full precision.",
    )


@dataclass(frozen=True)
class Card:
    """The places on one of the three cards.

    Attributes:
        result: Where its result goes.
        progress: Where its work shows how far it is.
        onward: Where its way onward goes.
    """

    result: DeltaGenerator
    progress: DeltaGenerator
    onward: DeltaGenerator


def card(column: DeltaGenerator, title: str, waiting: str) -> Card:
    """Show one of the three cards; returns its places."""
    with column, st.container(border=True, height="stretch"):
        st.subheader(title, anchor=False)
        with st.container(height="stretch"):
            result = st.empty()
            progress = st.empty()
        result.markdown(f":gray[{waiting}]")
        onward = st.container()
    return Card(result, progress, onward)


def images(study: "Study") -> None:
    evaluation, calibration = study.evaluation_images, study.calibration_images
    is_small = study.model.input_size[1] <= SMALL_SIDE
    shown, width = (16, 54) if is_small else (8, 112)
    examples = [study.evaluations.example(index) for index in range(min(shown, len(evaluation)))]
    st.image(
        [example.picture for example in examples],
        caption=[overview.caption(example) for example in examples],
        alt=[example.alt for example in examples],
        width=width,
    )
    st.caption(
        f"The first {len(examples)} of {len(evaluation)} evaluation images"
        f"{', which have no labels' if evaluation.labels is None else ', with their labels'}. Every choice is made on "
        f"other images: {min(study.settings.calibration_images, len(calibration))} to calibrate, "
        f"{min(study.settings.analysis_images, len(calibration))} for relevance and sensitivity."
    )


def table(study: "Study") -> None:
    st.subheader("Quantized layers", anchor=False)
    st.caption(
        f"{len(study.layers)} operations whose operands get bits, in network order. The attention products "
        "(matmul1: Q Kᵀ, matmul2: A V) have no weights; both of their operands are activations."
    )
    frame = overview.layer_table(study.layers)
    st.dataframe(
        frame,
        hide_index=True,
        height=320,
        placeholder="–",
        alt="Table of the quantized layers with their parameters, MACs and shapes.",
        column_config={
            "layer": st.column_config.TextColumn(width="medium", help="timm's module name."),
            "kind": st.column_config.TextColumn(help="What the layer does in its block."),
            "block": st.column_config.NumberColumn(help="Index of the transformer block; empty outside of blocks."),
            "parameters": st.column_config.NumberColumn(format="localized", help="Weight elements, without biases."),
            "MACs (M)": st.column_config.NumberColumn(
                format="%.3f", help="Millions of multiply-accumulate operations for one image."
            ),
        },
    )
    st.download_button(
        "Layers as CSV",
        frame.to_csv(index=False).encode(),
        f"{study.model.name} layers.csv",
        "text/csv",
        icon=":material/download:",
        type="tertiary",
        on_click="ignore",
    )


def explanation() -> None:
    with st.expander("How this is computed"):
        st.markdown(
            "**Relevance** starts at the predicted class and is propagated back through every operation (Chefer, Gur "
            "and Wolf, arXiv 2012.09838); a layer's importance Ω is its mean share over the calibration images. "
            "**Sensitivity** Λ is the KL divergence of the class probabilities when one layer alone is quantized. "
            "The **allocation** chooses bits for every layer (Mix-QViT, arXiv 2501.06357), proven optimal:"
        )
        st.latex(r"\min_{w,a}\ \sum_l \Omega_l\,\Lambda_l(w_l, a_l)\quad\text{within the budget}")
        st.markdown(
            "Accuracy is then measured with simulated quantization on the evaluation images, which no choice has seen."
        )


def saved_results(study: "Study") -> None:
    size = study.store.size_bytes()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"Saved results take {megabytes(size)} in `{study.store.folder}`.")
        with st.popover("Clear saved results", icon=":material/delete:", type="tertiary"):
            st.markdown("Everything would be computed again, for all models. Allocations that were kept by name stay.")
            if st.button("Clear now", type="primary", key="clear"):
                study.store.clear()
                st.cache_resource.clear()
                st.rerun()


def fill_cards(
    study: "Study",
    full_bytes: int,
    accuracy_place: DeltaGenerator,
    notes_place: DeltaGenerator,
    matters: Card,
    breaks: Card,
    gives: Card,
) -> None:
    """The long work, one stage after the other; each result goes to its place as soon as it is known."""
    with accuracy_place:
        full = common.run("Accuracy", partial(study.evaluate_steps, 32))
    show_accuracy(accuracy_place, study, full)
    measuring.show_notes(notes_place, study)

    request = Request(Budget(average_bits=AVERAGE_BITS))
    try:
        with matters.progress:
            importance = common.run("Relevance", study.relevance_steps)
        if importance is None:
            return
        matters.result.markdown(overview.matters_most(study.layers, importance.mean))
    except UnsupportedOperationError as error:
        matters.result.warning(f"{common.in_words(error)} Bits are chosen by sensitivity alone.")
        request = replace(request, strategy=WITHOUT_IMPORTANCE)

    with breaks.progress:
        sensitivity = common.run("Sensitivity", study.sensitivity_steps)
    if sensitivity is None:
        return
    breaks.result.markdown(overview.breaks_first(sensitivity))

    mixed = study.allocate(request)
    beside = study.uniform(AVERAGE_BITS, *request.yardstick)
    measured = {}
    for name, allocation in (("Mixed bits", mixed), ("Uniform bits", beside)):
        with gives.progress:
            measured[name] = common.run(name, partial(study.evaluate_steps, allocation))
        if measured[name] is None:
            return
        gives.result.markdown(
            overview.four_bits_give(
                mixed, measured["Mixed bits"], measured.get("Uniform bits"), beside.cost.size_bytes, full_bytes
            )
        )


with common.page(
    "Mix-QViT explorer",
    "How few bits can each layer of a vision transformer live on? Relevance says which layers matter, sensitivity "
    "which ones break, and a budget turns both into bits for every layer, measured on real images.",
):
    study = common.study()
    # Not study.uniform: its predicted harm would wait for the sensitivity.
    full = cost(study.layers, uniform(study.layers, FULL_PRECISION), study.storage)
    full_bytes = full.size_bytes
    accuracy_place = facts(study, full_bytes)
    show_accuracy(accuracy_place, study, None)
    notes_place = st.empty()
    measuring.show_notes(notes_place, study)
    question = st.container()
    images(study)
    columns = st.columns(3)
    matters = card(columns[0], "Which layers matter", "Waiting for relevance.")
    with matters.onward:
        st.page_link("pages/relevance.py", label="See the relevance", icon=":material/arrow_forward:")
    breaks = card(columns[1], "Which break first", "Waiting for sensitivity.")
    with breaks.onward:
        st.page_link("pages/sensitivity.py", label="See the sensitivity", icon=":material/arrow_forward:")
    gives = card(
        columns[2],
        f"What {AVERAGE_BITS} bits give",
        f"Waiting for the best allocation with {AVERAGE_BITS} bits on average.",
    )
    if gives.onward.button("Choose a bit budget", type="primary", icon=":material/tune:", width="stretch"):
        st.switch_page("pages/budget.py")
    table(study)
    explanation()
    saved_results(study)
    with question:
        go = common.started(study, *STAGES)
    if go:
        fill_cards(study, full_bytes, accuracy_place, notes_place, matters, breaks, gives)
