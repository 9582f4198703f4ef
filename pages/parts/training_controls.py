"""Everything a person chooses on the Training page, and the bits that follow from it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from mixqvit.allocation.request import Request
from mixqvit.criteria.registry import CRITERIA
from mixqvit.errors import UnsupportedOperationError
from mixqvit.files.access import ROOTS_VARIABLE, allowed_path, data_roots
from mixqvit.images.sources.factory import forms, is_path
from mixqvit.network.bits import BIT_WIDTHS, BitsPerLayer
from mixqvit.training.settings import TRAINING_METHODS, TrainingSettings
from mixqvit.views.training_table import bits_words
from pages.parts import common

if TYPE_CHECKING:
    from mixqvit.study.study import Study

UNIFORM, MIXED = "uniform", "mixed"
DEFAULTS = {
    "train_allocation": UNIFORM,
    "train_bits": 2,
    "train_average": 2.5,
    "train_method": TrainingSettings.method,
    "train_epochs": TrainingSettings.epochs,
    "train_seed": TrainingSettings.seed,
    "train_strategy": Request().strategy,
    "train_batch": TrainingSettings.batch,
    "train_learning_rate": None,
    "train_patience": None,
    "train_source": "",
}
EARLIER_METHOD = "train_recipe"
"""What links called the method once."""

# Those whose scores this page computes; pairs of layers take long and are asked for on the Budget page.
MIXED_STRATEGIES = [name for name, found in CRITERIA.items() if not (found.is_control or found.is_costly)]


@dataclass(frozen=True)
class Chosen:
    """What the controls say.

    Attributes:
        allocation: `uniform` or `mixed`.
        bits: Uniform bits, or the average of mixed ones.
        strategy: Chooses mixed bits.
        settings: How to train.
        source: Where the training images are from; None for the study's own.
    """

    allocation: str
    bits: float
    strategy: str
    settings: TrainingSettings
    source: str | None


def controls() -> Chosen:
    """Show all controls; returns what they say.

    Raises:
        TrainingError: A number is not possible.
        AccessError: The training images may not be read.
    """
    read_earlier_link()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        allocation = st.segmented_control(
            "Allocation",
            [UNIFORM, MIXED],
            default=DEFAULTS["train_allocation"],
            required=True,
            key="train_allocation",
            bind="query-params",
            help="Uniform: the same bits for every layer. Mixed: bits per layer that do the least predicted harm, with "
            "no larger model and no more BitOps than uniform bits of that average, and never fewer than 2 bits.",
        )
        bits = uniform_bits() if allocation == UNIFORM else average_bits()
        method = st.segmented_control(
            "Method",
            list(TRAINING_METHODS),
            default=DEFAULTS["train_method"],
            required=True,
            key="train_method",
            bind="query-params",
            help="\n".join(f"- **{name}**: {found.description}" for name, found in TRAINING_METHODS.items()),
        )
        epochs = st.number_input(
            "Epochs",
            1,
            10_000,
            DEFAULTS["train_epochs"],
            key="train_epochs",
            bind="query-params",
            width=120,
            help="Passes over the training images; with ofq the last sixth of them anneals.",
        )
        seed = st.number_input(
            "Seed",
            0,
            10**6,
            DEFAULTS["train_seed"],
            key="train_seed",
            bind="query-params",
            width=110,
            help="Of the order of the images and of their random changes.",
        )
        st.button("Reset", icon=":material/restart_alt:", on_click=st.session_state.update, args=(DEFAULTS,))
    with st.expander("More: batch, learning rate, early stop, images, strategy", icon=":material/tune:"):
        batch, learning_rate, patience, source, strategy = more()
    settings = TrainingSettings(method, int(epochs), int(seed), int(batch), learning_rate, patience)
    return Chosen(allocation, bits, strategy, settings, checked_source(source))


def read_earlier_link() -> None:
    """Take the method from a link that calls it by its earlier name."""
    linked = st.query_params.get(EARLIER_METHOD)
    if linked is not None:
        del st.query_params[EARLIER_METHOD]
        if linked in TRAINING_METHODS:
            st.session_state["train_method"] = linked


def uniform_bits() -> int:
    return st.segmented_control(
        "Bits",
        BIT_WIDTHS,
        default=DEFAULTS["train_bits"],
        required=True,
        key="train_bits",
        bind="query-params",
        help="Of weights and activations of every layer but the first and the last one.",
    )


def average_bits() -> float:
    return st.number_input(
        "Average bits",
        float(BIT_WIDTHS[0]),
        float(BIT_WIDTHS[-1]),
        DEFAULTS["train_average"],
        0.25,
        format="%.2f",
        key="train_average",
        bind="query-params",
        width=150,
        help="A ceiling: weight bits, averaged over the weights between the first and the last layer.",
    )


def more() -> tuple[int, float | None, int | None, str, str]:
    with st.grid(3, min_column_width=210):
        batch = st.number_input(
            "Batch",
            1,
            None,
            DEFAULTS["train_batch"],
            key="train_batch",
            bind="query-params",
            help="Images in an optimization step.",
        )
        learning_rate = st.number_input(
            "Learning rate",
            0.0,
            None,
            None,
            0.0001,
            format="%.5f",
            key="train_learning_rate",
            bind="query-params",
            placeholder="automatic",
            help="Its peak: it rises over the first twentieth of the steps and falls to zero along half a cosine. "
            "Automatic is 0.1 divided by the channels of the head's input.",
        )
        patience = st.number_input(
            "Patience (epochs)",
            1,
            None,
            None,
            1,
            key="train_patience",
            bind="query-params",
            placeholder="off",
            help="Training ends after so many epochs without a smaller loss on the calibration images.",
        )
        source = st.text_input(
            "Training images",
            key="train_source",
            bind="query-params",
            placeholder="the study's own",
            help=f"What can be named: {forms()}. Paths must lie below "
            f"{', '.join(f'`{root}`' for root in data_roots())}; `{ROOTS_VARIABLE}` allows others. Images that "
            "calibrate or evaluate, and copies of them, are left out. Labels are not needed: full precision teaches.",
        )
        strategy = st.selectbox(
            "Strategy of mixed bits",
            MIXED_STRATEGIES,
            key="train_strategy",
            bind="query-params",
            help="What is minimised:\n\n"
            + "\n".join(f"- **{name}**: {CRITERIA[name].sentence}" for name in MIXED_STRATEGIES),
        )
    return batch, learning_rate, patience, source, strategy


def checked_source(text: str) -> str | None:
    """Return where training images are from, None for the study's own.

    Raises:
        AccessError: It is a path that a browser may not name.
    """
    text = text.strip()
    if not text:
        return None
    return str(allowed_path(text)) if is_path(text) else text


def chosen_bits(study: "Study", chosen: Chosen, status: DeltaGenerator, words: DeltaGenerator) -> BitsPerLayer | None:
    """Return (weight bits, activation bits) by layer; None while what mixed bits need is not computed.

    Args:
        study: The open study.
        chosen: What the controls say.
        status: Where work shows its progress.
        words: Where the bits are said in words.

    Raises:
        AllocationError: Nothing fits.
    """
    if chosen.allocation == UNIFORM:
        return study.first_last_uniform(chosen.bits)
    try:
        with status:
            if not scored(study, chosen.strategy):
                return None
    except UnsupportedOperationError as error:
        with words:
            common.offer_sensitivity(error, chosen.strategy, "train_strategy")
        return None
    allocation = study.allocate(study.first_last_request(chosen.bits), strategy=chosen.strategy)
    words.caption(
        f"{bits_words(study.layers, allocation.bits)} Chosen by strategy {chosen.strategy}: "
        f"{study.training.inner_average_bits(allocation.bits):.2f} bits on average."
    )
    return allocation.bits


def scored(study: "Study", strategy: str) -> bool:
    """Compute what the strategy has to know of the layers; returns whether it is there."""
    if not common.started(study, "relevance", "calibration", "sensitivity"):
        return False
    return common.run(f"Scores for {strategy}", lambda: study.score_steps(strategy)) is not None
