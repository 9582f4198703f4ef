from collections.abc import Mapping
from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.quantization.roles import ROLES
from mixqvit.views import quantizers as figures
from mixqvit.views.numbers import duration
from pages.parts import common, measuring

if TYPE_CHECKING:
    from mixqvit.engines.progress import Progress
    from mixqvit.quantization.quantizer_comparison import OperandComparison
    from mixqvit.study.study import Study
    from mixqvit.tasks.evaluation import Evaluation

DEFAULT_BITS = 4
RECIPE_EVALUATIONS = 1.2  # calibrating and measuring a recipe takes so many measurements of the study's own recipe


def main() -> None:
    with common.page(
        "Quantizers",
        "Every quantizer on the menu, fitted to the same values and compared: by its levels, and by how much the "
        "layer's output changes when this one operand is quantized. Fitted and measured on the calibration images; "
        "whole recipes are measured on the evaluation images further down.",
    ):
        study = common.study()
        layer, operand, bits = controls(study)
        with st.spinner(f"Fitting the quantizers of {layer} at {len(BIT_WIDTHS)} bit-widths …"):
            comparison = study.quantizers.compare(layer, operand)
        name = f"{study.model.name} {layer} {comparison.role.replace('_', ' ')}"
        errors(comparison, bits, name, study.settings.recipe)
        grids(comparison, bits, name)
        words(comparison)
        measurements = st.container()
        method(study)
        with measurements:
            recipes(study)


def controls(study: "Study") -> tuple[str, int, int]:
    """Show what chooses the figures; returns layer, place of the operand and bit-width."""
    names = [layer.name for layer in study.layers]
    first = next((place for place, layer in enumerate(study.layers) if layer.kind == "matmul2"), 0)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer = st.selectbox(
            "Layer",
            names,
            index=first,
            key="quantizer_layer",
            bind="query-params",
            width=250,
            help="matmul1 is Q Kᵀ, matmul2 is A V: both of their operands are activations.",
        )
        found = study.quantizers.roles(layer)
        operand = 0
        if len(found) > 1:
            operand = st.segmented_control(
                "Operand",
                range(len(found)),
                default=0,
                required=True,
                format_func=lambda place: ROLES[found[place]],
                key="quantizer_operand",
                bind="query-params",
                help="The one that is quantized; the other factor stays in full precision.",
            )
        bits = st.segmented_control(
            "Bit-width",
            BIT_WIDTHS,
            default=DEFAULT_BITS,
            required=True,
            key="quantizer_bits",
            bind="query-params",
            help="Of the operand: 2ᵇ levels.",
        )
        st.button("Reset", icon=":material/restart_alt:", on_click=reset, args=(names[first],))
    if found[operand] == "image":
        st.caption("In every uniform setting the image keeps 8 bits, since it arrives as 8-bit numbers.")
    return layer, operand, bits


def reset(layer: str) -> None:
    chosen = {"quantizer_layer": layer, "quantizer_operand": 0, "quantizer_bits": DEFAULT_BITS}
    st.session_state.update(chosen | {key: [] for key in st.session_state if key.startswith("quantizer_grids")})


def errors(comparison: "OperandComparison", bits: int, name: str, default: str) -> None:
    title = f"{comparison.layer}: {ROLES[comparison.role]}"
    st.markdown(figures.error_words(comparison, bits, default))
    left, right = st.columns(2, gap="medium")
    with left:
        st.subheader(f"Error at {bits} bits", help="Squared change of the layer's output over its squared size.")
        common.chart(
            figures.error_bars(comparison, bits, default),
            f"Output error of every quantizer of {title} at {bits} bits, least first",
            figures.error_frame(comparison),
            f"{name} errors",
        )
        st.caption(
            f"{title}. Hatched, ◀: what the default recipe, {default}, uses here. Bars end at 100 %, an error as large "
            "as the output."
        )
    with right:
        st.subheader("Error against bits", help="Every quantizer is fitted anew at each bit-width.")
        common.chart(
            figures.error_curves(comparison, bits),
            f"Output error of every quantizer of {title} against bits",
            figures.error_frame(comparison),
            f"{name} errors by bits",
        )


@st.fragment
def grids(comparison: "OperandComparison", bits: int, name: str) -> None:
    st.subheader("Where the levels are", help="What a quantizer returns is always one of its levels.")
    names = [quantizer.name for quantizer in comparison.quantizers]
    chosen = st.pills(
        "Quantizers drawn",
        names,
        selection_mode="multi",
        key=f"quantizer_grids {comparison.role}",
        help="None chosen draws all.",
    )
    common.chart(
        figures.grid_figure(comparison, bits, chosen or names),
        f"Histogram of the values of {comparison.layer} with the levels of each quantizer at {bits} bits",
        figures.grid_frame(comparison, bits, chosen or names),
        f"{name} levels at {bits} bits",
    )
    st.caption(
        "Bars: how many values of the calibration images fall where, on a logarithmic scale. Ticks: the levels they "
        "are rounded to. Good grids have their levels where the values are, and reach the few that count."
        + (
            ""
            if comparison.channel is None
            else f" Where channels have grids of their own, values and levels of channel {comparison.channel} are "
            "shown, whose range is of median width."
        )
    )


def words(comparison: "OperandComparison") -> None:
    st.subheader("What each one is, and when it wins", help="The quantizers on the menu of this operand.")
    columns = st.columns(2, gap="medium")
    for place, quantizer in enumerate(comparison.quantizers):
        found = quantizer.described
        columns[place % 2].markdown(f"**{found.name}.** {found.what} {found.when} :gray[{found.source}.]")


def recipes(study: "Study") -> None:
    """Compare recipes. Not a fragment: Streamlit lets a running fragment finish before its Stop button counts."""
    st.subheader("Recipes", help="A recipe chooses a quantizer for every kind of operand, and how weights are fitted.")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        bits = st.segmented_control(
            "Bits of all weights and activations",
            BIT_WIDTHS,
            default=DEFAULT_BITS,
            required=True,
            key="recipe_bits",
            bind="query-params",
            help="The input of the patch embedding keeps 8 bits.",
        )
        wanted = st.toggle(
            f"Measure the recipes, about {duration(recipe_seconds(study, bits))}",
            key="recipes_measured",
            bind="query-params",
            help="Calibrates every recipe and runs all evaluation images. What is measured is saved.",
        )
    found = measured(study, bits, wanted)
    if found.keys().isdisjoint(study.quantizers.recipes()):
        what_to_do = "Press *Resume*." if wanted else "Turn on *Measure the recipes* above."
        st.info(f"No recipe has been measured at {bits} bits yet. {what_to_do}")
        return
    st.markdown(figures.recipe_words(found, bits, study.settings.recipe))
    frame = figures.recipe_frame(found, study.quantizers.recipes())
    common.chart(
        figures.recipe_figure(found, list(study.quantizers.recipes()), bits, study.settings.recipe),
        f"{measuring.accuracy(study).title} of every recipe on {study.model.name} at {bits} bits",
        frame,
        f"{study.model.name} recipes at {bits} bits",
    )
    number, measured_as = st.column_config.NumberColumn, measuring.accuracy(study).word
    st.dataframe(
        frame,
        hide_index=True,
        height="content",
        alt=f"The recipes measured at {bits} bits.",
        column_config={
            "top-1 (%)": number(format="%.1f", help="Classified as labelled"),
            "from (%)": number(format="%.1f", help=f"Lower end of the 95 % interval of {measured_as} (Wilson)"),
            "to (%)": number(format="%.1f", help=f"Upper end of the 95 % interval of {measured_as} (Wilson)"),
            "agreement (%)": number(format="%.1f", help="Same top-1 class as in full precision"),
            "KL (nats)": number(format="%.4f", help="KL(full precision ‖ quantized), mean per image"),
        },
    )


def recipe_seconds(study: "Study", bits: int) -> float:
    """Return about how long measuring the recipes takes that are not measured yet."""
    missing = 1 + len(study.quantizers.recipes()) - len(study.quantizers.saved_recipes(bits))
    return RECIPE_EVALUATIONS * missing * measuring.evaluation_seconds(study)


def measured(study: "Study", bits: int, wanted: bool) -> Mapping[str, "Evaluation"]:
    """Measure what is missing if that is wanted, with a live figure; returns what is measured."""
    found = study.quantizers.saved_recipes(bits)
    if not wanted or len(found) > len(study.quantizers.recipes()):
        return found
    progress, slot = st.container(), st.empty()
    drawn = 0

    def draw(step: "Progress") -> None:
        nonlocal drawn
        if len(step.piece) > drawn:
            drawn = len(step.piece)
            figure = figures.recipe_figure(step.piece, list(study.quantizers.recipes()), bits, study.settings.recipe)
            slot.plotly_chart(figure, alt="Recipes measured so far")

    with progress:
        finished = common.run(f"Recipes at {bits} bits", lambda: study.quantizers.recipe_steps(bits), draw)
    slot.empty()
    return study.quantizers.saved_recipes(bits) if finished is None else finished


def method(study: "Study") -> None:
    with st.expander("How this is computed", icon=":material/functions:"):
        st.markdown(
            "f is the layer: W x + b, or the attention product with its other factor. Only the one operand x is "
            "quantized, to x̂; weights and everything else stay in full precision, and reparameterized inputs meet "
            "the weights they were folded into. The error is"
        )
        st.latex(r"\frac{\lVert f(\hat x) - f(x) \rVert^2}{\lVert f(x) \rVert^2}")
        st.markdown(
            f"Quantizers are fitted to all values on the {study.settings.calibration_images} calibration images; the "
            "error is taken over at most 2,048 tokens of them, or a million values of an attention product. The "
            "levels of the main families, with codes k from 0 to 2ᵇ − 1, are"
        )
        st.latex(
            r"\text{uniform: } s\,(k - z)\qquad \text{logarithmic: } s\,2^{-k},\; s\,2^{-k/2},\; s\,a^{-k} - t\qquad "
            r"\text{per channel: } s_c\,(k - z_c)"
        )
        st.markdown(
            "Scale s, zero point z, base a and shift t are what fitting finds. A recipe is measured at uniform bits "
            "like any allocation: top-1 accuracy where there are labels, agreement with full precision and KL "
            "divergence on the evaluation images, which no fit has seen. repq-vit is calibrated for its one "
            "setting, layer after layer, as published; the others serve any bits. mix-qvit also compensates errors in "
            "closed form, which the comparison of single operands above leaves out."
        )
        listed = "\n".join(f"- **{name}**: {description}" for name, description in study.quantizers.recipes().items())
        st.markdown(listed)


main()
