import streamlit as st

from mixqvit.figures import relevance as figures
from pages import common

SAMPLES = 8
NO_CLASS_TOKEN = (
    " This model has no class token whose attention could be followed, so patches have no attribution here and the "
    "relevance of the pixels stands alone."
)


def main() -> None:
    with common.page(
        "Relevance",
        "How much of the model's decisions each layer carries: its importance Ω, and below, what a single decision "
        "rests on. Computed by layer-wise relevance propagation: the score of a class is handed backwards through the "
        "network, in proportion to what each part contributed.",
    ):
        study = common.study()
        importance_section(study)
        texts()
        image_section(study)
        method()


def importance_section(study) -> None:
    st.subheader("Importance of the layers")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        view = st.segmented_control(
            "View", ["grid", "bars"], default="grid", required=True, key="relevance_view", bind="query-params"
        )
        order = st.segmented_control(
            "Order of the bars",
            ["network", "largest first"],
            default="network",
            required=True,
            key="relevance_order",
            bind="query-params",
            disabled=view == "grid",
        )
    importance = common.run("Relevance", study.relevance_steps)
    if importance is None:
        st.info("Importance is a mean over images; it appears here once all of them are through.")
        return
    images = len(next(iter(importance.shares.values())))
    leading = figures.leading(study.layers, importance, 3)
    st.markdown(
        f"Ω adds up to 100 % over the {len(study.layers)} layers; mean over {images} calibration images. "
        f"Most important: {leading}."
    )
    if view == "grid":
        figure = figures.importance_grid(study.layers, importance)
    else:
        figure = figures.importance_bars(study.layers, importance, order == "largest first")
    common.chart(
        figure,
        f"Importance of the layers of {study.model.name}; most important: {leading}",
        figures.importance_frame(study.layers, importance),
        f"{study.model.name} importance",
    )


def texts() -> None:
    left, right = st.columns(2, gap="medium")
    left.markdown(
        "**What relevance is.** The network gives a class a score. Put one unit of *relevance* on it and hand it "
        "backwards: every neuron passes on what it received to its inputs, in proportion to what each contributed. "
        "What arrives at the pixels says which of them the decision rests on; what passes through a layer says how "
        "much of the decision that layer carried."
    )
    right.markdown(
        "**Why the share of a branch, not the sum over a layer.** Cut the network between two blocks: the same unit "
        "of relevance passes every cut, so that sum is the same everywhere and says nothing. Inside a block it "
        "splits: a part takes the attention or the MLP *branch*, the rest the skip connection past it. That share "
        "differs. Layers in a row on one branch get nearly the same share (an attention product half of it, because "
        "it divides relevance between two operands); sensitivity tells those apart."
    )


@st.fragment
def image_section(study) -> None:
    st.subheader("One image")
    with common.errors():
        show_explained(study)


def image_controls(study) -> tuple[int, int | str, int | str]:
    """Show the pickers; returns the index of the image, the class to explain and the class beside it."""
    images = study.evaluation_images
    labels = figures.class_labels(images.class_names)
    words = {"predicted": "the predicted one", "true": "the true one", "nothing": "nothing"}
    classes = ["predicted", *(["true"] if images.labels is not None else []), *range(len(labels))]

    def name(option: int | str) -> str:
        return words[option] if option in words else labels[option]

    with st.container(horizontal=True, vertical_alignment="bottom"):
        index = st.number_input(
            "Evaluation image",
            min_value=0,
            max_value=len(images) - 1,
            value=0,
            key="image",
            bind="query-params",
            width=160,
            help=f"Its number, 0 to {len(images) - 1}.",
        )
        st.button("Previous", icon=":material/chevron_left:", on_click=step_image, args=(-1, len(images)))
        st.button("Next", icon=":material/chevron_right:", on_click=step_image, args=(1, len(images)))
        explained = st.selectbox(
            "Class to explain",
            classes,
            format_func=name,
            key="class",
            bind="query-params",
            width=190,
            help="Relevance starts at the score of this class: what speaks for it, and what against?",
        )
        beside = st.selectbox(
            "Compare with",
            ["nothing", *classes],
            format_func=name,
            key="beside",
            bind="query-params",
            width=190,
            help="The same picture explained for a second class, on the same colour scales.",
        )
        st.button("Reset", icon=":material/restart_alt:", on_click=reset_image, help="First image, predicted class")
    return int(index), explained, beside


def step_image(by: int, images: int) -> None:
    st.session_state["image"] = (st.session_state["image"] + by) % images


def reset_image() -> None:
    st.session_state.update({"image": 0, "class": "predicted", "beside": "nothing"})


def samples(study, index: int) -> None:
    images = study.evaluation_images
    first = index - index % SAMPLES
    pictures = images.display(first, first + SAMPLES).numpy()
    with st.container(horizontal=True, gap="small"):
        for position, picture in enumerate(pictures, first):
            with st.container(width=64, gap="xsmall"):
                st.image(figures.thumbnail(picture), width="stretch")
                st.button(
                    f"{position}",
                    key=f"sample {position}",
                    type="primary" if position == index else "secondary",
                    help=f"{images.names[position]}: explain this image",
                    on_click=st.session_state.update,
                    args=({"image": position},),
                    width="stretch",
                )


def show_explained(study) -> None:
    index, explained, beside = image_controls(study)
    samples(study, index)
    predicted = study.image_relevance(index)
    known = {"predicted": predicted.predicted, "true": predicted.label}
    targets = dict.fromkeys(known.get(option, option) for option in (explained, beside) if option != "nothing")
    results = [study.image_relevance(index, target) for target in targets]
    if beside != "nothing" and len(results) == 1:
        st.caption("Both choices mean the same class, so it is shown once.")
    pixel_limit, patch_limit = figures.limits(results)
    for found in results:
        explanation(study, found, pixel_limit, patch_limit)
    st.caption(
        "Red pixels support the explained class, blue ones speak against it. The colour scale is centred on zero and "
        "the same for all pictures shown together." + (NO_CLASS_TOKEN if results[0].attribution is None else "")
    )


def explanation(study, found, pixel_limit: float, patch_limit: float) -> None:
    """Show one image explained for one class."""
    names = figures.class_labels(study.evaluation_images.class_names)
    explained, predicted = names[found.target], names[found.predicted]
    true = "" if found.label is None else f", true class **{names[found.label]}**"
    st.markdown(
        f"{found.name}: predicted **{predicted}** ({found.probabilities[found.predicted]:.1%}){true}, explained "
        f"**{explained}**. Of the relevance 1 at the score, {found.pixels.sum():.2f} reaches the pixels.",
        help="The rest leaves on the way, at the position embedding, the class token and outputs without any positive "
        "contribution.",
    )
    file = f"{study.model.name} {found.name} class {explained}"
    columns = st.columns(3 if found.attribution is None else 4)
    with columns[0]:
        common.chart(
            figures.picture(found),
            f"The picture {found.name}",
            figures.map_frame(found.image.mean(axis=-1), "brightness"),
            f"{file} picture",
        )
    with columns[1]:
        common.chart(
            figures.relevance_overlay(found, pixel_limit),
            f"Relevance of every pixel of {found.name} for class {explained}",
            figures.map_frame(found.pixels, "relevance"),
            f"{file} relevance",
        )
    if found.attribution is not None:
        with columns[2]:
            common.chart(
                figures.attribution_overlay(found, patch_limit),
                f"Attribution of every patch of {found.name} to class {explained}",
                figures.map_frame(found.attribution, "attribution"),
                f"{file} attribution",
            )
    with columns[-1]:
        common.chart(
            figures.probability_bars(found, names),
            f"Class probabilities of {found.name}; predicted is {predicted}",
            figures.probability_frame(found, names),
            f"{file} probabilities",
        )


def method() -> None:
    with st.expander("How this is computed", icon=":material/functions:"):
        st.markdown(
            "Rules of Chefer, Gur & Wolf 2021 (arXiv 2012.09838) with α = 1. A linear layer shares relevance among "
            "its inputs by their positive products with the weights:"
        )
        st.latex(
            r"R_i = \sum_j \frac{x_i^+ w_{ij}^+ + x_i^- w_{ij}^-}"
            r"{\sum_k \left( x_k^+ w_{kj}^+ + x_k^- w_{kj}^- \right)}\, R_j"
        )
        st.markdown(
            "An attention product gives each operand half of its relevance; a residual connection splits it by what "
            "each branch contributed, per image; LayerNorm, GELU and softmax pass it on unchanged; the patch embedding "
            "uses the z^B rule with the image's own range. The importance of layer *l* is its mean share over the "
            "calibration images (the share as a measure is this project's definition; Mix-QViT, arXiv 2501.06357, "
            "builds on layer relevance):"
        )
        st.latex(
            r"r_l(x) = \Bigl|\sum R \text{ at the output of layer } l\Bigr| \qquad "
            r"\Omega_l = \frac{1}{N}\sum_x \frac{r_l(x)}{\sum_k r_k(x)}"
        )
        st.markdown(
            "The attribution of the patches follows the attention from the first block up: per block the mean over "
            "heads of gradient × relevance, where positive, plus the identity; the class token's row of the product:"
        )
        st.latex(
            r"C = \bar A^{(B)} \cdots \bar A^{(1)}, \qquad \bar A^{(b)} = I + \mathbb{E}_h \Bigl[ \max\bigl(0, "
            r"\nabla A^{(b)} \odot R^{(b)}_A \bigr)\Bigr]"
        )


main()
