"""What training brought: step sizes, and the table of full precision, post-training and trained models."""

from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.allocation.costs import Cost, cost
from mixqvit.errors import MixQViTError, StoreError
from mixqvit.network.bits import FULL_PRECISION, BitsPerLayer, uniform
from mixqvit.stages.store import Store
from mixqvit.study.library import find_study
from mixqvit.study.trained_study import keep_trained
from mixqvit.training.settings import TrainingSettings
from mixqvit.views import training_steps, training_table
from mixqvit.views.numbers import megabytes
from pages.parts import common, measuring
from pages.parts.memory import key as key_of
from pages.parts.training_controls import Chosen

if TYPE_CHECKING:
    from mixqvit.study.study import Study

NOT_KEPT = "trained weights not kept"


def trained_cost(study: "Study", bits: BitsPerLayer, settings: TrainingSettings) -> Cost | None:
    """Return what the trained model costs; None where its method cannot serve the model."""
    try:
        return study.training.cost(bits, settings)
    except MixQViTError:
        return None


def step_sizes(study: "Study", bits: BitsPerLayer, chosen: Chosen) -> None:
    """Show the learned step sizes against the calibrated ones."""
    st.subheader(
        "What happened to the step sizes",
        anchor=False,
        help="The step size s is the distance of two neighbouring levels of a quantizer. Before: as fitted to the "
        "calibration images, where training began. After: as learned, of the epoch whose weights are kept.",
    )
    with st.spinner("Reading the trained model …"):
        steps = study.training.step_sizes(bits, chosen.settings, chosen.source)
    st.markdown(training_steps.step_words(steps))
    name = f"{study.model.name} {chosen.allocation} {chosen.bits:g} bits {chosen.settings.method}"
    left, right = st.columns([3, 2], gap="medium")
    with left:
        common.chart(
            training_steps.change_figure(steps, study.layers),
            "Step size after training divided by that before, for every operand in network order",
            training_steps.change_frame(steps),
            f"{name} step sizes",
        )
        st.caption(
            "Above the dashed line, levels moved apart: the operand covers a wider range more coarsely. Bars: from the "
            "5th to the 95th percentile of a weight's channels. Changes beyond a factor of 8 are drawn there."
        )
    with right:
        kind = st.segmented_control(
            "Operands",
            list(training_steps.OPERANDS),
            default="weights",
            required=True,
            key="train_operands",
            bind="query-params",
            label_visibility="collapsed",
        )
        common.chart(
            training_steps.histogram_figure(steps, kind),
            f"Histogram of the step sizes of {kind} before and after training",
            training_steps.histogram_frame(steps, kind),
            f"{name} histogram of {kind}",
        )


def rows(study: "Study", bits: BitsPerLayer | None, chosen: Chosen | None) -> list[training_table.Setting]:
    """Return the rows of the table: full precision, then by average bits post-training and all trainings.

    Args:
        study: The open study.
        bits: Those shown above, None for nothing.
        chosen: What the controls say.
    """
    full = cost(study.layers, uniform(study.layers, FULL_PRECISION), study.storage)
    found = [training_table.Setting("", "", FULL_PRECISION, full, study.saved_evaluation(FULL_PRECISION))]
    trainings = study.training.all()
    by_key = {key_of(training.bits): training.bits for training in trainings}
    shown = None if bits is None else key_of(bits)
    if bits is not None:
        by_key.setdefault(shown, bits)
    for name, own in sorted(by_key.items(), key=lambda item: (study.training.inner_average_bits(item[1]), item[0])):
        allocation = "uniform" if training_table.is_uniform(study.layers, own) else "mixed"
        average = study.training.inner_average_bits(own)
        post = cost(study.layers, own, study.storage)
        evaluation = study.saved_evaluation(own)
        found.append(training_table.Setting(name, allocation, average, post, evaluation, is_shown=name == shown))
        for training in trainings:
            if key_of(training.bits) != name:
                continue
            settings, source = training.settings, training.source
            found.append(
                training_table.Setting(
                    name,
                    allocation,
                    average,
                    trained_cost(study, own, settings),
                    study.training.saved_evaluation(own, settings, source),
                    training.run,
                    source,
                    name == shown and settings == chosen.settings and source == chosen.source,
                )
            )
    return found


def table(study: "Study", bits: BitsPerLayer | None, chosen: Chosen | None) -> None:
    """Show all trainings of this study beside post-training quantization and full precision."""
    st.subheader("Full precision, post-training, trained", anchor=False)
    found, accuracy = rows(study, bits, chosen), measuring.accuracy(study)
    words = training_table.setting_words(found, accuracy)
    if words:
        st.markdown(words)
    frame = training_table.setting_frame(found)
    number = st.column_config.NumberColumn
    st.dataframe(
        frame,
        hide_index=True,
        height="content",
        placeholder="–",
        alt="Full precision, post-training quantization and all trainings of this study.",
        column_config={
            "model": st.column_config.TextColumn(width="medium"),
            "top-1 (%)": number(format="%.1f", help="Classified as labelled"),
            "from (%)": number(format="%.1f", help=f"Lower end of the 95 % interval of {accuracy.word} (Wilson)"),
            "to (%)": number(format="%.1f", help=f"Upper end of the 95 % interval of {accuracy.word} (Wilson)"),
            "agreement (%)": number(format="%.1f", help="Same top-1 class as in full precision"),
            "KL (nats)": number(format="%.4f", help="KL(full precision ‖ quantized), mean per evaluation image"),
            "size (MB)": number(format="%.3f", help="Of the packed file"),
            "BitOps (G)": number(format="%.3f", help="For one image; ofq has merged layers of query and key"),
            "average bits": number(format="%.2f", help="Of the weights between the first and the last layer"),
            "seed": number(format="%d"),
            "batch": number(format="%d"),
            "minutes": number(format="%.1f", help="Computing time of all epochs"),
            "shown": st.column_config.CheckboxColumn(help="Shown above"),
        },
    )
    left, right = st.columns([3, 2], gap="medium")
    with left:
        common.chart(
            training_table.setting_figure(found, accuracy),
            f"{accuracy.title} with its 95 % interval against model size, post-training and trained",
            frame,
            f"{study.model.name} trained models",
        )
    with right:
        st.caption(
            f"Measured on {len(study.evaluation_images)} evaluation images that decide nothing in training. Squares "
            "are uniform bits, circles mixed ones; open is post-training with the study's recipe "
            f"({study.settings.recipe}), filled is trained, at the very same bits. A training whose row is empty is "
            "measured once the controls above show it."
        )
        if bits is not None:
            take_away(study, bits, chosen)


def take_away(study: "Study", bits: BitsPerLayer, chosen: Chosen) -> None:
    settings, source = chosen.settings, chosen.source
    run = study.training.run(bits, settings, source)
    finished, size = run is not None and run.finished, trained_cost(study, bits, settings)
    st.download_button(
        "Packed trained model" + (f", {megabytes(size.size_bytes)}" if size else ""),
        lambda: study.training.packed(bits, settings, source).content,  # packed when the button is pressed
        f"{study.model.name} {chosen.allocation} {chosen.bits:g} bits {settings.method}.safetensors",
        "application/octet-stream",
        icon=":material/download:",
        on_click="ignore",
        disabled=not finished,
        help="One safetensors file: integer weight codes at their true width and learned step sizes. "
        "`mixqvit.load_packed` reads it; its logits are those measured here.",
    )
    st.button(
        "Open the trained weights as a study",
        icon=":material/folder_open:",
        key="keep trained",
        on_click=keep,
        args=(study, bits, chosen),
        disabled=not finished,
        help="On all pages, such as *Outliers*: a model whose weights are what their codes stand for. Activations are "
        "not quantized there until bits are chosen again. It stays in the list of studies.",
    )
    problem = st.session_state.pop(NOT_KEPT, None)
    if problem:
        st.error(problem, icon=":material/error:")


def keep(study: "Study", bits: BitsPerLayer, chosen: Chosen) -> None:
    name = st.session_state.study
    try:
        description = find_study(Store(), name)
        if description is None:
            raise StoreError(f"The study {name} was removed.")
        common.open_next(keep_trained(study, description, bits, chosen.settings, chosen.source))
    except MixQViTError as error:
        st.session_state[NOT_KEPT] = common.in_words(error)
