"""Training and measuring on the Training page: who asked for it, its progress, how it is stopped."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import streamlit as st

from mixqvit.errors import MixQViTError
from mixqvit.network.bits import FULL_PRECISION, BitsPerLayer
from mixqvit.training.settings import TrainingRun, TrainingSettings
from mixqvit.views.numbers import counted, duration
from pages.parts import common, measuring
from pages.parts.memory import key as key_of
from pages.parts.training_controls import Chosen

if TYPE_CHECKING:
    from mixqvit.engines.progress import Progress
    from mixqvit.study.study import Study
    from mixqvit.tasks.evaluation import Evaluation

TRAINING = "Training"
WANTED, ASKED, FAILED, IMAGES = "training wanted", "training asked", "training failed", "training images"
MEASURED = {
    "full precision": "Measuring full precision",
    "post-training": "Measuring post-training quantization",
    "trained": "Measuring the trained model",
}
"""Names of the measurements' work."""

Measured = Mapping[str, "Evaluation | None"]
"""What was measured, by the names of `MEASURED`; None for what was not."""


def identity(study: "Study", bits: BitsPerLayer, chosen: Chosen) -> str:
    """Return what tells trainings apart."""
    return f"{measuring.key(study)} {key_of(bits)} {chosen.settings} {chosen.source}"


def is_wanted(name: str, done: bool) -> bool:
    """Return whether this training was asked for, is not done, and was neither stopped nor left for another one."""
    stopped = st.session_state.pop(common.stop_flag(TRAINING), False)
    if stopped or done or st.session_state.get(WANTED) != name:
        st.session_state.pop(WANTED, None)
    return WANTED in st.session_state


def start(name: str) -> None:
    st.session_state[WANTED] = name
    st.session_state.pop(FAILED, None)
    for work in MEASURED.values():
        st.session_state.pop(common.stop_flag(work), None)


def start_again(name: str, study: "Study", bits: BitsPerLayer, chosen: Chosen) -> None:
    try:
        study.training.forget(bits, chosen.settings, chosen.source)
    except MixQViTError as error:
        st.session_state[FAILED] = (name, common.in_words(error))
        return
    start(name)


def buttons(
    name: str,
    study: "Study",
    bits: BitsPerLayer,
    chosen: Chosen,
    run: TrainingRun | None,
    *,
    refused: bool,
    wanted: bool,
) -> None:
    """Show what starts training; its Stop is beside the progress bar."""
    finished = run is not None and run.finished
    goes_on = run is not None and not finished
    st.button(
        "Go on training" if goes_on else "Train",
        type="primary",
        icon=":material/model_training:",
        key="train",
        on_click=start,
        args=(name,),
        disabled=wanted or finished or refused,
        help="Every finished epoch is saved: stopping, or touching another control, loses at most the epoch in "
        "progress.",
    )
    with st.popover("Train again from the start", icon=":material/restart_alt:", disabled=run is None or wanted):
        st.markdown("This forgets the saved epochs of this training, and what was measured of it. Others stay.")
        st.button(
            f"Forget {counted(0 if run is None else len(run.epochs), 'epoch')} and train",
            type="primary",
            key="train again",
            on_click=start_again,
            args=(name, study, bits, chosen),
        )


def state_words(run: TrainingRun | None, settings: TrainingSettings, *, wanted: bool) -> str:
    """Say in Markdown what state this training is in."""
    if wanted:
        return ":material/sync: Training. Touching a control stops it, as *Stop* does."
    if run is None:
        return f"Nothing is trained yet with these settings: {counted(settings.epochs, 'epoch')} to train."
    if not run.finished:
        return f":material/pause_circle: {len(run.epochs)} of {counted(settings.epochs, 'epoch')} saved."
    return ":material/check_circle: Trained."


def failure(name: str) -> None:
    """Say why this training ended, where it did so with an error."""
    found = st.session_state.get(FAILED)
    if found is not None and found[0] == name:
        st.error(found[1], icon=":material/error:")


def evaluations(study: "Study", bits: BitsPerLayer, chosen: Chosen) -> Measured:
    """Return what is measured already, by the names of `MEASURED`; None for what is not."""
    return {
        "full precision": study.saved_evaluation(FULL_PRECISION),
        "post-training": study.saved_evaluation(bits),
        "trained": study.training.saved_evaluation(bits, chosen.settings, chosen.source),
    }


def work(
    name: str, study: "Study", bits: BitsPerLayer, chosen: Chosen, found: Measured, draw: Callable[[TrainingRun], None]
) -> None:
    """Measure what is missing and train, if it is wanted or takes seconds; the script runs anew after each piece.

    Args:
        name: From `identity`.
        study: The open study.
        bits: (weight bits, activation bits) by layer.
        chosen: What the controls say.
        found: From `evaluations`.
        draw: Called with the run whenever an epoch is finished.
    """
    settings, source = chosen.settings, chosen.source
    wanted = st.session_state.get(WANTED) == name
    run = study.training.run(bits, settings, source)
    finished = run is not None and run.finished
    steps = {
        "full precision": partial(study.evaluate_steps, FULL_PRECISION),
        "post-training": partial(study.evaluate_steps, bits),
        "trained": partial(study.evaluate_trained_steps, bits, settings, source),
    }
    missing = [title for title in MEASURED if found[title] is None and (title != "trained" or finished)]
    if missing and not (wanted or study.evaluations.by_itself() or name in st.session_state.get(ASKED, ())):
        offer_measuring(name, study, missing)
        return
    for title in missing:
        if common.run(MEASURED[title], steps[title]) is None:
            return
    if missing:
        st.rerun()
    if wanted and not finished:
        train(name, study, bits, chosen, run, draw)
        st.rerun()


def train(
    name: str,
    study: "Study",
    bits: BitsPerLayer,
    chosen: Chosen,
    run: TrainingRun | None,
    draw: Callable[[TrainingRun], None],
) -> None:
    """Train and draw every epoch that the run has not, which is drawn already; an error is kept to be shown."""
    drawn = 0 if run is None else len(run.epochs)

    def show(step: "Progress") -> None:
        nonlocal drawn
        if len(step.piece.epochs) != drawn:
            drawn = len(step.piece.epochs)
            draw(step.piece)

    try:
        images = common.run("Training images", lambda: study.training.images_steps(chosen.source))
        if images is None:
            st.session_state.pop(WANTED, None)
            return
        st.session_state.setdefault(IMAGES, {})[name] = images.how
        common.run(TRAINING, lambda: study.training_steps(bits, chosen.settings, chosen.source), show)
    except MixQViTError as error:
        st.session_state[FAILED] = (name, common.in_words(error))
        st.session_state.pop(WANTED, None)


def offer_measuring(name: str, study: "Study", missing: list[str]) -> None:
    seconds = duration(len(missing) * measuring.evaluation_seconds(study))
    images = len(study.evaluation_images)
    st.button(
        f"Measure {' and '.join(missing)} on {images} images, about {seconds}",
        icon=":material/play_arrow:",
        key="measure before training",
        on_click=ask,
        args=(name,),
    )


def ask(name: str) -> None:
    st.session_state[ASKED] = {*st.session_state.get(ASKED, ()), name}
