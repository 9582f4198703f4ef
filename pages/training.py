"""Training with the quantizers in the loop, at the bits that an allocation chose."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from mixqvit.allocation.costs import Cost
from mixqvit.errors import UnsupportedOperationError
from mixqvit.network.bits import BitsPerLayer
from mixqvit.training.settings import TrainingRun
from mixqvit.views import training as figures
from mixqvit.views.numbers import billions, megabytes, percent
from pages.parts import budget_measure, common, measuring, training_results, training_texts, training_work
from pages.parts.training_controls import Chosen, chosen_bits, controls

if TYPE_CHECKING:
    from mixqvit.study.study import Study

STATUS_HEIGHT = 56  # pixels, reserved for the progress bar so that nothing below it moves
TITLES = {
    "full precision": "Full precision",
    "post-training": "Post-training",
    "trained": "Trained",
}


def facts(
    study: "Study", found: training_work.Measured, run: TrainingRun | None, size: Cost | None
) -> dict[str, DeltaGenerator]:
    """Show what was measured and what the trained model costs; returns the places of the numbers."""
    numbers = st.grid(4, min_column_width=165)
    with numbers:
        places = {name: st.empty() for name in TITLES}
        cost_place = st.empty()
    for name, place in places.items():
        budget_measure.show_measured(place, TITLES[name], found[name], measuring.accuracy(study))
    if found["trained"] is None:
        show_epoch(places["trained"], study, run)
    common.fact(
        cost_place,
        "Size when trained",
        "–" if size is None else megabytes(size.size_bytes),
        "not possible here" if size is None else f"{billions(size.bitops)} BitOps",
        "Of the packed file, to the byte; BitOps for one image.",
    )
    return places


def show_epoch(place: DeltaGenerator, study: "Study", run: TrainingRun | None) -> None:
    """Show the kept epoch's accuracy while the trained model is not measured by itself."""
    accuracy = measuring.accuracy(study)
    if run is None:
        value, below = "–", "not trained yet"
    else:
        kept = run.epochs[run.best - 1]
        value = percent(getattr(kept, accuracy.field))
        below = f"epoch {run.best}, of {len(run.epochs)} finished"
    common.fact(place, f"{accuracy.short}, trained", value, below, accuracy.help_text)


def curves(
    places: Sequence[DeltaGenerator],
    study: "Study",
    chosen: Chosen,
    run: TrainingRun | None,
    found: training_work.Measured,
    *,
    final: bool,
) -> None:
    """Draw loss and accuracy by epoch in their places; with downloads once nothing changes any more."""
    accuracy, settings = measuring.accuracy(study), chosen.settings
    full, post = found["full precision"], found["post-training"]
    drawn = (
        ("loss", figures.loss_curves(run, settings, post)),
        (accuracy.in_sentence, figures.accuracy_curves(run, settings, accuracy, full, post)),
    )
    name = f"{study.model.name} {chosen.allocation} {chosen.bits:g} bits {settings.method}"
    for place, (what, figure) in zip(places, drawn, strict=True):
        alt = f"{what.capitalize()} of the training of {study.model.name} by epoch"
        if not final:
            place.plotly_chart(figure, alt=alt, key=f"{what} after {0 if run is None else len(run.epochs)} epochs")
            continue
        with place.container():
            common.chart(figure, alt, figures.curve_frame(run), f"{name} {what}")


def main() -> None:
    with common.page(
        "Training",
        "Where post-training quantization breaks, train with the quantizers in the loop: the quantized model learns "
        "to answer as the full-precision model does, on training images changed at random each time. Curves are "
        "measured after every epoch, beside what full precision and post-training quantization reach.",
    ):
        study = common.study()
        chosen = controls()
        training_texts.policy()
        words, message = st.container(), st.container()
        actions = st.container(horizontal=True, vertical_alignment="center")
        status = st.container(height=STATUS_HEIGHT, border=False)
        bits = chosen_bits(study, chosen, status, words)
        if bits is None:
            with message:
                st.info("Mixed bits appear once what their strategy has to know of all layers is computed.")
            training_results.table(study, None, None)
            training_texts.method()
            return
        show(study, chosen, bits, message, actions, status)


def show(
    study: "Study",
    chosen: Chosen,
    bits: BitsPerLayer,
    message: DeltaGenerator,
    actions: DeltaGenerator,
    status: DeltaGenerator,
) -> None:
    name = training_work.identity(study, bits, chosen)
    run = study.training.run(bits, chosen.settings, chosen.source)
    found = training_work.evaluations(study, bits, chosen)
    wanted = training_work.is_wanted(name, None not in found.values())
    size = None
    with message:
        try:
            size = study.training.cost(bits, chosen.settings)
        except UnsupportedOperationError as error:
            st.warning(common.in_words(error), icon=":material/block:")
        training_work.failure(name)
    with actions:
        training_work.buttons(name, study, bits, chosen, run, refused=size is None, wanted=wanted)
        st.markdown(training_work.state_words(run, chosen.settings, wanted=wanted))
    places = facts(study, found, run, size)
    measuring.among_classes(study)
    columns = st.columns(2, gap="medium")
    chart_places = [column.empty() for column in columns]
    training = wanted and not (run is not None and run.finished)
    curves(chart_places, study, chosen, run, found, final=not training)
    below = st.empty()
    below_curves(below, name, run)
    if run is not None and run.finished:
        training_results.step_sizes(study, bits, chosen)
    training_results.table(study, bits, chosen)
    training_texts.method()

    def draw(so_far: TrainingRun) -> None:
        curves(chart_places, study, chosen, so_far, found, final=False)
        show_epoch(places["trained"], study, so_far)
        below_curves(below, name, so_far)

    with status:
        training_work.work(name, study, bits, chosen, found, draw)


def below_curves(place: DeltaGenerator, name: str, run: TrainingRun | None) -> None:
    images = st.session_state.get(training_work.IMAGES, {}).get(name)
    sentences = [
        "After training this says which epoch's weights are kept, and how long it took."
        if run is None
        else figures.run_words(run)
    ]
    if images:
        sentences.append(f"Trained on {images}.")
    place.caption(" ".join(sentences))


main()
