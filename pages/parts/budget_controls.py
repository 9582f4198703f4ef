"""Everything a person chooses on the Budget page, how it is undone, and how a link brings it back."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from mixqvit.allocation.request import Request
from mixqvit.allocation.restrictions import Restrictions
from mixqvit.criteria.criterion import Criterion
from mixqvit.criteria.registry import CRITERIA
from mixqvit.network.bits import BIT_WIDTHS, NUMBER_FORMATS, Bits
from pages.parts import budget_tables, budget_url
from pages.parts.budget_request import (
    DEFAULTS,
    FURTHER,
    INDEPENDENT,
    RANGES,
    SLIDER,
    TIED,
    controls_of,
    is_tied_everywhere,
    request_from,
)
from pages.parts.memory import Controls, Memory

if TYPE_CHECKING:
    from mixqvit.study.study import Study

TABLE_HEIGHT = 315  # pixels
HELD_APART = "restrictions"  # which no single widget holds

# The state behind the controls. Widgets hold most of it; restrictions are in the session, by model.


def restrictions(model: str) -> Restrictions:
    return st.session_state.setdefault(f"restrictions {model}", Restrictions())


def set_restrictions(model: str, wanted: Restrictions) -> None:
    """Replace the restrictions; the editable tables start anew from them."""
    st.session_state[f"restrictions {model}"] = wanted
    st.session_state["restrictions set"] = st.session_state.get("restrictions set", 0) + 1


def current(model: str) -> Controls:
    """Return what all controls are set to."""
    values = {name: st.session_state.get(name, default) for name, default in DEFAULTS.items() if name != HELD_APART}
    return values | {HELD_APART: restrictions(model)}


def set_controls(model: str, controls: Controls) -> None:
    """Set controls, for callbacks; what is not named stays as it is."""
    st.session_state.update({name: value for name, value in controls.items() if name != HELD_APART})
    if HELD_APART in controls:
        set_restrictions(model, controls[HELD_APART])


def reset(model: str) -> None:
    set_controls(model, DEFAULTS)


def undo(model: str, remembered: Memory) -> None:
    set_controls(model, remembered.step_back())


def set_request(study: "Study", request: Request) -> list[str]:
    """Set all controls to a request; returns sentences about what they cannot show."""
    controls, problems = controls_of(request, study.layers)
    set_controls(study.model.name, controls)
    return problems


def pin(study: "Study", bits: Mapping[str, int | Bits]) -> None:
    """Pin layers to bits, for callbacks; operands become independent where the bits need it."""
    set_restrictions(study.model.name, replace(restrictions(study.model.name), pinned=bits))
    if not is_tied_everywhere(study.layers, bits):
        st.session_state["operand_bits"] = INDEPENDENT


def read_link(study: "Study", remembered: Memory) -> None:
    """Take from the URL, once per session, what no widget is bound to."""
    if st.session_state.get("budget link read"):
        return
    st.session_state["budget link read"] = True
    known = (*budget_url.PARAMETERS, *RANGES)
    parameters = {name: st.query_params[name] for name in known if name in st.query_params}
    if parameters:
        tied = st.query_params.get("operand_bits") != INDEPENDENT
        found = budget_url.read(parameters, study.layers, tied)
        set_restrictions(study.model.name, found.restrictions)
        remembered.held = found.held
        st.session_state["link problems"] = found.problems


def write_link(study: "Study", remembered: Memory) -> None:
    """Write to the URL what no widget is bound to."""
    for name, text in budget_url.written(restrictions(study.model.name), remembered.held).items():
        if text and st.query_params.get(name) != text:
            st.query_params[name] = text
        elif not text and name in st.query_params:
            del st.query_params[name]


def show_link_problems() -> None:
    problems = st.session_state.get("link problems")
    if problems:
        st.warning(" ".join([*problems, "These parts of it were left out."]), icon=":material/link_off:")
        st.button("Understood", on_click=st.session_state.pop, args=("link problems",), type="tertiary")


# The controls themselves


def controls(study: "Study", remembered: Memory) -> Request:
    """Show everything a person chooses; returns what it asks for."""
    model = study.model.name
    with st.container(border=True):
        left, middle, right = st.columns([9, 5, 5], vertical_alignment="bottom", gap="medium")
        average_bits = left.slider(
            "Budget: average bits per weight",
            *SLIDER.range,
            DEFAULTS[SLIDER.shown_name],
            SLIDER.step,
            format="%.1f",
            key=SLIDER.shown_name,
            bind="query-params",
            help=f"{_capitalised(SLIDER.description)}: a ceiling, never exceeded.",
        )
        strategy = middle.selectbox(
            "Strategy",
            list(CRITERIA),
            key="strategy",
            bind="query-params",
            help="What is minimised:\n\n"
            + "\n".join(f"- **{name}**: {found.sentence}" for name, found in CRITERIA.items()),
        )
        gamma = right.slider(
            "γ: weight of importance",
            *RANGES["gamma"],
            DEFAULTS["gamma"],
            0.25,
            key="gamma",
            bind="query-params",
            disabled=not CRITERIA[strategy].has_gamma,
            help="Exponent of the importance Ω in the predicted harm: 0 is sensitivity alone, 1 is Mix-QViT.",
        )
        with st.expander("More ceilings and restrictions"):
            left, right = st.columns([2, 3], gap="medium")
            with left:
                further = further_controls(CRITERIA[strategy])
            with right:
                restricted = restriction_tables(study, further["operand_bits"] == TIED)
    remembered.note(current(model))
    main = {SLIDER.shown_name: average_bits, "strategy": strategy, "gamma": gamma}
    return request_from({**DEFAULTS, **main, **further, HELD_APART: restricted})


def buttons(model: str, remembered: Memory) -> None:
    """Show what acts on all controls together."""
    st.button(
        "Undo",
        icon=":material/undo:",
        on_click=undo,
        args=(model, remembered),
        disabled=len(remembered.controls) < 2,
        help="Take back the last change of a control.",
    )
    st.button("Reset", icon=":material/restart_alt:", on_click=reset, args=(model,))
    st.button(
        "Tour",
        icon=":material/tour:",
        on_click=st.session_state.update,
        args=({"tour": 1},),
        help="Five steps through this page.",
    )


def further_controls(criterion: Criterion) -> dict[str, Any]:
    """Show further ceilings, how operands share bits, and the seed where there is one; returns their values by name."""
    found: dict[str, Any] = {}
    for one in FURTHER:
        found[one.shown_name] = st.number_input(
            f"{_capitalised(one.title)} at most ({one.symbol})",
            *one.range,
            None,
            one.step,
            format=f"%.{one.digits}f",
            key=one.shown_name,
            bind="query-params",
            placeholder="no ceiling",
            help=f"{_capitalised(one.description)}.",
        )
    found["cap_bitops"] = st.toggle(
        "Cap BitOps at those of uniform bits",
        DEFAULTS["cap_bitops"],
        key="cap_bitops",
        bind="query-params",
        help="Average bits say nothing about activations and attention products. With the cap, a budget of b bits "
        "also allows no more BitOps than b bits everywhere.",
    )
    found["operand_bits"] = st.segmented_control(
        "Weights and inputs of a layer",
        [TIED, INDEPENDENT],
        default=DEFAULTS["operand_bits"],
        required=True,
        key="operand_bits",
        bind="query-params",
        help="Tied: both get the same bits. Independent: each its own; the harm of a pair is that of the weights alone "
        "plus that of the input alone, so two more sweeps are measured first. Attention products stay tied.",
    )
    if criterion.has_seed:
        found["random_seed"] = st.number_input(
            f"Seed of the {criterion.name} strategy",
            *RANGES["random_seed"],
            DEFAULTS["random_seed"],
            1,
            key="random_seed",
            bind="query-params",
            width=220,
        )
    return found


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def restriction_tables(study: "Study", tied: bool) -> Restrictions:
    """Show editable tables of layers and kinds; returns what they restrict."""
    model, layers = study.model.name, study.layers
    layer_tab, kind_tab = st.tabs(["Layers", "Kinds"])
    with layer_tab:
        before = table_start(model, f"layers {tied}")
        if tied and not is_tied_everywhere(layers, before.pinned):
            st.caption(
                "Layers that were pinned to other bits for their weights than for their input are pinned to those of "
                "the weights while both are tied."
            )
        widths = st.column_config.SelectboxColumn
        edited = st.data_editor(
            budget_tables.restriction_frame(layers, before, tied),
            hide_index=True,
            height=TABLE_HEIGHT,
            placeholder="–",
            key=table_key(model, f"layers {tied}"),
            disabled=["layer", "kind"],
            column_config={
                budget_tables.PINNED: widths(
                    options=list(NUMBER_FORMATS),
                    help="Bits fixed by hand; the other layers are solved around them. 32 is full precision.",
                ),
                budget_tables.PINNED_INPUT: widths(
                    options=list(NUMBER_FORMATS),
                    help="Bits of the input where they are to differ from those of the weights.",
                ),
                budget_tables.AT_LEAST: widths(options=list(BIT_WIDTHS), help="No fewer bits than these."),
                budget_tables.AT_MOST: widths(options=list(BIT_WIDTHS), help="No more bits than these."),
            },
            alt="Editable table: layer, kind, pinned bits, least and most bits.",
        )
    with kind_tab:
        before = table_start(model, "kinds")
        edited_kinds = st.data_editor(
            budget_tables.allowed_frame(layers, before.allowed),
            hide_index=True,
            height=TABLE_HEIGHT,
            key=table_key(model, "kinds"),
            disabled=["kind"],
            alt="Editable table: which bit-widths layers of each kind may get.",
        )
    found = replace(budget_tables.restrictions(edited), allowed=budget_tables.allowed(edited_kinds))
    st.session_state[f"restrictions {model}"] = found
    with st.container(horizontal=True, vertical_alignment="center"):
        bounded = len(found.at_least.keys() | found.at_most.keys())
        st.caption(
            f"{len(found.pinned)} of {len(layers)} layers pinned (● in the figure), {bounded} bounded, "
            f"{len(found.allowed)} kinds restricted."
        )
        st.button(
            "Lift all",
            icon=":material/lock_open:",
            type="tertiary",
            on_click=set_restrictions,
            args=(model, Restrictions()),
            disabled=not found,
        )
    return found


def table_key(model: str, table: str) -> str:
    return f"{table} of {model}, edition {st.session_state.get('restrictions set', 0)}"


def table_start(model: str, table: str) -> Restrictions:
    """Return the restrictions that a table's edits go on top of: those of when it appeared."""
    key = table_key(model, table)
    if key not in st.session_state:
        st.session_state[f"start of {key}"] = restrictions(model)
    return st.session_state[f"start of {key}"]
