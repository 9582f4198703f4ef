"""One slider: the best bits for every layer, what they cost, what they measure."""

import json
from dataclasses import replace
from functools import partial

import streamlit as st

from mixqvit.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.errors import InfeasibleBudgetError
from mixqvit.figures import budget as figures
from mixqvit.figures import overview
from mixqvit.figures.sensitivity import rising
from pages import common
from pages.memory import Memory

DEFAULTS = {"average_bits": 4.0, "gamma": 1.0, "size_mb": None, "bitops_g": None, "cap_bitops": True}

STATUS_HEIGHT = 56  # pixels, reserved for the progress bar so that nothing below it moves


def memory(study):
    by_study = st.session_state.setdefault("budgets", {})
    return by_study.setdefault(study.graph.fingerprint, Memory())


def reset(model):
    st.session_state.update(DEFAULTS)
    reset_pins(model)


def reset_pins(model):
    st.session_state[f"pins {model}"] = {}
    st.session_state["pins edited"] = st.session_state.get("pins edited", 0) + 1


def controls(study):
    """Everything a person chooses; returns the arguments of `study.allocate`."""
    with st.container(border=True):
        left, middle, right = st.columns([10, 5, 3], vertical_alignment="bottom", gap="medium")
        average_bits = left.slider(
            "Budget: average bits per weight",
            float(BIT_WIDTHS[0]),
            float(BIT_WIDTHS[-1]),
            DEFAULTS["average_bits"],
            0.1,
            format="%.1f",
            key="average_bits",
            bind="query-params",
            help="Weight bits per quantized weight, averaged over all weights: a ceiling, never exceeded.",
        )
        gamma = middle.slider(
            "γ: weight of importance",
            0.0,
            2.0,
            DEFAULTS["gamma"],
            0.25,
            key="gamma",
            bind="query-params",
            help="Exponent of the importance Ω in the predicted harm: 0 is sensitivity alone, 1 is Mix-QViT.",
        )
        right.button("Reset", icon=":material/undo:", on_click=reset, args=(study.model.name,), width="stretch")
        with st.expander("More ceilings, pinned layers"):
            left, right = st.columns([2, 3], gap="medium")
            with left:
                size, bitops, cap = ceilings()
            with right:
                pinned = pins(study)
    return {
        "average_bits": average_bits,
        "size_bytes": None if size is None else round(size * 1e6),
        "bitops": None if bitops is None else bitops * 1e9,
        "cap_bitops": cap,
        "gamma": gamma,
        "pinned": pinned,
    }


def ceilings():
    size = st.number_input(
        "Model size at most (MB)",
        0.001,
        None,
        None,
        0.01,
        format="%.3f",
        key="size_mb",
        bind="query-params",
        placeholder="no ceiling",
        help="Decimal megabytes, exactly those of the packed file: weight codes at their true width, scales and zero "
        "points, what stays in full precision, and the file's header.",
    )
    bitops = st.number_input(
        "BitOps at most (G)",
        0.001,
        None,
        None,
        0.05,
        format="%.3f",
        key="bitops_g",
        bind="query-params",
        placeholder="no ceiling",
        help="Multiply-accumulates × weight bits × activation bits, summed over layers, for one image; in billions.",
    )
    cap = st.toggle(
        "Cap BitOps at those of uniform bits",
        DEFAULTS["cap_bitops"],
        key="cap_bitops",
        bind="query-params",
        help="Average bits say nothing about activations and attention products. With the cap, a budget of b bits "
        "also allows no more BitOps than b bits everywhere.",
    )
    return size, bitops, cap


def pins(study):
    """An editable table of layers; returns the bits fixed by hand."""
    model = study.model.name
    pinned = st.session_state.setdefault(f"pins {model}", {})
    edited = st.data_editor(
        figures.pin_frame(study.layers, pinned),
        hide_index=True,
        height=230,
        placeholder="–",
        key=f"pins {model} {st.session_state.get('pins edited', 0)}",
        disabled=["layer", "kind"],
        column_config={
            "pinned bits": st.column_config.SelectboxColumn(
                options=[*BIT_WIDTHS, FULL_PRECISION],
                help="Bits fixed by hand; the other layers are solved around them. 32 is full precision.",
            )
        },
        alt="Editable table: layer, kind, pinned bits.",
    )
    pinned = st.session_state[f"pins {model}"] = figures.pins(edited)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{len(pinned)} of {len(study.layers)} layers pinned (● in the figure).")
        st.button(
            "Unpin all",
            icon=":material/undo:",
            type="tertiary",
            on_click=reset_pins,
            args=(model,),
            disabled=not pinned,
        )
    return pinned


def show_measured(place, label, evaluation, waiting="not measured yet"):
    value, interval = ("…", waiting) if evaluation is None else overview.accuracy(evaluation)
    if evaluation is not None and evaluation.images < evaluation.total:
        interval = f"{evaluation.images} of {evaluation.total} images"
    common.fact(
        place,
        f"Top-1, {label[0].lower()}{label[1:]}",
        value,
        interval.replace(" interval", ":"),
        "Top-1 accuracy on the evaluation images, measured with simulated quantization, and its 95 % Wilson interval.",
    )


def show_gauges(place, gauges):
    with place, st.grid(3, min_column_width=230):
        for text, fraction in gauges:
            st.progress(fraction, text)


def solve(study, wanted, remembered):
    """The allocation to show: the best within the budget; the last one that fitted where none does, None at first.

    Its harm is predicted with the γ chosen now, as are those it is shown beside.
    """
    try:
        remembered.show(study.allocate(**wanted), wanted)
        return remembered.allocation
    except InfeasibleBudgetError as error:
        known = remembered.allocation is not None
        st.warning(
            f"{error} " + ("Below is the last allocation that fitted its budget." if known else "Raise it to go on."),
            icon=":material/block:",
        )
    if remembered.allocation is None:
        return None
    return replace(remembered.allocation, harm=study.allocation(remembered.allocation.bits, wanted["gamma"]).harm)


def measure(study, remembered, queue, show):
    """Measure the settings that are not measured yet, one after the other; returns whether all of them are.

    A control that is moved meanwhile interrupts this: Streamlit stops the script at the next update of the progress
    bar, and every finished batch is saved. (A fragment would not do: its reruns wait for the running script.)
    """
    new = False
    for label, name, allocation in queue:
        if allocation is None or remembered.measured(allocation):
            continue
        found = common.run(
            f"Measuring {label}",
            partial(study.evaluate_steps, allocation),
            lambda step, label=label: show(label, step.result),
        )
        if found is None:
            return False
        remembered.remember(name, allocation, found)
        new = True
    if new:
        st.rerun()  # so that figure, table and download, drawn before, show what is known now
    return True


def measured_points(study, remembered, gamma):
    """What was measured in this session, full precision aside; every harm predicted with the γ chosen now."""
    settings = [(point, study.allocation(point.bits, gamma)) for point in remembered.points.values()]
    return [
        figures.MeasuredPoint(point.name, setting.cost, setting.harm, point.evaluation)
        for point, setting in settings
        if point.name != "full precision"
    ]


def points_section(study, remembered, allocation, full, gamma):
    st.subheader("Measured so far", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        measure_name = st.segmented_control(
            "Show",
            list(figures.MEASURES),
            default=next(iter(figures.MEASURES)),
            required=True,
            key="measure",
            bind="query-params",
        )
        st.button(
            "Measure all uniform settings",
            icon=":material/straighten:",
            on_click=setattr,
            args=(remembered, "uniforms", True),
            disabled=remembered.uniforms,
            help=f"Uniform {BIT_WIDTHS[0]} to {BIT_WIDTHS[-1]} bits, each on all evaluation images.",
        )
    points = measured_points(study, remembered, gamma)
    common.chart(
        figures.measured_points(points, full, allocation.cost, measure_name),
        f"{measure_name} against average bits for {len(points)} settings measured in this session.",
        figures.measured_frame(points),
        f"{study.model.name} measured",
    )
    st.caption(
        "Every allocation shown here is added. Bars and band are 95 % intervals; between uniform settings the dotted "
        "line interpolates."
    )


def download(study, remembered, evaluation):
    with st.container(horizontal=True):
        download_packed(study, remembered.allocation)
        download_recipe(study, remembered, evaluation)


def download_packed(study, allocation):
    """Offer the model itself, packed when the button is pressed."""
    st.download_button(
        f"Packed model, {overview.megabytes(allocation.cost.size_bytes)}",
        lambda: study.packed(allocation).content,
        f"{study.model.name} {allocation.cost.average_bits:.2f} bits.safetensors",
        "application/octet-stream",
        icon=":material/download:",
        type="tertiary",
        on_click="ignore",
        help=f"One safetensors file of {allocation.cost.size_bytes:,} bytes: integer weight codes at their true width, "
        "scales, and the allocation. `mixqvit.load_packed` reads it; its logits are those measured here.",
    )


def download_recipe(study, remembered, evaluation):
    """Offer the allocation with what it was solved with, so that the file explains itself whatever is chosen now."""
    allocation, solved_with = remembered.allocation, remembered.wanted
    document = figures.recipe(
        study.model.name, study.settings, allocation, solved_with["gamma"], solved_with["pinned"], evaluation
    )
    st.download_button(
        "Allocation as JSON recipe",
        json.dumps(document, indent=2),
        f"{study.model.name} {allocation.cost.average_bits:.2f} bits.json",
        "application/json",
        icon=":material/download:",
        type="tertiary",
        on_click="ignore",
        help="model, recipe, settings, budget, gamma, pinned, bits {layer: [weight bits, activation bits]}, "
        "predicted_harm, cost, measured.",
    )


def method(sensitivity):
    risen = len(rising(sensitivity))
    with st.expander("How this is computed"):
        st.latex(
            r"\min_{w,a}\ \sum_l \Omega_l^{\gamma}\,\Lambda_l(w_l, a_l)\quad\text{subject to}\quad"
            r"\frac{\sum_l \mathrm{params}_l w_l}{\sum_l \mathrm{params}_l}\le b,\quad"
            r"\sum_l \mathrm{macs}_l w_l a_l \le B,\quad \text{size}\le S"
        )
        st.markdown(
            "Ω is the importance of a layer (relevance), Λ its sensitivity: the KL divergence of the class "
            "probabilities when this layer alone is quantized. One binary variable per layer and bit-width makes this "
            "a linear 0/1 program, solved to proven optimality (Mix-QViT, arXiv 2501.06357). Both operands of a layer "
            "share one bit-width, except that the **input of the patch embedding keeps 8 bits**, because images "
            "arrive so.\n\n"
            "More bits can always be used as if they were fewer, so the predicted harm uses the **monotone "
            "envelope** of the measured sensitivity: the least harm at that many bits or fewer. Here the measured "
            f"curve of {risen} of {len(sensitivity)} layers rises somewhere with more bits. Sensitivity and "
            "importance come from calibration images only. The accuracy is measured on the evaluation images, with "
            "all layers quantized together, so predicted harm need not follow it exactly.\n\n"
            "The model size is that of the packed file, to the byte: weight codes packed without gaps, scales and zero "
            "points (parameters of the activation quantizers included), what stays in float32 (biases, norms, "
            "embeddings), and a header of fixed size.\n\n"
            "The uniform setting beside it is the largest one within every ceiling. The recipe file is JSON: `model`, "
            "`recipe` (quantization recipe), `settings` (images, relevance rules, outlier amplification), `budget` "
            "(ceilings), `gamma`, `pinned` from layer name to bits, `bits` from layer name to [weight bits, activation "
            "bits], `predicted_harm` (with that γ), `cost` and `measured`."
        )


def main():
    with common.page(
        "Budget",
        "The bits of every layer that do the least predicted harm within the budget, proven optimal by an integer "
        "program over importance × sensitivity. Move the budget: the allocation follows at once, its accuracy is "
        "measured on the evaluation images while you watch.",
    ):
        study = common.study()
        wanted = controls(study)
        message = st.container()
        costs = st.container()
        numbers = st.grid(4, min_column_width=165)
        status = st.container(height=STATUS_HEIGHT, border=False)
        waiting = st.empty()
        waiting.info("The first allocation appears once the importance and sensitivity of all layers are known.")
        importance = common.run("Relevance", study.relevance_steps)
        sensitivity = importance and common.run("Sensitivity", study.sensitivity_steps)
        if not sensitivity:
            return
        waiting.empty()
        remembered = memory(study)
        with message:
            allocation = solve(study, wanted, remembered)
        if allocation is None:
            return
        show(study, wanted, remembered, allocation, importance.mean, sensitivity, numbers, costs, status)


def show(study, wanted, remembered, allocation, importance, sensitivity, numbers, costs, status):
    uniform = study.uniform_beside(allocation.budget, wanted["gamma"])
    full = study.uniform(FULL_PRECISION)
    settings = {"mixed": allocation, "uniform": uniform, "full precision": full}
    titles = {
        "mixed": "Mixed bits",
        "uniform": f"Uniform {round(uniform.cost.average_bits)} bits" if uniform else "No uniform fits",
        "full precision": "Full precision",
    }
    show_gauges(costs, figures.gauges(allocation, full.cost, study.bitops_ceiling(allocation.budget)))
    with numbers:
        harm = st.empty()
        places = {name: st.empty() for name in titles}
    common.fact(
        harm,
        "Predicted harm",
        f"{allocation.harm:.3g}",
        f"uniform {uniform.harm:.3g}" if uniform else "no uniform fits",
        "Σ Ω^γ · Λ over all layers, from calibration images: what the allocation minimises. Smaller is better.",
    )
    shown = {name: setting and remembered.measured(setting) for name, setting in settings.items()}
    for name, found in shown.items():
        show_measured(places[name], titles[name], found, "–" if settings[name] is None else "not measured yet")

    st.subheader("Bits of every layer", anchor=False)
    common.chart(
        figures.bits_grid(
            study.layers, allocation.bits, remembered.previous, importance, sensitivity, wanted["pinned"]
        ),
        f"Bits per layer of the mixed allocation, {allocation.cost.average_bits:.2f} on average.",
        figures.allocation_frame(study.layers, allocation.bits, importance, sensitivity),
        f"{study.model.name} allocation",
    )
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.subheader("Beside uniform bits", anchor=False)
        beside = st.empty()
        download(study, remembered, shown["mixed"])
    with right:
        st.subheader("What changed", anchor=False)
        st.markdown(figures.changes(allocation.bits, remembered.previous))

    def compare():
        columns = {
            titles[name]: setting and (setting.cost, setting.harm, shown[name]) for name, setting in settings.items()
        }
        beside.markdown(figures.comparison(columns))

    def refresh(name, found):
        if name in shown:
            shown[name] = found
            show_measured(places[name], titles[name], found)
            compare()

    compare()
    points_section(study, remembered, allocation, shown["full precision"], wanted["gamma"])
    method(sensitivity)
    with status:
        queue = [(name, name, settings[name]) for name in ("full precision", "mixed", "uniform")]
        if remembered.uniforms:
            queue += [(f"uniform {bits} bits", "uniform", study.uniform(bits)) for bits in BIT_WIDTHS]
        if measure(study, remembered, queue, refresh):
            st.caption(
                f"All measured on {len(study.evaluation_images)} evaluation images, which no choice has seen. "
                "Quantization is simulated in floating point: the bits saved are real, the speed is not."
            )


main()
