"""What all pages share: the open study, long work with progress, figures with their downloads, messages."""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from mixqvit import notes
from mixqvit.criteria.registry import WITHOUT_IMPORTANCE
from mixqvit.engines.choice import ENGINES, EngineChoice, find_engine
from mixqvit.errors import MixQViTError, ModelError
from mixqvit.files.open_studies import OpenStudies
from mixqvit.files.uploads import remove_old_uploads
from mixqvit.models.cards import EMBEDDED, list_models
from mixqvit.stages.store import Store
from mixqvit.study.library import StudyDescription, find_study, known_studies
from mixqvit.views.numbers import duration
from mixqvit.views.studies import estimate_words

if TYPE_CHECKING:
    from mixqvit.engines.progress import Progress
    from mixqvit.study.study import Study

SECONDS_BETWEEN_UPDATES = 0.1
SECONDS_WITHOUT_ASKING = 30

RAY_VARIABLE = "MIXQVIT_RAY_ADDRESS"
"""Environment variable that names the Ray cluster of the dashboard."""

NEXT_STUDY = "study to open"
"""Where the session's state says which study to open in the next run."""


def navigation() -> Any:
    """Declare the pages; returns the one to run."""
    return st.navigation(
        [
            st.Page("pages/overview.py", title="Overview", icon=":material/home:", default=True),
            st.Page("pages/relevance.py", title="Relevance", icon=":material/visibility:"),
            st.Page("pages/sensitivity.py", title="Sensitivity", icon=":material/show_chart:"),
            st.Page("pages/budget.py", title="Budget", icon=":material/tune:"),
            st.Page("pages/quantizers.py", title="Quantizers", icon=":material/grid_on:"),
            st.Page("pages/outliers.py", title="Outliers", icon=":material/bar_chart:"),
            st.Page("pages/training.py", title="Training", icon=":material/model_training:"),
            st.Page("pages/studies.py", title="Models and images", icon=":material/folder_open:"),
        ]
    )


@contextmanager
def page(title: str, sentences: str) -> Iterator[None]:
    """Show the page's title and its two sentences; show a MixQViTError as a message, never a traceback."""
    if "study" not in st.session_state:
        # Until the first st.navigation of a server, Streamlit runs files in a folder called pages without app.py.
        navigation()
        st.rerun()
    st.title(title)
    st.markdown(sentences)
    with errors():
        yield


@contextmanager
def errors() -> Iterator[None]:
    """Show a MixQViTError as a message. Fragments need their own: they rerun without the page around them."""
    try:
        yield
    except MixQViTError as error:
        st.error(in_words(error), icon=":material/error:")


def as_sentence(message: str) -> str:
    """Return a message as a sentence of its own, without marks that would make a name in it a link or a picture."""
    return re.sub(r"([\\\[\]$<>!#~|])", r"\\\1", notes.as_sentence(message))


def in_words(error: MixQViTError) -> str:
    """Return what an error says, as `as_sentence` does."""
    return as_sentence(str(error))


def offer_sensitivity(error: MixQViTError, strategy: str, key: str) -> None:
    """Say that a model has no importance, and offer the strategy that does without.

    Args:
        error: Why it has none.
        strategy: The strategy that needs it.
        key: Of the widget that chooses the strategy.
    """
    st.warning(
        f"{in_words(error)} Strategy {strategy} needs importance; *{WITHOUT_IMPORTANCE}* does without and is as exact.",
        icon=":material/block:",
    )
    st.button(
        f"Choose strategy {WITHOUT_IMPORTANCE}",
        type="primary",
        on_click=st.session_state.update,
        args=({key: WITHOUT_IMPORTANCE},),
    )


def warned(told: Sequence[notes.Note]) -> list[str]:
    """Show the warnings among notes; returns the texts of the others."""
    for note in told:
        if note.is_warning:
            st.warning(as_sentence(note.text), icon=":material/warning:")
    return [note.text for note in told if not note.is_warning]


def bullets(messages: Sequence[str]) -> None:
    """Show messages as a list."""
    st.markdown("\n".join(f"- {as_sentence(message)}" for message in messages))


def sidebar() -> None:
    """Choose the study: model and images, and outlier amplification. The choice is part of the URL."""
    saved = {}
    with errors():
        saved = known_studies(Store())
    names = [*EMBEDDED, *saved]
    chosen = st.session_state.pop(NEXT_STUDY, None)  # what a page opened; no page may set a widget that is there
    if chosen is not None:
        st.session_state.study = chosen
    linked = st.query_params.get("study")
    unknown = linked if "study" not in st.session_state and linked not in (None, *names) else None
    if st.session_state.get("study", names[0]) not in names:
        del st.session_state.study  # it was removed
    with st.sidebar:
        st.selectbox(
            "Study",
            names,
            key="study",
            bind="query-params",
            help="A model with its images. The first three are embedded: trained by this project on scikit-learn's "
            "handwritten digits, they load without a network.",
        )
        if unknown:
            st.warning(f"The link names the study “{unknown[:80]}”, which is not saved on this machine.")
        st.caption(_about(st.session_state.study, saved))
        st.page_link("pages/studies.py", label="Open your own model or images", icon=":material/add:")
        st.select_slider(
            "Outlier amplification",
            [1, 2, 4, 8, 16, 32],
            key="outliers",
            bind="query-params",
            format_func=lambda factor: "off" if factor == 1 else f"×{factor}",
            help="Scales two channels of every LayerNorm and divides the next layer's weights by as much: "
            "the full-precision model stays the same, its quantizers get a harder task.",
        )
        _choose_engine()
        st.caption("Quantization is simulated here: the bits saved are real, the arithmetic is floating-point.")


def _about(name: str, saved: Mapping[str, StudyDescription]) -> str:
    if name not in saved:
        return next(model.description for model in list_models() if model.name == name)
    description = saved[name]
    parts = (description.model, description.checkpoint and f"weights of `{PurePath(description.checkpoint).name}`")
    return ", ".join(filter(None, (*parts, description.images and f"images of `{PurePath(description.images).name}`")))


def open_next(name: str) -> None:
    """Make a study the open one, from the next run on."""
    st.session_state[NEXT_STUDY] = name


@st.cache_resource
def open_studies() -> OpenStudies:
    """Return the studies that this server holds open, for all sessions."""
    remove_old_uploads()
    return OpenStudies()


def study() -> "Study":
    """Return the open study, loading it behind a visible progress bar on first use."""
    place = st.empty()  # always there: what comes and goes would leave the elements below it twice on the screen
    name, factor = st.session_state.study, float(st.session_state.outliers)
    description = find_study(Store(), name)
    if description is None:
        raise ModelError(f"The study {name} was removed. Choose another one in the sidebar.")
    engine = find_engine(engine_choice())
    found = open_studies().find(description, factor)
    if found is not None:
        return found.with_engine(engine)
    place.progress(0.0, "Loading PyTorch, the model and its images …")
    for step in open_studies().open_steps(description, factor):
        if step.done < step.total:
            place.progress(step.done / step.total, f"{name}: {step.doing}")
    place.empty()
    return step.result.with_engine(engine)


def engine_choice() -> EngineChoice:
    """Return where the sweeps of this session run."""
    name = st.session_state.get("engine", EngineChoice.name)
    workers = st.session_state.get("workers") if name != EngineChoice.name else None
    # Results of a cluster are trusted as this program is, so who runs the dashboard names it, not who opens a page.
    return EngineChoice(name, workers, os.environ.get(RAY_VARIABLE) if name == "ray" else None)


def _choose_engine() -> None:
    with st.expander("Where sweeps run", icon=":material/lan:"):
        st.selectbox(
            "Engine",
            ENGINES,
            key="engine",
            format_func=lambda name: name.replace("-", " "),
            help="Sensitivity, pairs of layers, comparisons of allocations and large evaluations run there. The "
            "numbers are the same.\n\n" + "\n".join(f"- {name}: {words}" for name, words in ENGINES.items()),
        )
        if st.session_state.engine != EngineChoice.name:
            st.number_input("Workers", 1, 256, value=os.cpu_count() or 1, key="workers")
        if st.session_state.engine == "ray":
            address = os.environ.get(RAY_VARIABLE)
            st.caption(
                f"The cluster at `{address}`."
                if address
                else f"A cluster of this machine only. Start the dashboard with `{RAY_VARIABLE}=HOST:PORT` for another."
            )


def started(study: "Study", *stages: str) -> bool:
    """Ask before work of minutes begins; returns whether to go on. Asked once per study, for all pages.

    Args:
        study: The open study.
        stages: What the page needs, by the names of `Estimate.seconds`; everything by default.
    """
    place = st.container()  # always there, see `study`
    flag = f"start {st.session_state.study} {st.session_state.outliers}"
    if st.session_state.get(flag) or study.evaluations.by_itself():
        return True
    left = study.estimate()
    if left is None:  # a GPU, where nothing was measured
        return True
    left = replace(left, seconds={stage: left.seconds.get(stage, 0.0) for stage in stages or left.seconds})
    if sum(left.seconds.values()) < SECONDS_WITHOUT_ASKING:
        return True
    with place.container(horizontal=True, vertical_alignment="center"):
        st.info(estimate_words(left), icon=":material/timer:")
        st.button(
            "Start computing",
            type="primary",
            icon=":material/play_arrow:",
            key=f"start {' '.join(stages)}",
            on_click=st.session_state.update,
            args=({flag: True},),
        )
    return False


def run(name: str, steps: Callable[[], "Iterator[Progress]"], show: Callable[["Progress"], None] | None = None) -> Any:
    """Do long work with a progress bar, a remaining-time estimate and a stop button.

    The finished pieces are saved by the study, so stopping, or touching any other control, loses nothing: the next run
    goes on from there.

    Args:
        name: What is being done, e.g. "Sensitivity"; one stop button per name.
        steps: Starts (or resumes) the work.
        show: Called with progress that carries a piece, for live pictures; at most ten times a second.

    Returns:
        The last result; None while stopped.
    """
    stopped = stop_flag(name)
    slot = st.empty()
    if st.session_state.get(stopped):
        with slot.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f":material/pause_circle: {name} stopped. What was finished is saved.")
            st.button("Resume", key=f"resume {name}", on_click=st.session_state.update, args=({stopped: False},))
        return None
    bar = first = None
    started = last_update = time.monotonic()
    for step in steps():
        now = time.monotonic()
        if first is None or step.stage != first.stage:  # what a stage needs is reported before its own progress
            first, started = step, now
        if step.done == step.total or now - last_update < SECONDS_BETWEEN_UPDATES:
            continue
        last_update = now
        if bar is None:
            with slot.container(horizontal=True, vertical_alignment="center"):
                bar = st.progress(0.0)
                st.button("Stop", key=f"stop {name}", on_click=st.session_state.update, args=({stopped: True},))
        bar.progress(step.done / step.total, f"{name}: {step.doing} · {_remaining(step, first.done, now - started)}")
        if show is not None and step.piece is not None:
            show(step)
    slot.empty()
    return step.result


def stop_flag(name: str) -> str:
    """Return the name in the session's state that says whether this work is stopped on the open study."""
    return f"stopped {name} on {st.session_state.study} {st.session_state.outliers}"


def _remaining(step: "Progress", first_done: float, seconds: float) -> str:
    finished = step.done - first_done
    if not finished:
        return "estimating the remaining time"
    remaining = seconds / finished * (step.total - step.done)
    return f"about {duration(remaining)} left"


def image_number(key: str, count: int) -> int:
    """Show the picker of one of `count` evaluation images, with a step back and forth; returns its number."""
    number = st.number_input(
        "Evaluation image",
        min_value=0,
        max_value=count - 1,
        value=0,
        key=key,
        bind="query-params",
        width=150,
        help=f"Its number, 0 to {count - 1}.",
    )
    for label, icon, by in (("Previous", "chevron_left", -1), ("Next", "chevron_right", 1)):
        st.button(
            label,
            icon=f":material/{icon}:",
            key=f"{label} {key}",
            on_click=_step_image,
            args=(key, by, count),
        )
    return int(number)


def _step_image(key: str, by: int, count: int) -> None:
    st.session_state[key] = (st.session_state[key] + by) % count


def fact(place: Any, label: str, value: str, below: str, help_text: str | None = None) -> None:
    """Show one number in a frame, with a line below it."""
    place.metric(
        label,
        value,
        delta=below,
        delta_color="off",
        delta_arrow="off",
        border=True,
        height="stretch",
        help=help_text,
    )


def chart(figure: Any, alt: str, data: pd.DataFrame, name: str, **options: Any) -> Any:
    """Show a figure with hover, PNG download (camera button) and the numbers as CSV; returns Streamlit's state."""
    state = st.plotly_chart(
        figure,
        alt=alt,
        key=f"chart {name}",
        config={"displaylogo": False, "toImageButtonOptions": {"filename": name, "scale": 2}},
        **options,
    )
    st.download_button(
        "Numbers as CSV",
        lambda: data.to_csv(index=False).encode(),  # written when it is asked for: a photograph has 50,000 rows
        f"{name}.csv",
        "text/csv",
        key=f"csv {name}",
        icon=":material/download:",
        type="tertiary",
        on_click="ignore",
    )
    return state
