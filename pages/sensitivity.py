from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import plotly.graph_objects as go
import streamlit as st

from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION
from mixqvit.network.layers import Layer
from mixqvit.tasks.metrics import Metric
from mixqvit.views import sensitivity as figures
from pages.parts import common

if TYPE_CHECKING:
    from mixqvit.study.study import Study

OPERANDS = ("both", "weights", "activations")
DEFAULTS = {
    "harm_metric": "kl",
    "harm_baseline": FULL_PRECISION,
    "operands": "both",
    "harm_scale": "log",
    "harm_colours": "kind",
    "harm_bits": 3,
    "kinds": [],
    "blocks": [],
    "highlight": None,
}


@dataclass(frozen=True)
class View:
    """How the curves are drawn.

    Attributes:
        layers: Those to draw.
        logarithmic: Whether the scale of the harm is.
        by: What colours tell apart, one of `GROUPS`.
        highlighted: Name of the layer that stands out; None for none.
    """

    layers: Sequence[Layer]
    logarithmic: bool
    by: str
    highlighted: str | None


def main() -> None:
    with common.page(
        "Sensitivity",
        "How much harm it does to quantize one layer alone: Λ says how far the output moves from that of the "
        "full-precision model, by default as KL divergence between the class probabilities. Measured on calibration "
        "images, for every layer and every bit-width from 2 to 8.",
    ):
        study = common.study()
        metric, baseline, operands = sweep_controls(study)
        view = view_controls(study)
        harms, intervals = sweep(study, metric, baseline, operands, view)
        words(study, harms, metric, view, intervals is not None)
        grid(study, harms, metric, baseline, operands, view.logarithmic, intervals)
        numbers(study, harms, metric, intervals)
        method(study)


def sweep_controls(study: "Study") -> tuple[str, int, str]:
    """Show what is measured; returns metric, baseline and operands."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        metric = st.selectbox(
            "Harm is measured as",
            list(study.metrics),
            index=list(study.metrics).index(study.settings.metric),
            format_func=lambda name: study.task.metric(name).title,
            key="harm_metric",
            bind="query-params",
            width=230,
            help="  \n".join(f"**{study.task.metric(name).title}**: {text}" for name, text in study.metrics.items())
            + "  \nOne sweep serves all of them.",
        )
        baseline = st.selectbox(
            "All other layers",
            [FULL_PRECISION, *BIT_WIDTHS],
            index=[FULL_PRECISION, *BIT_WIDTHS].index(study.settings.baseline),
            format_func=figures.setting_words,
            key="harm_baseline",
            bind="query-params",
            width=180,
            help="The baseline: what the layers are left at that are not swept. Harm is measured against full "
            "precision all the same. Another baseline is another sweep.",
        )
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
        st.button("Reset", icon=":material/restart_alt:", on_click=reset, args=(study,))
    return study.task.metric(metric), baseline, operands


def reset(study: "Study") -> None:
    st.session_state.update(DEFAULTS)
    st.session_state.update(harm_metric=study.settings.metric, harm_baseline=study.settings.baseline)


def view_controls(study: "Study") -> View:
    """Show how the curves are drawn; returns what is chosen."""
    layers = study.layers
    with st.container(horizontal=True, vertical_alignment="bottom"):
        scale = st.segmented_control(
            "Scale of the harm",
            ["log", "linear"],
            default=DEFAULTS["harm_scale"],
            required=True,
            key="harm_scale",
            bind="query-params",
            help="A logarithmic scale has no place for zero and for negative harm: they are drawn on its lowest line.",
        )
        by = st.segmented_control(
            "Colour by",
            figures.GROUPS,
            default=DEFAULTS["harm_colours"],
            required=True,
            key="harm_colours",
            bind="query-params",
            help="The marker says the kind either way.",
        )
        highlighted = st.selectbox(
            "Highlight",
            [layer.name for layer in layers],
            index=None,
            placeholder="one against the rest",
            key="highlight",
            bind="query-params",
            width=210,
        )
        kinds = st.multiselect(
            "Kinds",
            list(dict.fromkeys(layer.kind for layer in layers)),
            placeholder="all",
            key="kinds",
            bind="query-params",
            width=150,
        )
        blocks = st.multiselect(
            "Blocks",
            sorted({layer.block for layer in layers if layer.block is not None}),
            placeholder="all",
            key="blocks",
            bind="query-params",
            width=120,
        )
    return View(figures.selected(layers, kinds, blocks), scale == "log", by, highlighted)


def sweep(
    study: "Study", metric: Metric, baseline: int, operands: str, view: View
) -> tuple[figures.Harms, figures.Intervals | None]:
    """Measure, with live curves; returns Λ as far as measured, and the intervals once all of it is."""
    name = work_name(operands, baseline)
    layers = view.layers
    progress = st.container()
    slot = st.empty()
    drawn = ""

    def curves(harms: figures.Harms, intervals: figures.Intervals | None = None) -> go.Figure:
        return figures.harm_curves(
            layers,
            harms,
            metric,
            intervals=intervals,
            logarithmic=view.logarithmic,
            by=view.by,
            highlighted=view.highlighted,
        )

    def saved() -> figures.Harms:
        return figures.table(study.saved_sensitivity(operands, baseline), metric)

    def draw(layer: str) -> None:
        nonlocal drawn
        if layer == drawn:  # the browser builds the chart anew each time, so not for every cell
            return
        drawn = layer
        slot.plotly_chart(curves(saved()), alt="Curves measured so far")

    with progress:
        found = saved()
        if not figures.complete(study.layers, found, operands):
            draw("none yet")
        # Calibration comes first and has a bar of its own, so that its remaining time is known too.
        complete = figures.complete(study.layers, found, operands)
        goes_on = complete or common.started(study, "calibration", "sensitivity")
        ready = goes_on and (found or common.run("Calibration", study.calibration_steps) is not None)
        steps = lambda: study.sensitivity_steps(operands, baseline)  # noqa: E731
        finished = ready and common.run(name, steps, lambda step: draw(step.piece.layer)) is not None
    harms = study.sensitivity(operands, metric.name, baseline) if finished else saved()
    intervals = study.sensitivity_intervals(operands, metric.name, baseline) if finished else None
    if not layers:
        st.info("No layer is of these kinds in these blocks; choose others.")
    with slot.container():
        common.chart(
            curves(harms, intervals),
            f"Harm against bits ({metric.title}), one curve per layer of {study.model.name}, operands "
            f"quantized: {operands}, all other layers {figures.setting_words(baseline)}",
            figures.long_frame(layers, harms, metric, intervals),
            f"{study.model.name} sensitivity {file_words(metric.name, operands, baseline)}",
        )
    return harms, intervals


def work_name(operands: str, baseline: int) -> str:
    details = [f"{operands} only"] if operands != "both" else []
    if baseline != FULL_PRECISION:
        details.append(f"the rest {figures.setting_words(baseline)}")
    return "Sensitivity" + (f" ({', '.join(details)})" if details else "")


def file_words(metric: Metric, operands: str, baseline: int) -> str:
    return f"{metric} {operands}" + ("" if baseline == FULL_PRECISION else f" rest {baseline} bits")


def words(study: "Study", harms: figures.Harms, metric: Metric, view: View, finished: bool) -> None:
    rises = figures.rising(harms)
    sentences = ["Curves are shown as measured."]
    sentences.append(
        "No curve rises with more bits."
        if not rises
        else f"{len(rises)} of {len(harms)} curves rise somewhere although bits are added: noise of a small harm on "
        "few images, or a grid that happens to fit worse."
    )
    sentences.append(
        "The allocation uses the monotone envelope, the least harm at that many bits or fewer; highlight a layer to "
        "see it dotted, with its 95 % interval (bootstrap over the images) as a band. Click a name in the legend to "
        "hide it."
    )
    hidden = figures.undrawable(view.layers, harms) if view.logarithmic else 0
    if hidden:
        sentences.append(f"{hidden} harms are zero or negative: they lie on the lowest line.")
    images = min(study.settings.analysis_images, len(study.calibration_images))
    if metric.counts_images:
        sentences.append(f"This metric is coarse: one of the {images} images is {100 / images:.3g} points.")
    if not finished:
        sentences.append("The sweep is not finished; what is shown is what was measured.")
    st.caption(" ".join(sentences))


def grid(
    study: "Study",
    harms: figures.Harms,
    metric: Metric,
    baseline: int,
    operands: str,
    logarithmic: bool,
    intervals: figures.Intervals | None,
) -> None:
    st.subheader("Which layers break first")
    bits = st.segmented_control(
        "Bit-width",
        BIT_WIDTHS,
        default=DEFAULTS["harm_bits"],
        required=True,
        key="harm_bits",
        bind="query-params",
    )
    st.markdown(figures.first_to_break(study.layers, harms, metric, bits, 5))
    common.chart(
        figures.harm_grid(study.layers, harms, metric, bits, logarithmic, intervals),
        f"Harm of every layer of {study.model.name} at {bits} bits ({metric.title})",
        figures.long_frame(study.layers, harms, metric, intervals, bits),
        f"{study.model.name} sensitivity {file_words(metric.name, operands, baseline)} at {bits} bits",
    )


def numbers(study: "Study", harms: figures.Harms, metric: Metric, intervals: figures.Intervals | None) -> None:
    number = st.column_config.NumberColumn
    unit = metric.unit or "no unit"
    with st.expander("All numbers", icon=":material/table:"):
        frame = figures.harm_frame(study.layers, harms)
        widths = [column for column in frame.columns if column.endswith(" bits")]
        st.dataframe(
            frame,
            hide_index=True,
            column_config={column: number(column, format="%.2e", help=f"Λ ({unit})") for column in widths},
            alt="Harm of every layer at every bit-width.",
        )
        st.caption("With 95 % intervals, one row per layer and bit-width; the CSV below the curves holds the same.")
        frame = figures.long_frame(study.layers, harms, metric, intervals)
        exact = {name: number(name, format="%.3e", help=f"Λ ({unit})") for name in frame.columns[4:7]}
        st.dataframe(
            frame,
            hide_index=True,
            column_config={**exact, "SQNR (dB)": number(format="%.1f", help="Signal to quantization noise of logits")},
            alt="Harm with its interval, one row per layer and bit-width.",
        )


def method(study: "Study") -> None:
    with st.expander("How this is computed", icon=":material/functions:"):
        st.latex(
            r"\Lambda_l(w, a) = \frac{1}{N} \sum_{x} \sum_{c} p(c \mid x)\, "
            r"\log \frac{p(c \mid x)}{\hat p_{l,w,a}(c \mid x)}"
        )
        st.markdown(
            "p are the class probabilities of the full-precision model, p̂ those of the same model in which only layer "
            "*l* is quantized, weights to *w* and activations to *a* bits, and every other layer is left at the "
            "baseline. The mean runs over the calibration images. KL divergence as the metric follows Mix-QViT (arXiv "
            "2501.06357); a nat is the unit of information with the natural logarithm, and 0 means that quantizing "
            "the layer changes nothing. The other metrics:\n\n"
            + "\n".join(f"- **{study.task.metric(name).title}**: {text}" for name, text in study.metrics.items())
            + "\n\nWhat happened to every image is saved, so all metrics and their intervals come from one sweep. The "
            "intervals are 95 % percentile intervals of a bootstrap (Efron 1979): the images drawn again 1,000 times "
            "with replacement. They say how far the harm hangs on the choice of images; with a few dozen images they "
            "are wide.\n\n"
            "The network runs once up to each layer and then only from there on for every bit-width, so a sweep costs "
            "far less than one evaluation per cell. With *both*, the input of the patch embedding keeps 8 bits, as it "
            "does in every allocation; with *weights* alone over full precision a post-LayerNorm input is not "
            "reparameterized, and so neither is the weight."
        )


main()
