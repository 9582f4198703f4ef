import streamlit as st

from mixqvit.bits import BIT_WIDTHS
from mixqvit.figures import sensitivity as figures
from pages import common

OPERANDS = ("both", "weights", "activations")
DEFAULTS = {"operands": "both", "harm_scale": "log", "harm_bits": 3, "kinds": [], "blocks": [], "highlight": None}


def main() -> None:
    with common.page(
        "Sensitivity",
        "How much harm it does to quantize one layer alone: Λ is the KL divergence between the class probabilities of "
        "the full-precision model and those with that one layer quantized. Measured on calibration images, for every "
        "layer and every bit-width from 2 to 8.",
    ):
        study = common.study()
        operands, logarithmic, shown, highlighted = controls(study)
        harms, finished = sweep(study, operands, logarithmic, shown, highlighted)
        words(study, harms, finished)
        grid(study, harms, logarithmic, operands)
        numbers(study, harms)
        method()


def controls(study):
    """Show what chooses the curves; returns operands, whether the scale is logarithmic, layers, highlighted layer."""
    layers = study.layers
    with st.container(horizontal=True, vertical_alignment="bottom"):
        operands = st.segmented_control(
            "Quantized operands",
            OPERANDS,
            default=DEFAULTS["operands"],
            required=True,
            key="operands",
            bind="query-params",
            help="Both inputs of the layer's multiplication, or one of them; an attention product has no weights, both "
            "its operands are activations.",
        )
        scale = st.segmented_control(
            "Scale of the harm",
            ["log", "linear"],
            default=DEFAULTS["harm_scale"],
            required=True,
            key="harm_scale",
            bind="query-params",
            help=f"The logarithmic scale shows harms below {figures.FLOOR:.0e} nats, zero included, at that value.",
        )
        highlighted = st.selectbox(
            "Highlight",
            [layer.name for layer in layers],
            index=None,
            placeholder="one layer against the rest",
            key="highlight",
            bind="query-params",
            width=260,
        )
        kinds = st.multiselect(
            "Kinds",
            list(dict.fromkeys(layer.kind for layer in layers)),
            placeholder="all",
            key="kinds",
            bind="query-params",
            width=220,
        )
        blocks = st.multiselect(
            "Blocks",
            sorted({layer.block for layer in layers if layer.block is not None}),
            placeholder="all",
            key="blocks",
            bind="query-params",
            width=180,
        )
        st.button("Reset", icon=":material/restart_alt:", on_click=st.session_state.update, args=(DEFAULTS,))
    return operands, scale == "log", figures.selected(layers, kinds, blocks), highlighted


def sweep(study, operands: str, logarithmic: bool, shown, highlighted: str | None):
    """Measure, with live curves; returns Λ as far as measured and whether all of it is."""
    name = "Sensitivity" if operands == "both" else f"Sensitivity ({operands} only)"
    progress = st.container()
    slot = st.empty()
    drawn = ""

    def draw(layer: str) -> None:
        nonlocal drawn
        if layer == drawn:  # the browser builds the chart anew each time, so not for every cell
            return
        drawn = layer
        harms = figures.table(study.saved_sensitivity(operands))
        slot.plotly_chart(figures.harm_curves(shown, harms, logarithmic, highlighted), alt="Curves measured so far")

    def steps():
        return study.sensitivity_steps(operands)

    saved = figures.table(study.saved_sensitivity(operands))
    with progress:
        if not figures.complete(study.layers, saved, operands):
            draw("none yet")
        # Calibration comes first and has a bar of its own, so that its remaining time is known too.
        ready = saved or common.run("Calibration", study.calibration_steps) is not None
        harms = common.run(name, steps, lambda step: draw(step.result.layer)) if ready else None
    finished = harms is not None
    if not finished:
        harms = figures.table(study.saved_sensitivity(operands))
    if not shown:
        st.info("No layer is of these kinds in these blocks; choose others.")
    with slot.container():
        common.chart(
            figures.harm_curves(shown, harms, logarithmic, highlighted),
            f"Harm against bits, one curve per layer of {study.model.name}, operands quantized: {operands}",
            figures.harm_frame(shown, harms),
            f"{study.model.name} sensitivity {operands}",
        )
    return harms, finished


def words(study, harms, finished: bool) -> None:
    rising = figures.rising(harms)
    monotone = (
        "No curve rises with more bits."
        if not rising
        else f"{len(rising)} of {len(harms)} curves rise somewhere although bits are added: noise of a small harm on "
        "few images, or a grid that happens to fit worse."
    )
    st.caption(
        f"Curves are shown as measured. {monotone} The allocation uses the monotone envelope, the least harm at that "
        "many bits or fewer; highlight a layer to see it dotted. Click a kind in the legend to hide it."
        + ("" if finished else " The sweep is not finished; what is shown is what was measured.")
    )


def grid(study, harms, logarithmic: bool, operands: str) -> None:
    st.subheader("Which layers break first")
    bits = st.segmented_control(
        "Bit-width",
        BIT_WIDTHS,
        default=DEFAULTS["harm_bits"],
        required=True,
        key="harm_bits",
        bind="query-params",
    )
    st.markdown(figures.first_to_break(study.layers, harms, bits, 5))
    common.chart(
        figures.harm_grid(study.layers, harms, bits, logarithmic),
        f"Harm of every layer of {study.model.name} at {bits} bits",
        figures.harm_frame(study.layers, harms),
        f"{study.model.name} sensitivity {operands} at {bits} bits",
    )


def numbers(study, harms) -> None:
    with st.expander("All numbers", icon=":material/table:"):
        frame = figures.harm_frame(study.layers, harms)
        st.dataframe(
            frame,
            hide_index=True,
            column_config={
                column: st.column_config.NumberColumn(column, format="%.2e", help="Λ in nats")
                for column in frame.columns
                if column.endswith(" bits")
            },
        )


def method() -> None:
    with st.expander("How this is computed", icon=":material/functions:"):
        st.latex(
            r"\Lambda_l(w, a) = \frac{1}{N} \sum_{x} \sum_{c} p(c \mid x)\, "
            r"\log \frac{p(c \mid x)}{\hat p_{l,w,a}(c \mid x)}"
        )
        st.markdown(
            "p are the class probabilities of the full-precision model, p̂ those of the same model in which only layer "
            "*l* is quantized, weights to *w* and activations to *a* bits. The mean runs over the calibration images; "
            "no labels are needed. The network runs once up to each layer and then only from there on for every "
            "bit-width, so a sweep costs far less than one evaluation per cell. KL divergence as the metric "
            "follows Mix-QViT (arXiv 2501.06357). A nat is the unit of information with the natural logarithm; 0 means "
            "that quantizing the layer changes nothing. With *both*, the input of the patch embedding keeps 8 bits, as "
            "it does in every allocation; with *weights* alone a post-LayerNorm input is not reparameterized, and so "
            "neither is the weight."
        )


main()
