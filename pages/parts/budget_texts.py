"""What the Budget page explains: the method, and the guided tour."""

from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.allocation.request import request_schema
from mixqvit.criteria.inverse import Inverse
from mixqvit.files.allocation_document import document_schema
from mixqvit.views.sensitivity import Harms, rising
from pages.parts import budget_compare, budget_controls
from pages.parts.memory import Controls, Memory

if TYPE_CHECKING:
    from mixqvit.study.study import Study

STEPS = (
    (
        "One slider sets the bits of the whole network",
        "Every cell of the strip below is a layer, from the first to the last, and its number is its bits. **Move the "
        "budget to 3 bits**: ▲ and ▼ mark the layers that give and take, and the dark ones are squeezed hardest.",
    ),
    (
        "Every allocation is measured while you watch",
        "Below the strip are the costs, then the accuracy on images that no choice has seen, with its interval, beside "
        "the largest uniform bits within the same ceilings. **Try 2.5 bits** and compare the two.",
    ),
    (
        "The frontier shows every budget at once",
        "Scroll to *The frontier*: the line is the least predicted harm of every budget, squares are uniform bits, and "
        "everything that was measured is collected below it. **Move the budget** and watch the ring.",
    ),
    (
        "Two allocations, image by image",
        "**Hold this as A**, then choose another budget: *A against B* shows which layers differ and which images "
        "change their class.",
    ),
    (
        "Does the criterion matter?",
        f"Choose the strategy **{Inverse.name}**, which gives the fewest bits to the layers that break, at the same "
        "model size: accuracy falls. *Does the criterion matter?* compares all strategies side by side.",
    ),
)
ACTIONS = (
    ("Set 3 bits", {"average_bits": 3.0}, False),
    ("Set 2.5 bits", {"average_bits": 2.5}, False),
    ("Set 3.5 bits", {"average_bits": 3.5}, False),
    ("Hold as A and set 2.5 bits", {"average_bits": 2.5}, True),
    (f"Choose {Inverse.name} at 3 bits", {"average_bits": 3.0, "strategy": Inverse.name}, False),
)


def act(model: str, remembered: Memory, controls: Controls, holds: bool) -> None:
    if holds:
        budget_compare.hold(remembered)
    budget_controls.set_controls(model, controls)


def go_to(step: int | None) -> None:
    st.session_state["tour"] = step


def tour(study: "Study", remembered: Memory) -> None:
    """Show the tour's step, if it is on."""
    step = st.session_state.get("tour")
    if not step:
        return
    title, sentence = STEPS[step - 1]
    label, controls, holds = ACTIONS[step - 1]
    with st.container(border=True):
        st.markdown(f"**{step} of {len(STEPS)}: {title}.** {sentence}")
        with st.container(horizontal=True):
            st.button("Previous", icon=":material/chevron_left:", on_click=go_to, args=(step - 1,), disabled=step == 1)
            last = step == len(STEPS)
            st.button(
                "Next",
                icon=":material/chevron_right:",
                on_click=go_to,
                args=(step + 1,),
                disabled=last,
                type="secondary" if last else "primary",
            )
            st.button(
                label,
                icon=":material/play_arrow:",
                key="tour action",
                on_click=act,
                args=(study.model.name, remembered, controls, holds),
            )
            st.button("End the tour", icon=":material/close:", type="tertiary", on_click=go_to, args=(None,))


def method(sensitivity: Harms) -> None:
    risen = len(rising(sensitivity))
    with st.expander("How this is computed", icon=":material/functions:"):
        st.latex(
            r"\min_{w,a}\ \sum_l \Omega_l^{\gamma}\,\Lambda_l(w_l, a_l)\quad\text{subject to}\quad"
            r"\frac{\sum_l \mathrm{params}_l w_l}{\sum_l \mathrm{params}_l}\le b,\quad"
            r"\sum_l \mathrm{macs}_l w_l a_l \le B,\quad \text{size}\le S"
        )
        st.markdown(
            "Ω is the importance of a layer (relevance), Λ its sensitivity: the harm to the output when this layer "
            "alone is quantized. One binary variable per layer and choice of bits makes this a linear 0/1 program, "
            "solved to proven optimality (Mix-QViT, arXiv 2501.06357). Other strategies put other scores in place of "
            "Ω^γ · Λ; CLADO (arXiv 2307.05657) adds terms for pairs of layers, an integer quadratic program that is "
            "solved to a stated gap. So that settings of all strategies can be compared, the predicted harm shown is "
            "Σ Ω^γ · Λ for Mix-QViT and Σ Λ for all others.\n\n"
            "Tied, both operands of a layer share one bit-width. Independent, weights and input choose for themselves, "
            "and the harm of a pair is that of the weights alone plus that of the input alone. Either way the **input "
            "of the patch embedding keeps 8 bits**, because images arrive so.\n\n"
            "More bits can always be used as if they were fewer, so the predicted harm uses the **monotone "
            "envelope** of the measured sensitivity: the least harm at that many bits or fewer. Here the measured "
            f"curve of {risen} of {len(sensitivity)} layers rises somewhere with more bits. Sensitivity and "
            "importance come from calibration images only. The accuracy is measured on the evaluation images, with "
            "all layers quantized together, so predicted harm need not follow it exactly.\n\n"
            "The model size is that of the packed file, to the byte: weight codes packed without gaps, scales and zero "
            "points (parameters of the activation quantizers included), what stays in float32 (biases, norms, "
            "embeddings), and a header of fixed size. The uniform setting beside it is the largest one within every "
            "ceiling.\n\n"
            "The allocation file is JSON:\n\n"
            + "\n".join(f"- `{name}`: {part['description']}" for name, part in document_schema()["properties"].items())
            + "\n\nIn its `request`:\n\n"
            + "\n".join(f"- `{name}`: {part['description']}" for name, part in request_schema()["properties"].items())
            + "\n\n"
            "The address of this page carries all of it, what is held as A included: a link reproduces the view."
        )
