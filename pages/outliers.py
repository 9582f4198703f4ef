from collections.abc import Mapping
from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.network.bits import BIT_WIDTHS
from mixqvit.quantization.channels import CLIPS, OUTLIER_TIMES, VARIANTS, ChannelRanges, ChannelStatistics
from mixqvit.views import outlier_errors, outlier_tokens
from mixqvit.views import outliers as figures
from mixqvit.views.maps import thumbnail
from mixqvit.views.numbers import duration
from pages.parts import common, measuring, outlier_texts

if TYPE_CHECKING:
    from mixqvit.study.study import Study

DEFAULTS = {
    "outlier_layer": None,
    "outlier_bits": 4,
    "outlier_variant": "per tensor",
    "outlier_clip": 1.0,
    "outlier_channel": None,
    "channel_order": "network",
    "outlier_measure": figures.MEASURES[0],
    "outlier_image": 0,
    "outlier_error": outlier_errors.ERRORS[0],
    "outlier_harm": False,
    "outlier_count": 10,
}
GRIDS = {
    "per tensor": "Dashed: the ends of the one grid for all channels.",
    "per channel": "Yellow ends: the grid each channel gets for itself. Kind to the values, but a matrix product in "
    "hardware wants one scale per tensor.",
    "reparameterized": "Every channel divided by its ratio r and shifted. Dashed: the ends of the one grid that now "
    "fits them all.",
    "clipped": "Yellow ends: the grid each channel gets after clipping across channels; what a bar shows beyond them "
    "is cut.",
}
ERRORS = {
    "in the output": "What each channel adds to the squared error of the layer's output, by its values and by its "
    "weight column together, as if channels erred independently; relative to the squared output.",
    "of the values": "Root mean square error of each channel's values relative to their root mean square. "
    "Reparameterization leaves every channel the grid it has per channel, so these two coincide: where they differ is "
    "in the weights.",
    "of the weights": "Root mean square error of the weight column that reads each channel relative to the column's "
    "root mean square. Per tensor and per channel quantize the same weights.",
}
ALL = "all"


def main() -> None:
    with common.page(
        "Outliers",
        "Which channels LayerNorm hands to a linear layer with a wider range than the rest, and what a quantizer makes "
        "of them: with one grid for all, one per channel, after reparameterization and with clipping. Measured on the "
        "calibration images, each layer by itself on full-precision inputs.",
    ):
        study = common.study()
        layer, bits, clip, variant, order = controls(study)
        found = common.run("Channels", study.channels.statistics_steps)
        if found is None:
            st.info("The channels appear here once every layer's input was looked at.")
            return
        with st.spinner(f"Quantizing {layer} in {len(VARIANTS)} ways …"):
            ranges = study.channels.ranges(layer, bits, clip)
        chosen = chosen_channel(ranges)
        headline(study, ranges, variant, order, chosen)
        overview(study, found)
        left, right = st.columns(2, gap="medium")
        with left:
            channel_section(study, ranges, variant, chosen)
        with right:
            image_section(study, ranges, order, chosen)
        error_section(study, ranges, order, chosen)
        clip_section(study, ranges)
        weight_section(study, ranges, order, chosen)
        outlier_texts.trades()
        top_section(ranges, order)
        outlier_texts.method()


def controls(study: "Study") -> tuple[str, int, float, str, str]:
    """Show what chooses the figures; returns layer, bit-width, clipped fraction, variant and order of the channels."""
    names = [layer.name for layer in study.channels.layers]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer = st.selectbox(
            "Layer whose input is shown",
            names,
            key="outlier_layer",
            bind="query-params",
            width=230,
            help="Every layer whose input comes straight from a LayerNorm: qkv, fc1 and patch merging.",
        )
        st.number_input(
            "Channel",
            min_value=0,
            value=None,
            placeholder="widest",
            key="outlier_channel",
            bind="query-params",
            width=130,
            help="Its number; empty for the widest. Clicking a channel in a figure sets it too.",
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
        percent = st.slider(
            "Clipping (% of channels a side)",
            min_value=0.0,
            max_value=100 * CLIPS[-1],
            value=DEFAULTS["outlier_clip"],
            step=100 * CLIPS[1],
            format="%.1f",
            key="outlier_clip",
            bind="query-params",
            width=200,
            help="For the variant *clipped*: lower ends below this percentile of all channels' lower ends, and upper "
            "ends beyond the mirrored one, are cut. 0 is no clipping. Further down its effect is measured.",
        )
        variant = st.pills(
            "Grid",
            VARIANTS,
            default=DEFAULTS["outlier_variant"],
            required=True,
            key="outlier_variant",
            bind="query-params",
            help="Whose grid is marked: one scale for all channels; one per channel; that moved into LayerNorm and "
            "the next layer's weights; the same after clipping ranges across channels.",
        )
        order = st.segmented_control(
            "Order of the channels",
            figures.ORDERS,
            default=DEFAULTS["channel_order"],
            required=True,
            key="channel_order",
            bind="query-params",
            help="In all figures with an axis of channels.",
        )
        st.button(
            "Reset",
            icon=":material/restart_alt:",
            on_click=st.session_state.update,
            args=(DEFAULTS | {"outlier_layer": names[0]},),
        )
    return layer, bits, CLIPS[round(percent / 100 / CLIPS[1])], variant, order


def chosen_channel(ranges: ChannelRanges) -> int:
    """Return the channel chosen by click or number, the widest where none is or the layer has no such channel."""
    channel = st.session_state.get("outlier_channel")
    known = channel is not None and 0 <= channel < len(ranges.statistics.width)
    return int(channel) if known else ranges.statistics.widest_channel


def choose_clicked(key: str) -> None:
    channel = figures.clicked_channel(st.session_state[key].selection.points)
    if channel is not None:
        st.session_state["outlier_channel"] = channel


def headline(study: "Study", ranges: ChannelRanges, variant: str, order: str, chosen: int) -> None:
    statistics = ranges.statistics
    sharpest = int(statistics.kurtosis.argmax())
    with st.container(horizontal=True):
        st.metric(
            "Widest channel",
            f"{ranges.max_to_median:.1f} × median",
            help="The widest range of a channel over the median channel's. 1 means all alike.",
        )
        st.metric(
            "Outlier channels",
            f"{int(statistics.is_outlier.sum())} of {len(statistics.width)}",
            help=f"Channels more than {OUTLIER_TIMES:g} times as wide as the median channel: a grid that covers them "
            "costs the median channel at least one bit.",
        )
        st.metric(
            "Highest kurtosis",
            f"{statistics.kurtosis[sharpest]:.1f} in channel {sharpest}",
            help="Kurtosis of a channel over all tokens: 3 for a bell curve; high where a few tokens are far from the "
            "rest, which is where cutting a range costs least.",
        )
        st.metric(
            "Steps for the median channel",
            f"{figures.median_steps(ranges):.1f} of {2**ranges.bits - 1}",
            help="How many steps of one grid for all channels the median channel's range spans.",
        )
    name = f"{study.model.name} {ranges.layer} channels at {ranges.bits} bits"
    common.chart(
        figures.range_figure(ranges, variant, order, chosen),
        f"Range of every channel at the input of {ranges.layer}, grid {variant}; the widest is "
        f"{ranges.max_to_median:.1f} times the median",
        figures.channel_frame(ranges, variant),
        name,
        on_select=lambda: choose_clicked(f"chart {name}"),
        selection_mode="points",
    )
    st.caption(f"{GRIDS[variant]} Click a bar to choose its channel.")
    st.markdown(figures.outlier_words(ranges))
    if not statistics.is_outlier.any() and st.session_state.outliers == 1:
        st.info(
            "Outliers are mild here, as they are in small models and in some layers of large ones. Turn up *Outlier "
            "amplification* in the sidebar: the full-precision model stays the same, two channels of every LayerNorm "
            "become outliers.",
            icon=":material/lightbulb:",
        )


def channel_section(study: "Study", ranges: ChannelRanges, variant: str, chosen: int) -> None:
    statistics = ranges.statistics
    st.subheader(f"Channel {chosen} over the tokens", help="All tokens of all calibration images.")
    st.caption(
        f"{statistics.times_median[chosen]:.2f} × median width, kurtosis {statistics.kurtosis[chosen]:.1f}, mean "
        f"{statistics.mean[chosen]:.2f}, standard deviation {statistics.deviation[chosen]:.2f}"
    )
    asked = st.session_state["outlier_channel"]
    if asked is not None and asked != chosen:
        st.warning(
            f"{ranges.layer} has no channel {asked}; they are numbered 0 to {len(statistics.width) - 1}. The widest "
            "is shown.",
            icon=":material/warning:",
        )
    pair = [study.channels.distribution(ranges.layer, number) for number in (chosen, statistics.median_channel)]
    common.chart(
        outlier_tokens.distribution_figure(ranges, variant, *pair),
        f"Distribution of channel {chosen} over the tokens beside that of channel {statistics.median_channel}, whose "
        f"width is the median, with the grid {variant}",
        outlier_tokens.distribution_table(pair),
        f"{study.model.name} {ranges.layer} channel {chosen} distribution",
    )
    st.caption(
        f"Both channels on one axis, with the levels of the grid *{variant}* at {ranges.bits} bits. Bars: "
        + ("patch tokens. Diamonds: class and other extra tokens." if pair[0].extra_tokens else "all tokens.")
    )


@st.fragment
def image_section(study: "Study", ranges: ChannelRanges, order: str, chosen: int) -> None:
    st.subheader("One image: tokens × channels", help="The input of this layer for one evaluation image.")
    with common.errors():
        images = study.evaluation_images
        with st.container(horizontal=True, vertical_alignment="bottom"):
            index = common.image_number("outlier_image", len(images))
            st.image(thumbnail(images.display(index, index + 1)[0].numpy()), width=40)
        found = study.channels.token_map(ranges.layer, index)
        limit = outlier_tokens.map_limit(found)
        common.chart(
            outlier_tokens.token_figure(found, figures.channel_order(ranges.statistics, order), chosen, limit),
            f"Input of {ranges.layer} for {images.names[index]}, tokens by channels",
            outlier_tokens.map_frame(found),
            f"{study.model.name} {ranges.layer} {images.names[index]} tokens",
        )
        st.caption(f"{images.names[index]}. {outlier_tokens.map_words(found, limit)}")


def error_section(study: "Study", ranges: ChannelRanges, order: str, chosen: int) -> None:
    st.subheader("Quantization error by channel", help="All variants at the chosen bits.")
    where = st.segmented_control(
        "Error",
        outlier_errors.ERRORS,
        default=outlier_errors.ERRORS[0],
        required=True,
        key="outlier_error",
        bind="query-params",
    )
    name = f"{study.model.name} {ranges.layer} errors by channel at {ranges.bits} bits"
    common.chart(
        outlier_errors.error_figure(ranges, where, order, chosen),
        f"Quantization error {where} of every channel of {ranges.layer} at {ranges.bits} bits in four variants",
        outlier_errors.error_frame(ranges),
        name,
        on_select=lambda: choose_clicked(f"chart {name}"),
        selection_mode="points",
    )
    st.caption(ERRORS[where])


def clip_section(study: "Study", ranges: ChannelRanges) -> None:
    left, right = st.columns(2, gap="medium")
    with right, common.errors():
        st.subheader("Clipping across channels", help="How much to clip is the slider at the top.")
        curve, harms = study.channels.clip_curve(ranges.layer, ranges.bits), None
        if st.toggle(
            f"Measure the network's output too, about {duration(measuring.clip_seconds(study))}",
            key="outlier_harm",
            bind="query-params",
            help="Runs the calibration images through the network with this layer alone quantized, once for every "
            "clipping.",
        ):
            harms = common.run("Clipping", lambda: study.channels.clip_harm_steps(ranges.layer, ranges.bits))
        common.chart(
            outlier_errors.clip_figure(curve, ranges.clip, harms),
            f"Output error of {ranges.layer} at {ranges.bits} bits against clipping; least at {100 * curve.least:g} %",
            outlier_errors.clip_frame(curve, harms),
            f"{study.model.name} {ranges.layer} clipping at {ranges.bits} bits",
        )
    with left:
        st.subheader("Output error by variant", help="Weights are quantized to the same bits in all four.")
        common.chart(
            outlier_errors.error_bars(ranges),
            f"Output error of {ranges.layer} at {ranges.bits} bits by variant",
            outlier_errors.output_error_frame(ranges),
            f"{study.model.name} {ranges.layer} output errors at {ranges.bits} bits",
        )
        st.markdown(outlier_errors.clip_words(curve, ranges.clip, harms))


def weight_section(study: "Study", ranges: ChannelRanges, order: str, chosen: int) -> None:
    st.subheader("Weights of the layer", help="What reparameterization does to the weights that read the channels.")
    left, right = st.columns(2, gap="medium")
    with left:
        common.chart(
            outlier_errors.weight_columns(ranges, order, chosen),
            f"Root mean square of every weight column of {ranges.layer} before and after reparameterization",
            outlier_errors.weight_frame(ranges),
            f"{study.model.name} {ranges.layer} weight columns at {ranges.bits} bits",
        )
    with right:
        common.chart(
            outlier_errors.weight_rows(ranges),
            f"Width of every weight row's range of {ranges.layer} after reparameterization against before",
            outlier_errors.weight_row_frame(ranges),
            f"{study.model.name} {ranges.layer} weight rows at {ranges.bits} bits",
        )
    st.caption(outlier_errors.weight_words(ranges))


def top_section(ranges: ChannelRanges, order: str) -> None:
    kind = "sharpest" if order == figures.ORDERS[2] else "widest"
    st.subheader(f"The {kind} channels", help="By width, or by kurtosis where that is the order of the channels.")
    count = st.segmented_control(
        "Channels",
        [10, 30, ALL],
        default=10,
        required=True,
        key="outlier_count",
        bind="query-params",
    )
    number = st.column_config.NumberColumn
    after = f"After reparameterization, clipped at {100 * ranges.clip:g} % a side"
    st.dataframe(
        figures.top_channels(ranges, order, len(ranges.statistics.width) if count == ALL else count),
        hide_index=True,
        column_order=[
            "channel",
            "outlier",
            "times the median",
            "kurtosis",
            "smallest",
            "largest",
            "mean",
            "standard deviation",
            "ratio r",
            "weight before",
            "weight after",
        ],
        column_config={
            "outlier": st.column_config.CheckboxColumn(help="Wider than the threshold"),
            "times the median": number(format="%.2f", help="Width of its range over the median channel's"),
            "kurtosis": number(format="%.1f", help="Over all tokens; 3 for a bell curve"),
            "smallest": number(format="%.3f", help="On the calibration images"),
            "largest": number(format="%.3f", help="On the calibration images"),
            "mean": number(format="%.3f"),
            "standard deviation": number(format="%.3f"),
            "ratio r": number(format="%.3f", help=f"What the channel is divided by. {after}"),
            "weight before": number(format="%.4f", help="Root mean square of its weight column"),
            "weight after": number(format="%.4f", help=after),
        },
    )


def overview(study: "Study", found: Mapping[str, ChannelStatistics]) -> None:
    left, right = st.columns(2, gap="medium")
    with left:
        st.subheader(
            "All layers", help="Every layer with a post-LayerNorm input; the layer shown is chosen at the top."
        )
        measure = st.segmented_control(
            "Show",
            figures.MEASURES,
            default=figures.MEASURES[0],
            required=True,
            key="outlier_measure",
            bind="query-params",
        )
        layers = study.channels.layers
        common.chart(
            figures.overview_grid(layers, found, measure),
            f"{measure} by layer of {study.model.name}",
            figures.overview_frame(layers, found),
            f"{study.model.name} outliers by layer",
        )
        st.markdown(figures.recurring_words(found))
    with right:
        outlier_texts.definition()


main()
