"""A/B on the Budget page: one allocation is held as A, the one shown now is B; layer by layer, image by image."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.allocation.budget import Allocation
from mixqvit.views import budget as budget_figures
from mixqvit.views import flips as figures
from mixqvit.views.allocation_strip import difference_strip
from mixqvit.views.numbers import megabytes
from pages.parts import common, measuring
from pages.parts.budget_measure import setting
from pages.parts.memory import Memory

if TYPE_CHECKING:
    from mixqvit.study.study import Study
    from mixqvit.tasks.evaluation import Evaluation

MOST_PICTURES = 12


def hold(remembered: Memory) -> None:
    if remembered.allocation is not None:  # the button is there before the first allocation is
        remembered.held = remembered.allocation.bits


def let_go(remembered: Memory) -> None:
    remembered.held = None


def hold_button(remembered: Memory) -> None:
    st.button(
        "Hold this as A",
        icon=":material/push_pin:",
        on_click=hold,
        args=(remembered,),
        help="Keep this allocation as A; whatever is shown from then on is B, and both are compared below.",
    )


def comparison_section(
    study: "Study",
    remembered: Memory,
    allocation: Allocation,
    yardstick: tuple[float, bool],
    shown: Mapping[str, "Evaluation | None"],
) -> None:
    """Compare A with the allocation shown now.

    Args:
        study: The open study.
        remembered: What this session knows.
        allocation: The allocation shown now.
        yardstick: What predicted harm is compared by, as `Request.yardstick` says.
        shown: What was measured, by `A` and `mixed`.
    """
    st.subheader("A against B", anchor=False)
    if remembered.held is None:
        st.caption(
            "Press **Hold this as A** above, then move the budget: this section then compares both allocations layer "
            "by layer and image by image, and shows which images flip."
        )
        return
    first, second = setting(study, remembered, remembered.held, yardstick), allocation
    name = f"{study.model.name} A against B"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"**A**, held: {first.cost.average_bits:.2f} average bits, {megabytes(first.cost.size_bytes)}. "
            f"**B**, shown now: {second.cost.average_bits:.2f}, {megabytes(second.cost.size_bytes)}."
        )
        st.button("Let go of A", icon=":material/close:", type="tertiary", on_click=let_go, args=(remembered,))
    common.chart(
        difference_strip(study.layers, first.bits, second.bits),
        "Bits of A above bits of B, layer by layer.",
        figures.difference_frame(study.layers, first.bits, second.bits),
        f"{name}, layers",
    )
    left, right = st.columns(2, gap="medium")
    with left:
        second_harm = setting(study, remembered, second.bits, yardstick).harm
        st.markdown(
            budget_figures.comparison(
                {"A": (first.cost, first.harm, shown["A"]), "B": (second.cost, second_harm, shown["mixed"])},
                measuring.has_labels(study),
            )
        )
    with right:
        changed = figures.difference_frame(study.layers, first.bits, second.bits, changed_only=True)
        st.caption(f"{len(changed)} of {len(study.layers)} layers differ.")
        st.dataframe(changed, hide_index=True, height=400, alt="Layers in which A and B differ.")
    if shown["A"] is None or shown["mixed"] is None:
        st.info("Which images flip is shown as soon as both are measured.")
    else:
        flips_section(study, shown["A"], shown["mixed"], name)


def flips_section(study: "Study", first: "Evaluation", second: "Evaluation", name: str) -> None:
    """Show which images flip between two evaluations."""
    images = study.evaluation_images
    has_labels = measuring.has_labels(study)
    kinds = figures.flip_kinds(has_labels)
    expected = images.labels.tolist() if has_labels else study.evaluations.reference()
    found = figures.flips(expected, first, second, kinds)
    st.markdown(figures.flip_words(found, kinds, len(images)))
    left, right = st.columns([2, 3], gap="medium")
    with left:
        common.chart(
            figures.kl_figure(images.names, found, first, second, kinds),
            "KL divergence of every image with B against that with A.",
            figures.flip_frame(images.names, images.class_names, found, has_labels),
            f"{name}, images",
        )
        st.caption("One marker per image. Below the dotted line B is closer to full precision than A.")
    with right:
        pictures(study, found, kinds, has_labels)


def pictures(study: "Study", found: Sequence[figures.Flip], kinds: figures.FlipKinds, has_labels: bool) -> None:
    """Show the images that flip."""
    if not found:
        return
    chosen = st.segmented_control(
        "Which flips",
        ["all", *kinds.names()],
        default="all",
        required=True,
        key="flip_kind",
        bind="query-params",
    )
    shown = [flip for flip in found if chosen in ("all", flip.kind)]
    if not shown:
        st.caption("No image flips this way.")
    classes = study.evaluation_images.class_names
    with st.grid(6, min_column_width=105):
        for flip in shown[:MOST_PICTURES]:
            example = study.evaluations.example(flip.index)
            with st.container(gap="small"):
                st.image(example.picture, width="stretch", alt=example.alt)
                st.caption(
                    figures.flip_caption(flip, example.name, classes, has_labels),
                    help=figures.flip_hover(flip, classes, has_labels),
                )
    if len(shown) > MOST_PICTURES:
        st.caption(f"The {MOST_PICTURES} whose KL changes most, of {len(shown)}; the CSV has all.")
