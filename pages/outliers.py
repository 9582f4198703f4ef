import streamlit as st

from mixqvit.bits import BIT_WIDTHS
from mixqvit.figures import outliers as figures
from pages import common

TOP = 10
DEFAULTS = {"outlier_layer": None, "outlier_bits": 4, "stage": "before", "channel_order": "network"}
DASHED = {
    "before": "Dashed: the ends of one grid for all channels, which has to reach the widest of them.",
    "clipped grid": "Grey ends: the grid each channel gets for itself after clipping across channels; what a bar shows "
    "beyond them is cut.",
    "reparameterized": "Every channel divided by its ratio r and shifted. Dashed: the ends of the one grid that now "
    "fits them all.",
}


def main() -> None:
    with common.page(
        "Outliers",
        "The range of every channel that LayerNorm hands to a linear layer, and what quantization makes of it: as it "
        "is, with a grid per channel clipped across channels, and after reparameterization. Ranges are measured on the "
        "calibration images; errors are those of the layer's output.",
    ):
        study = common.study()
        layer, bits, stage, widest_first = controls(study)
        if common.run("Calibration", study.calibration_steps) is None:
            st.info("The ranges appear here once the quantizers of all layers are fitted.")
            return
        with st.spinner(f"Measuring the channels of {layer} …"):
            ranges = study.channel_ranges(layer, bits)
        headline(study, ranges, stage, widest_first)
        errors_and_weights(study, ranges)
        top_channels(ranges)
        overview(study, bits)
        texts()
        method()


def controls(study) -> tuple[str, int, str, bool]:
    """Show what chooses the figure; returns layer, bit-width, stage and whether the widest channels come first."""
    names = [layer.name for layer in study.post_layer_norm_layers]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer = st.selectbox(
            "Layer whose input is shown",
            names,
            key="outlier_layer",
            bind="query-params",
            width=260,
            help="Every layer whose input comes straight from a LayerNorm: qkv, fc1 and patch merging.",
        )
        bits = st.segmented_control(
            "Bit-width",
            BIT_WIDTHS,
            default=DEFAULTS["outlier_bits"],
            required=True,
            key="outlier_bits",
            bind="query-params",
            help="Of weights and activations, for the grids and the errors.",
        )
        stage = st.segmented_control(
            "Ranges",
            figures.STAGES,
            default=DEFAULTS["stage"],
            required=True,
            key="stage",
            bind="query-params",
            help="Reparameterization moves the differences between channels out of the activations into LayerNorm and "
            "the weights.",
        )
        order = st.segmented_control(
            "Order of the channels",
            ["network", "widest first"],
            default=DEFAULTS["channel_order"],
            required=True,
            key="channel_order",
            bind="query-params",
        )
        st.button(
            "Reset",
            icon=":material/restart_alt:",
            on_click=st.session_state.update,
            args=(DEFAULTS | {"outlier_layer": names[0]},),
        )
    return layer, bits, stage, order == "widest first"


def headline(study, ranges, stage: str, widest_first: bool) -> None:
    spread = [figures.weight_spread(sizes) for sizes in (ranges.weight_before, ranges.weight_after)]
    with st.container(horizontal=True):
        st.metric(
            "Widest channel",
            f"{ranges.max_to_median:.1f} × median",
            help="The widest range of a channel over the median channel's. 1 means all alike.",
        )
        st.metric(
            "Outlier channels",
            f"{len(figures.outlier_channels(ranges))} of {len(ranges.lower)}",
            help=f"Channels more than {figures.OUTLIER_TIMES:g} times as wide as the median channel.",
        )
        st.metric(
            "Clipping",
            f"{100 * ranges.clip:g} % a side" if ranges.clip else "none",
            help="Percentage of channels at either end whose range is cut, chosen by the least output error.",
        )
        st.metric(
            "Largest weight column",
            f"{spread[0]:.1f} → {spread[1]:.1f} × median",
            help="Spread of the next layer's weight columns before and after reparameterization, which multiplies "
            "column c by r_c.",
        )
    common.chart(
        figures.range_figure(ranges, stage, widest_first),
        f"Range of every channel at the input of {ranges.layer}, {stage}; the widest is "
        f"{ranges.max_to_median:.1f} times the median",
        figures.channel_frame(ranges),
        f"{study.model.name} {ranges.layer} channels at {ranges.bits} bits",
    )
    st.caption(DASHED[stage])
    st.markdown(f"{figures.outlier_words(ranges)} {figures.clip_words(ranges)}")
    if not figures.outlier_channels(ranges):
        st.info(
            "Small models trained on digits have mild outliers. Turn up *Outlier amplification* in the sidebar: the "
            "full-precision model stays the same, two channels of every LayerNorm become outliers.",
            icon=":material/lightbulb:",
        )


def errors_and_weights(study, ranges) -> None:
    left, right = st.columns(2, gap="medium")
    with left:
        st.subheader("Output error by variant", help="Weights are quantized to the same bits in all four.")
        common.chart(
            figures.error_bars(ranges),
            f"Output error of {ranges.layer} at {ranges.bits} bits by variant",
            figures.error_frame(ranges),
            f"{study.model.name} {ranges.layer} errors at {ranges.bits} bits",
        )
    with right:
        st.subheader("Weight columns", help="Root mean square of the weights that read each channel.")
        common.chart(
            figures.weight_columns(ranges),
            f"Size of the weight columns of {ranges.layer} before and after reparameterization",
            figures.channel_frame(ranges)[["channel", "weight before", "weight after", "ratio r"]],
            f"{study.model.name} {ranges.layer} weight columns",
        )


def top_channels(ranges) -> None:
    st.subheader(f"The {TOP} widest channels")
    number = st.column_config.NumberColumn
    st.dataframe(
        figures.widest_channels(ranges, TOP),
        hide_index=True,
        column_order=[
            "channel",
            "outlier",
            "times the median",
            "smallest",
            "largest",
            "ratio r",
            "weight before",
            "weight after",
        ],
        column_config={
            "outlier": st.column_config.CheckboxColumn(help="Wider than the threshold"),
            "times the median": number(format="%.2f", help="Width of its range over the median channel's"),
            "smallest": number(format="%.3f", help="On the calibration images"),
            "largest": number(format="%.3f", help="On the calibration images"),
            "ratio r": number(format="%.3f", help="What the channel is divided by and its weight column multiplied by"),
            "weight before": number(format="%.4f", help="Root mean square of its weight column"),
            "weight after": number(format="%.4f", help="The same after multiplication by r"),
        },
    )


def overview(study, bits: int) -> None:
    st.subheader("All layers")
    if not st.toggle(
        "Measure the widest channel of every layer",
        key="all_layers",
        bind="query-params",
        help="Takes a few seconds the first time.",
    ):
        return
    widest = common.run("Widest channels", lambda: study.outlier_steps(bits))
    if widest is None:
        return
    common.chart(
        figures.overview_strip(study.post_layer_norm_layers, widest),
        f"Widest channel over the median channel by layer of {study.model.name}",
        figures.overview_frame(study.post_layer_norm_layers, widest),
        f"{study.model.name} widest channels",
    )
    st.caption(f"Dashed: {figures.OUTLIER_TIMES:g} times the median, above which a channel is called an outlier here.")


def texts() -> None:
    left, right = st.columns(2, gap="medium")
    left.markdown(
        "**What an outlier channel is.** LayerNorm makes all tokens alike in size, but not all channels: some are "
        "scaled up by its weights, and their values are many times as large as the others'. Large vision transformers "
        "have such channels in almost every block.\n\n"
        "**Why one scale for all channels fails.** A quantizer has 2ᵇ steps for its whole range. If one channel "
        "needs a range ten times as wide, the steps get ten times as coarse for all, and the ordinary channels are "
        "left with a few steps: at 4 bits sometimes with one."
    )
    right.markdown(
        "**What reparameterization does.** A scale per channel would help, but hardware wants one scale per tensor in "
        "a matrix product. So the differences are moved elsewhere: LayerNorm's own weights divide every channel by r, "
        "the next layer's weight column is multiplied by r, and the product stays the same. Now one scale fits all "
        "channels.\n\n"
        "**What clipping trades.** The differences are not gone, they are in the weights now: a severe outlier gives "
        "its weight column a large r, and the weights get harder to quantize. Clipping the widest ranges before makes "
        "r milder and cuts off a few values instead. No clipping is always among the candidates."
    )


def method() -> None:
    with st.expander("How this is computed", icon=":material/functions:"):
        st.markdown("Scale and zero point of every channel become a common scale and zero point, a ratio and a shift:")
        st.latex(
            r"s^* = \operatorname{mean}_c s_c,\quad z^* = \operatorname{mean}_c z_c,\quad "
            r"r_c = \frac{s_c}{s^*},\quad t_c = (z^* - z_c)\, s^*"
        )
        st.markdown("They are folded into LayerNorm (γ, β) and the layer after it (W, b), which compute the same:")
        st.latex(
            r"\gamma' = \gamma / r,\quad \beta' = \beta / r - t,\quad W' = W \operatorname{diag}(r),\quad b' = b + W' t"
        )
        st.markdown(
            "Source: RepQ-ViT (arXiv 2212.08254, section 3.2). Clipping across channels is the clipped channel-wise "
            "quantization of Mix-QViT (arXiv 2501.06357); its percentile is chosen here from a small grid that "
            "includes no clipping, by the least squared error of the layer's output on the calibration images (this "
            "project's definition). The error of a variant is"
        )
        st.latex(r"\lVert W x - \hat W \hat x \rVert^2 \,/\, \lVert W x \rVert^2")


main()
