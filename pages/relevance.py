from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.errors import UnsupportedOperationError
from mixqvit.relevance.records import Importance
from mixqvit.views import relevance as figures
from mixqvit.views.numbers import amount, percent
from pages.parts import common, measuring, relevance_comparison, relevance_images, relevance_texts

if TYPE_CHECKING:
    from mixqvit.study.study import Study

DEFAULTS = {"relevance_view": "grid", "relevance_order": "network", "relevance_layer": None}


def main() -> None:
    with common.page(
        "Relevance",
        "How much of the model's decisions each layer carries: its importance Ω, and below, what a single decision "
        "rests on. Computed by layer-wise relevance propagation: the score of a class is handed backwards through the "
        "network, in proportion to what each part contributed.",
    ):
        study = common.study()
        measuring.among_classes(study)
        method, layer = study.settings.importance, None
        with common.errors():
            try:
                method, layer = layers_section(study)
            except UnsupportedOperationError as error:
                st.error(common.in_words(error), icon=":material/error:")
                st.info(
                    "Other methods above may serve this model. The Budget page works without importance, by strategy "
                    "*sensitivity*."
                )
        relevance_texts.introduction()
        relevance_images.images_section(study)
        comparison = st.container()
        relevance_texts.method(study)
        with comparison:
            relevance_comparison.comparison_section(study, method, layer)


def layers_section(study: "Study") -> tuple[str, str | None]:
    """Show importance, one layer of it, and the flow; returns the method and the layer that is looked at."""
    st.subheader("Importance of the layers")
    method, view, order = controls(study)
    default = method == study.settings.importance
    importance = None
    if common.started(study, "relevance"):
        importance = common.run(
            "Relevance" if default else f"Relevance ({method})",
            lambda: study.relevance_steps(None if default else method),
        )
    if importance is None:
        st.info("Importance is a mean over images; it appears here once all of them are through.")
        return method, st.session_state["relevance_layer"]
    layer = st.session_state["relevance_layer"] or figures.most_important(importance)
    importance_section(study, importance, method, view, order, layer)
    layer_section(study, importance, method, layer)
    flow_section(study, importance, method)
    return method, layer


def controls(study: "Study") -> tuple[str, str, str]:
    """Show what chooses the figures; returns the method, the view and the order of the bars."""
    methods = study.importance_methods
    with st.container(horizontal=True, vertical_alignment="bottom"):
        method = st.selectbox(
            "Method",
            list(methods),
            index=list(methods).index(study.settings.importance),
            key="importance_method",
            bind="query-params",
            width=210,
            help="What importance is computed by: two rule sets of layer-wise relevance propagation, and attributions "
            "by gradients. The other pages use the study's own.",
        )
        view = st.segmented_control(
            "View",
            ["grid", "bars"],
            default=DEFAULTS["relevance_view"],
            required=True,
            key="relevance_view",
            bind="query-params",
        )
        order = st.segmented_control(
            "Order of the bars",
            ["network", "largest first"],
            default=DEFAULTS["relevance_order"],
            required=True,
            key="relevance_order",
            bind="query-params",
            disabled=view == "grid",
        )
        st.selectbox(
            "Layer to look at",
            [layer.name for layer in study.layers],
            index=None,
            placeholder="the most important",
            key="relevance_layer",
            bind="query-params",
            width=230,
            help="Shown below the figure. Clicking a bar or a point chooses its layer too.",
        )
        st.button(
            "Reset",
            icon=":material/restart_alt:",
            key="reset layers",
            on_click=st.session_state.update,
            args=(DEFAULTS | {"importance_method": study.settings.importance},),
        )
    st.caption(methods[method])
    return method, view, order


def choose_layer(layer: str | None) -> None:
    if layer is not None:
        st.session_state["relevance_layer"] = layer


def importance_section(study: "Study", importance: Importance, method: str, view: str, order: str, layer: str) -> None:
    images = len(next(iter(importance.shares.values())))
    leading = figures.leading(study.layers, importance, 3)
    st.markdown(
        f"Ω adds up to 100 % over the {len(study.layers)} layers; mean over {images} calibration images. "
        f"Most important: {leading}."
    )
    name = f"{study.model.name} importance {method}"
    options = {}
    if view == "grid":
        figure = figures.importance_grid(study.layers, importance, layer)
    else:
        figure = figures.importance_bars(study.layers, importance, order == "largest first", layer)
        name += " bars"
        options = {
            "on_select": lambda: choose_layer(
                figures.clicked_layer(st.session_state[f"chart {name}"].selection.points)
            ),
            "selection_mode": "points",
        }
    common.chart(
        figure,
        f"Importance of the layers of {study.model.name} by {method}; most important: {leading}",
        figures.importance_frame(study.layers, importance),
        name,
        **options,
    )


def layer_section(study: "Study", importance: Importance, method: str, name: str) -> None:
    layer = next(layer for layer in study.layers if layer.name == name)
    st.subheader(f"Layer {name}", help="Choose another one above, or click a bar.")
    st.caption(
        f"Kind {layer.kind}, {'outside of blocks' if layer.block is None else f'block {layer.block}'}. Each point is "
        "one image."
    )
    left, right = st.columns([3, 2], gap="medium")
    with left:
        common.chart(
            figures.share_figure(importance, name, study.calibration_images.names),
            f"Share of {name} in every calibration image; the mean is {percent(importance.mean[name], 2)}",
            figures.share_frame(importance, name, study.calibration_images.names),
            f"{study.model.name} {name} shares {method}",
        )
    with right:
        macs, parameters = (sum(getattr(each, count) for each in study.layers) for count in ("macs", "parameters"))
        first, second = st.columns(2)
        common.fact(
            first,
            "Importance Ω",
            percent(importance.mean[name], 2),
            f"rank {figures.rank(importance, name)} of {len(study.layers)}",
            "Its mean share over the images, and its place among all layers.",
        )
        common.fact(
            second,
            "Times equal share",
            f"× {importance.mean[name] * len(study.layers):.2f}",
            f"equal is {percent(1 / len(study.layers), 2)}",
            "Its importance over what it would be if all layers were equally important.",
        )
        common.fact(
            first,
            "MACs",
            amount(layer.macs),
            f"{percent(layer.macs / macs)} of all layers'",
            "Multiply-accumulate operations for one image.",
        )
        common.fact(
            second,
            "Parameters",
            amount(layer.parameters) if layer.parameters else "none",
            f"{percent(layer.parameters / parameters)} of all layers'" if layer.parameters else "two activations",
            "Elements of its weight.",
        )
        here = {"study": st.session_state.study, "outliers": str(st.session_state.outliers)}
        with st.container(horizontal=True):
            st.page_link(
                "pages/sensitivity.py",
                label="How sensitive is it?",
                icon=":material/show_chart:",
                query_params=here | {"highlight": name},
                help="The Sensitivity page with this layer highlighted.",
            )
            st.page_link(
                "pages/quantizers.py",
                label="What do quantizers make of it?",
                icon=":material/grid_on:",
                query_params=here | {"quantizer_layer": name},
                help="The Quantizers page with this layer chosen.",
            )


def flow_section(study: "Study", importance: Importance, method: str) -> None:
    st.subheader(
        "How relevance flows past the blocks",
        help="At each residual sum, seen from the class: what goes into the branch, and what passes it on the skip "
        "connection. Lines: 5 to 95 % of the images.",
    )
    if not importance.flow:
        st.caption(f"{method} attributes to layers directly: nothing flows, so there are no shares of branches.")
        return
    st.markdown(figures.flow_words(importance.flow))
    name = f"{study.model.name} flow {method}"
    common.chart(
        figures.flow_figure(importance.flow),
        f"Share of relevance that takes the attention and MLP branch of every block of {study.model.name}",
        figures.flow_frame(importance.flow),
        name,
        on_select=lambda: choose_layer(
            figures.clicked_branch(study.layers, st.session_state[f"chart {name}"].selection.points)
        ),
        selection_mode="points",
    )
    st.caption("Coloured: the branch. Grey: the skip connection past it. Click a bar for the last layer of its branch.")


main()
